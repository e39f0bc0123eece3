"""MRC files: stacks and maps."""
