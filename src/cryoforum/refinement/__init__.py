"""From particles alone: initial model, refinement, classes."""
