"""Numbers that a caller gives, as tensors of the expected shape."""

import math
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from cryoforum.errors import InputError, require

Numbers: TypeAlias = Tensor | np.ndarray | Sequence[object] | float


def as_numbers(values: Numbers, shape: tuple[int, ...], noun: str) -> Tensor:
    """Numbers of any kind as a float64 tensor; of a tensor that asks for gradients they stay.

    Parameters
    ----------
    values
        A tensor, an array or nested lists.
    shape
        -1 stands for any length.
    noun
        What they are, in the plural, for messages.

    Raises
    ------
    InputError
        Where they are no numbers, of another shape, or not finite: it names the first such row.
    """
    try:
        numbers = (
            values.double() if isinstance(values, Tensor) else torch.as_tensor(np.asarray(values, float))
        )
    except (TypeError, ValueError) as error:
        raise InputError(f"expected {noun} as numbers, found {type(values).__name__}: {error}") from error
    wanted = ", ".join("n" if size < 0 else str(size) for size in shape)
    fits = numbers.ndim == len(shape) and all(
        size in (-1, found) for size, found in zip(shape, numbers.shape, strict=False)
    )
    require(fits, f"{noun} of shape ({wanted})", f"shape {tuple(numbers.shape)}")
    finite = numbers.isfinite().reshape(len(numbers), math.prod(numbers.shape[1:])).all(-1)
    if not finite.all():
        row = int((~finite).nonzero()[0])
        raise InputError(f"expected finite {noun}, found {numbers[row].tolist()} at row {row}")
    return numbers
