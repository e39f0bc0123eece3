"""Bad input: the one kind of error that the command line shows without a traceback."""


class InputError(ValueError):
    """Bad input: the message says what was expected, what was found, where, and what to do."""
