"""Fields of nouns, checked and converted once, where a noun is made.

A field may be given as a tensor, a NumPy array or a list, of any precision; it becomes a float32 or int64
tensor. A tensor that is one already is taken as it is, on its device and with its gradient.
"""

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from cryoforum.errors import InputError, require

Numbers: TypeAlias = Tensor | np.ndarray | Sequence[object] | float
UNIT_TOLERANCE = 1e-4  # of a quaternion's length: rounding to six decimals does not reach it


def settle(noun: Any, **values: Any) -> None:
    """Give fields of a frozen dataclass the values that they are meant to have; for `__post_init__`."""
    for name, value in values.items():
        object.__setattr__(noun, name, value)


def floats(
    name: str, values: Any, *shape: int | None, finite: bool = True, any_precision: bool = False
) -> Tensor:
    """``values`` as a float32 tensor.

    Parameters
    ----------
    name
        Of the field, for messages.
    values
        Numbers of any kind.
    shape
        The length along each axis; None: any.
    finite
        Refuse NaN and infinite values, too.
    any_precision
        Leave a float64 tensor as it is.

    Raises
    ------
    InputError
        For another shape, and for what is no number or not finite: it names the first row.
    """
    keeps = any_precision and isinstance(values, Tensor) and values.is_floating_point()
    found = _shaped(name, _tensor(name, values, None if keeps else torch.float32), shape)
    return _finite(name, found) if finite else found


def doubles(name: str, values: Numbers, *shape: int | None) -> Tensor:
    """``values`` as a finite float64 tensor, for what is computed with before it is kept; as `floats`."""
    return _finite(name, _shaped(name, _tensor(name, values, torch.float64), shape))


def integers(name: str, values: Any, *shape: int | None) -> Tensor:
    """``values`` as an int64 tensor; as `floats`, and InputError for numbers that are not whole."""
    found = _shaped(name, _tensor(name, values, None), shape)
    whole = found.long()
    if found.is_floating_point() and (wrong := whole != found).any():
        raise InputError(f"expected whole numbers for {name}, found {float(found[wrong][0]):g}")
    return whole


def unit_quaternions(name: str, values: Any, count: int | None = None) -> Tensor:
    """Quaternions (n, 4) as `floats` gives them; InputError where one is not of length 1."""
    found = floats(name, values, count, 4)
    wrong = (found.detach().norm(dim=-1) - 1).abs() > UNIT_TOLERANCE
    if wrong.any():
        row = _first_row(wrong)
        length = float(found[row].detach().norm())
        raise InputError(
            f"expected {name} of length 1, found {length:.6g} at row {row}; divide them by their lengths"
        )
    return found


def positive(name: str, value: Any) -> float:
    """``value`` as a finite float above 0, as lengths are."""
    try:
        found = float(value)
    except (TypeError, ValueError):
        found = math.nan
    require(0 < found < math.inf, f"{name} above 0", repr(value))
    return found


def same_length(what: str, value: Any, count: int) -> None:
    """InputError where something that is not None has not one entry for each of ``count`` particles."""
    if value is not None:
        require(len(value) == count, f"{what} of {count} particles", len(value))


def of_kind(name: str, value: Any, kind: type) -> None:
    """InputError where ``value`` is neither None nor of a class."""
    is_right = value is None or isinstance(value, kind)
    require(is_right, f"{name} to be {kind.__name__}", type(value).__name__)


def _finite(name: str, values: Tensor) -> Tensor:
    if not torch.isfinite(values).all():
        where = f" at row {_first_row(~torch.isfinite(values))}" if values.ndim else ""
        raise InputError(f"expected finite {name}, found NaN or infinite values{where}")
    return values


def _tensor(name: str, values: Any, dtype: torch.dtype | None) -> Tensor:
    if isinstance(values, Tensor):
        if values.is_complex():
            raise InputError(f"expected real numbers for {name}, found {values.dtype}")
        return values if dtype is None else values.to(dtype)
    try:
        array = np.asarray(values, order="C")
        if array.dtype.kind not in "biuf":
            raise ValueError
        return torch.as_tensor(array if array.flags.writeable else array.copy(), dtype=dtype)
    except (TypeError, ValueError):
        raise InputError(f"expected numbers for {name}, found {values!r:.60}") from None


def _shaped(name: str, values: Tensor, shape: tuple[int | None, ...]) -> Tensor:
    found = tuple(values.shape)
    if len(found) != len(shape) or any(
        want not in (None, have) for want, have in zip(shape, found, strict=True)
    ):
        wanted = ", ".join("n" if length is None else str(length) for length in shape)
        raise InputError(f"expected {name} of shape ({wanted}{',' * (len(shape) == 1)}), found {found}")
    return values


def _first_row(wrong: Tensor) -> int:
    return int(wrong.nonzero()[0, 0])
