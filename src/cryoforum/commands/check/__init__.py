"""Whether a particle file means what it says, and what to do where it does not."""
