"""The ways a block of weights enters a forward pass: see `use`. One file for each."""
