"""The door: files of other programs in and out, and every conversion of conventions that they need."""
