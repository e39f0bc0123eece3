"""Stacks of images that are read when they are asked for."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from cryoforum.fields.rows import Index, as_rows, is_single


@runtime_checkable
class Images(Protocol):
    """A stack of square images, indexed as a tensor (n, box, box) is, which is one."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: Any, /) -> Tensor:
        """Images (k, box, box), float32, of k rows; one image (box, box) of a single number."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, box, box)."""
        ...


class ImagesOnDemand(ABC):
    """What stacks inherit from whose images are read or made when they are asked for: their indexing."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def at(self, rows: Tensor) -> Tensor:
        """The images (k, box, box), float32, of rows (k,) from 0, in that order."""

    def __getitem__(self, index: Index, /) -> Tensor:
        images = self.at(as_rows(index, len(self)))
        return images[0] if is_single(index) else images


@dataclass(frozen=True)
class SelectedImages(ImagesOnDemand):
    """Some rows of a stack, read only when asked for."""

    source: Images
    rows: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    def at(self, rows: Tensor) -> Tensor:
        """Those of the stack."""
        return self.source[self.rows[rows]]

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, box, box) of what indexing by all rows would give."""
        return (len(self.rows), *self.source.shape[1:])

    @property
    def identity(self) -> str:
        """Text that changes when one of the stacks is replaced or changed, selected or not."""
        return str(getattr(self.source, "identity", ""))


@dataclass(frozen=True)
class JoinedImages(ImagesOnDemand):
    """Stacks of one box as one, in any order.

    part_of_row, row_in_part: (n,) int, the stack of each image and its place there.
    """

    parts: tuple[Images, ...]
    part_of_row: Tensor
    row_in_part: Tensor

    def __len__(self) -> int:
        return len(self.part_of_row)

    def at(self, rows: Tensor) -> Tensor:
        """Those of each of the stacks."""
        images = torch.empty(len(rows), *self.shape[1:])
        part_of_row, row_in_part = self.part_of_row[rows], self.row_in_part[rows]
        for number, part in enumerate(self.parts):
            own = part_of_row == number
            if own.any():
                images[own] = part[row_in_part[own]]
        return images

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, box, box) of what indexing by all rows would give."""
        return (len(self), *self.parts[0].shape[1:])

    @property
    def identity(self) -> str:
        """Text that changes when one of the stacks is replaced or changed."""
        return str([getattr(part, "identity", "") for part in self.parts])
