"""Variances of single outputs: refits and conjugate gradients, one query at a time or many together."""
