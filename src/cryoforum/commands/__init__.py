"""What the command line does, callable from Python: one file a verb."""
