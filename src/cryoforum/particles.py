"""The nouns that the steps pass to each other. Frozen, unit in the name, nothing computed here."""

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from cryoforum.bingham import OrientationBelief
from cryoforum.ctf import Optics


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
class Poses:
    """Orientation and in-plane origin of each particle.

    quaternions: (n, 4) unit, scalar last (see `rotations`).
    shifts_angstrom: (n, 2) x and y of RELION's rlnOriginX/YAngst: the particle image is the centred
        projection moved by *minus* this.
    """

    quaternions: Tensor
    shifts_angstrom: Tensor

    def __len__(self) -> int:
        return len(self.quaternions)

    def __getitem__(self, rows: Tensor) -> "Poses":
        return Poses(self.quaternions[rows], self.shifts_angstrom[rows])


@dataclass(frozen=True)
class Particles:
    """Particle images with what is known of them.

    images: (n, box, box), in memory or read from disk on demand.
    names: n unique image names, in the order of the images.
    poses, optics: None where unknown.
    subsets: (n,) int, RELION's random half 1 or 2; None where not assigned.
    """

    images: Images
    pixel_size_angstrom: float
    names: tuple[str, ...]
    poses: Poses | None = None
    optics: Optics | None = None
    subsets: Tensor | None = None

    def __len__(self) -> int:
        return len(self.images)

    @property
    def box(self) -> int:
        """Image width in pixels."""
        return self.images.shape[-1]

    def select(self, rows: Tensor) -> "Particles":
        """The particles of the given rows, in that order; images stay where they are."""
        return Particles(
            images=SelectedImages(self.images, rows),
            pixel_size_angstrom=self.pixel_size_angstrom,
            names=tuple(self.names[row] for row in rows.tolist()),
            poses=None if self.poses is None else self.poses[rows],
            optics=None if self.optics is None else self.optics[rows],
            subsets=None if self.subsets is None else self.subsets[rows],
        )

    def with_poses(self, poses: Poses) -> "Particles":
        """The same particles under other poses."""
        return replace(self, poses=poses)

    def with_orientations(self, quaternions: Tensor) -> "Particles":
        """The same particles under other orientations (n, 4); shifts stay, or are 0 where unknown."""
        shifts = torch.zeros(len(self), 2) if self.poses is None else self.poses.shifts_angstrom
        return self.with_poses(Poses(quaternions, shifts))


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
        return (len(self.rows), *self.source.shape[1:])


@dataclass(frozen=True)
class Predictions:
    """What a model believes of each particle.

    belief: (n,) orientation beliefs. figure_of_merit: (n,) in (0, 1], 1 = certain.
    """

    belief: OrientationBelief
    figure_of_merit: Tensor

    def __len__(self) -> int:
        return len(self.belief)


@dataclass(frozen=True)
class Volume:
    """A cubic map: voxels (n, n, n) float32 in z, y, x order, origin at voxel n // 2."""

    voxels: Tensor
    pixel_size_angstrom: float

    def __post_init__(self) -> None:
        if self.voxels.ndim != 3 or len(set(self.voxels.shape)) != 1:
            raise ValueError(
                f"expected a cubic map, found shape {tuple(self.voxels.shape)}; pad or crop it to a cube"
            )


@dataclass(frozen=True)
class HalfMaps:
    """Two reconstructions from disjoint halves of the particles, and the one from all of them.

    independent is false where one model posed both halves: their FSC then measures agreement with
    that model too, and the resolution is optimistic.
    """

    half1: Volume
    half2: Volume
    full: Volume
    independent: bool


def all_rows(count: int, batch_size: int) -> tuple[Tensor, ...]:
    """Row indices 0 … count-1 in consecutive batches."""
    return torch.arange(count).split(batch_size)
