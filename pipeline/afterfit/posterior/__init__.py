"""Gaussians over weights and over outputs, and what they say about targets."""
