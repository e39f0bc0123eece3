"""Files of our own: whole or not there, locked, logged, watched."""
