"""Rows of nouns that hold one entry a particle in every field, and how to say which are meant."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, ClassVar, Protocol, Self, SupportsIndex, TypeVar, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from cryoforum.errors import InputError

# A row, a slice, or row numbers or a mask as a list, an array, a column of a table or a tensor.
Index = SupportsIndex | slice | Iterable[Any]


@runtime_checkable
class _Dataclass(Protocol):
    __dataclass_fields__: ClassVar[dict[str, Any]]


Noun = TypeVar("Noun", bound=_Dataclass)


class NoSuchRow(InputError, IndexError):
    """A row that is not there; an IndexError, too, so that a loop over a noun ends."""


def as_rows(index: Index, count: int) -> Tensor:
    """The numbers (k,) int64 of the rows that are meant.

    Parameters
    ----------
    index
        A row, negative ones counting from the end; a slice; or, as list, array or tensor, row numbers in
        any order or a mask with a boolean for each of the rows. A single row stands for a set of one.
    count
        How many rows there are.

    Raises
    ------
    InputError
        For a row that is not there, a mask of another length, and what is neither numbers nor booleans.
    """
    if isinstance(index, slice):
        return torch.arange(*_bounds(index, count))
    rows = index if isinstance(index, Tensor) else _from_numbers(index)
    if rows.dtype == torch.bool:
        if rows.shape != (count,):
            raise InputError(f"expected a mask of {count} booleans, found {_shape_in_words(rows)}")
        return rows.nonzero()[:, 0]
    if rows.is_floating_point() or rows.is_complex() or rows.ndim > 1:
        raise InputError(f"expected row numbers or a mask, found {_shape_in_words(rows)} of {rows.dtype}")
    rows = rows.reshape(-1).long()
    if not len(rows):
        return rows
    lowest, highest = (int(end) for end in rows.aminmax())
    if lowest < -count or highest >= count:
        wrong = highest if highest >= count else lowest
        raise NoSuchRow(f"expected rows from 0 to {count - 1}, found {wrong}")
    return rows if lowest >= 0 else torch.where(rows < 0, rows + count, rows)


def is_single(index: Index) -> bool:
    """Whether ``index`` is one row, not a list of one."""
    return isinstance(index, SupportsIndex) and getattr(index, "ndim", 0) == 0


def _bounds(index: slice, count: int) -> tuple[int, int, int]:
    try:
        start, stop, step = index.indices(count)
    except (TypeError, ValueError) as error:
        raise InputError(f"expected a slice of row numbers, found {index}") from error
    # An empty one may run the wrong way, which torch refuses.
    return (start, stop, step) if (stop - start) * step > 0 else (0, 0, 1)


def _from_numbers(index: Any) -> Tensor:
    if isinstance(index, Iterable) and not hasattr(index, "__array__"):
        index = list(index)
    try:
        array = np.asarray(index)
    except ValueError:  # lists of unequal lengths
        array = np.asarray(None)
    if not array.size and array.dtype.kind == "f":  # no rows are of no kind
        array = array.astype(np.int64)
    if array.dtype.kind not in "biu" or isinstance(index, bool | np.bool_):
        raise InputError(f"expected row numbers or a mask, found {index!r:.60}")
    return torch.from_numpy(np.ascontiguousarray(array).astype(bool if array.dtype.kind == "b" else np.int64))


def _shape_in_words(rows: Tensor) -> str:
    return f"{len(rows)} values" if rows.ndim == 1 else f"values of shape {tuple(rows.shape)}"


@dataclass(frozen=True)
class Rows:
    """What a noun inherits from to be as long as its first field, and indexed like all of them.

    ``noun[index]`` takes all that `as_rows` takes, and is always a noun again: of one row where ``index`` is
    one number.
    """

    def __len__(self) -> int:
        return len(getattr(self, fields(self)[0].name))

    def __getitem__(self, index: Index) -> Self:
        return take(self, as_rows(index, len(self)))


def take(noun: Noun, rows: Tensor) -> Noun:
    """The dataclass with every field indexed by ``rows`` (k,) numbers or (n,) booleans; None stays.

    What was checked when ``noun`` was made is not checked again.
    """
    return made_of(
        type(noun), {entry.name: _taken(getattr(noun, entry.name), rows) for entry in fields(noun)}
    )


def _taken(value: Any, rows: Tensor) -> Any:
    if value is None:
        return None
    return take(value, rows) if is_dataclass(value) and not isinstance(value, type) else value[rows]


def changed(noun: Noun, **values: Any) -> Noun:
    """What `dataclasses.replace` gives, of values that are known to be right: nothing is checked again."""
    return made_of(type(noun), {entry.name: getattr(noun, entry.name) for entry in fields(noun)} | values)


def made_of(kind: type[Noun], values: dict[str, Any]) -> Noun:
    """A dataclass of values that are known to be right: nothing is checked."""
    noun = object.__new__(kind)
    for name, value in values.items():
        object.__setattr__(noun, name, value)
    return noun


def each_tensor(noun: Noun, change: Callable[[Tensor], Tensor]) -> Noun:
    """The dataclass with ``change`` of every tensor in it, at any depth; None stays."""

    def of_field(value: Any) -> Any:
        if value is None:
            return None
        return change(value) if isinstance(value, Tensor) else each_tensor(value, change)

    return type(noun)(*(of_field(getattr(noun, entry.name)) for entry in fields(noun)))


def concatenate(nouns: Sequence[Noun]) -> Noun:
    """Several of one kind as one, in order; a field is None in all or in none."""
    first = nouns[0]
    names = [entry.name for entry in fields(first)]
    return type(first)(*(_joined([getattr(noun, name) for noun in nouns]) for name in names))


def _joined(values: Sequence[Any]) -> Any:
    absent = [value is None for value in values]
    if any(absent):
        if not all(absent):
            raise ValueError(f"expected a field in all of {len(values)} parts or in none, found it in some")
        return None
    return torch.cat(list(values)) if isinstance(values[0], Tensor) else concatenate(values)
