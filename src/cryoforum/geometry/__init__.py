"""Rotations, grids of them, and point groups."""
