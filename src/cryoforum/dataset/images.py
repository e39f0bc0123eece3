"""Stacks of images that are read when they are asked for."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor


@runtime_checkable
class Images(Protocol):
    """A stack of square images, indexed by a tensor of rows; a tensor (n, box, box) is one."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Tensor, /) -> Tensor:
        """Images (len(rows), box, box), float32."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, box, box)."""
        ...


@dataclass(frozen=True)
class SelectedImages:
    """Some rows of a stack, read only when asked for."""

    source: Images
    rows: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: Tensor) -> Tensor:
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
class JoinedImages:
    """Stacks of one box as one, in any order.

    part_of_row, row_in_part: (n,) int, the stack of each image and its place there.
    """

    parts: tuple[Images, ...]
    part_of_row: Tensor
    row_in_part: Tensor

    def __len__(self) -> int:
        return len(self.part_of_row)

    def __getitem__(self, rows: Tensor, /) -> Tensor:
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
