"""Simulated particles: ideal ones, and ones as imperfect as those of a microscope."""
