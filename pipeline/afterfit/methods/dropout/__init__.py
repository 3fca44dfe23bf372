"""Variational dropout: noise on weights or on what goes into them, and its local reparameterisation."""
