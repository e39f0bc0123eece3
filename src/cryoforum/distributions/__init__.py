"""Distributions over rotations and their normalising constants."""
