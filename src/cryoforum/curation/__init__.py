"""Which particles to trust, and how sure their poses are."""
