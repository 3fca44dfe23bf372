"""From a posterior to predictions, and from predictions to scores."""
