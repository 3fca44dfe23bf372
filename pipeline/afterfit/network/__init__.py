"""Networks as pure functions of their weights: how they are loaded, called, and what their outputs mean."""
