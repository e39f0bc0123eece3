"""Fields of nouns and of settings: indexed by row, checked where they are made, converted once."""
