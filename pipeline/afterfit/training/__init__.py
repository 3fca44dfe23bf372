"""Fits of the weights themselves, step by step."""
