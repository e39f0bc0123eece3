"""Rows of nouns that hold one entry a particle in every field."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor


@runtime_checkable
class _Dataclass(Protocol):
    __dataclass_fields__: ClassVar[dict[str, Any]]


Noun = TypeVar("Noun", bound=_Dataclass)


@dataclass(frozen=True)
class Rows:
    """What a noun inherits from to be as long as its first field, and indexed like all of them."""

    def __len__(self) -> int:
        return len(getattr(self, fields(self)[0].name))

    def __getitem__(self: Noun, rows: Tensor) -> Noun:
        return take(self, rows)


def take(noun: Noun, rows: Tensor) -> Noun:
    """The dataclass with every field indexed by ``rows`` (k,) numbers or (n,) booleans; None stays."""
    values = (getattr(noun, entry.name) for entry in fields(noun))
    return type(noun)(*(None if value is None else value[rows] for value in values))


def each_tensor(noun: Noun, change: Callable[[Tensor], Tensor]) -> Noun:
    """The dataclass with ``change`` of every tensor in it, at any depth; None stays."""

    def changed(value: Any) -> Any:
        if value is None or isinstance(value, Tensor):
            return None if value is None else change(value)
        return each_tensor(value, change)

    return type(noun)(*(changed(getattr(noun, entry.name)) for entry in fields(noun)))


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
