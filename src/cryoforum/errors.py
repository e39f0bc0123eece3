"""Bad input: the one kind of error that the command line shows without a traceback."""


class InputError(ValueError):
    """Bad input: the message says what was expected, what was found, where, and what to do."""


def require(is_met: bool, expected: str, found: object) -> None:
    """InputError that says what was ``expected`` and ``found`` where a condition is not met."""
    if not is_met:
        raise InputError(f"expected {expected}, found {found}")
