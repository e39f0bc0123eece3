"""Values of kinds that annotations do not name: NumPy for a tensor, a wrong word."""

from typing import Any


def untyped(value: object) -> Any:
    """The value as a notebook would give it, where no type checker has looked."""
    return value
