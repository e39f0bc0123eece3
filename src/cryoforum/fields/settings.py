"""Fields of settings, checked and converted once, where settings are made."""

import math
from collections.abc import Collection
from dataclasses import MISSING, field, fields
from numbers import Integral, Real
from typing import Any

import numpy as np

from cryoforum.errors import InputError
from cryoforum.fields.checks import settle


def one_of(choices: Collection[str], default: str) -> Any:
    """A field that takes a name out of ``choices``, which may grow later."""
    return field(default=default, metadata={"choices": choices})


def settle_settings(settings: Any) -> None:
    """Check the fields of settings by what their defaults are, and convert what stands for the same.

    Numbers of NumPy, whole floats where a count is wanted and lists in place of tuples are taken, so that
    what was trained with can be written down and read again. For `__post_init__`.

    Raises
    ------
    InputError
        For a name that its table lacks, a value of another kind, and a number that is not finite.
    """
    for entry in fields(settings):
        value, choices = getattr(settings, entry.name), entry.metadata.get("choices")
        if choices is not None:
            _refuse_unknown(entry.name, value, choices)
            continue
        default = entry.default if entry.default_factory is MISSING else entry.default_factory()
        settle(settings, **{entry.name: _like(entry.name, default, value)})


def _refuse_unknown(name: str, value: Any, choices: Collection[str]) -> None:
    if not isinstance(value, str) or value not in choices:
        raise InputError(f"{name}: expected one of {', '.join(choices)}, found '{value}'")


def _like(name: str, default: Any, value: Any) -> Any:
    """``value`` as the kind that ``default`` is."""
    if isinstance(default, bool):
        if isinstance(value, bool | np.bool_):
            return bool(value)
    elif isinstance(default, int):
        if _is_number(value) and float(value).is_integer():
            return int(value)
    elif isinstance(default, float):
        if _is_number(value) and math.isfinite(value):
            return float(value)
    elif isinstance(default, tuple):
        if isinstance(value, list | tuple | np.ndarray):
            return tuple(_like(name, default[0], one) for one in value)
    elif isinstance(value, type(default)):
        return value
    raise InputError(f"expected {_in_words(default)} for {name}, such as {default!r:.60}, found {value!r}")


def _is_number(value: Any) -> bool:
    return isinstance(value, Integral | Real) and not isinstance(value, bool | np.bool_)


def _in_words(default: Any) -> str:
    kinds = {bool: "true or false", int: "a whole number", float: "a finite number", tuple: "a tuple"}
    return kinds.get(type(default), f"a {type(default).__name__}")
