"""The nouns that the steps pass to each other. Frozen, unit in the name, nothing computed here."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cryoforum.dataset.ctf_parameters import CtfParameters
from cryoforum.dataset.images import Images, SelectedImages
from cryoforum.dataset.poses import Poses


@dataclass(frozen=True)
class Particles:
    """Particle images with what is known of them.

    images: (n, box, box), in memory or read from disk on demand.
    names: n unique image names, in the order of the images.
    poses, optics: None where unknown.
    subsets: (n,) int, RELION's random half 1 or 2; None where not assigned.
    optics_groups: (n,) int, rlnOpticsGroup; None where there is none.
    sources: (n,) int64, a number for the place of each image on disk, whatever its name; None in memory.
    """

    images: Images
    pixel_size_angstrom: float
    names: tuple[str, ...]
    poses: Poses | None = None
    ctf: CtfParameters | None = None
    half_sets: Tensor | None = None
    optics_groups: Tensor | None = None
    sources: Tensor | None = None

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
            ctf=None if self.ctf is None else self.ctf[rows],
            half_sets=None if self.half_sets is None else self.half_sets[rows],
            optics_groups=None if self.optics_groups is None else self.optics_groups[rows],
            sources=None if self.sources is None else self.sources[rows],
        )

    def with_poses(self, poses: Poses) -> "Particles":
        """The same particles under other poses."""
        return replace(self, poses=poses)

    def with_orientations(self, quaternions: Tensor) -> "Particles":
        """The same particles under other orientations (n, 4); shifts stay, or are 0 where unknown."""
        shifts = torch.zeros(len(self), 2) if self.poses is None else self.poses.shifts_angstrom
        return self.with_poses(Poses(quaternions, shifts))


def loaded_batches(particles: Particles, batch_size: int) -> Iterator[Particles]:
    """Consecutive particles with their images in memory; the next ones are read while the caller works."""

    def load(rows: Tensor) -> Particles:
        return replace(particles.select(rows), images=particles.images[rows])

    first, *others = all_rows(len(particles), batch_size)
    with ThreadPoolExecutor(1) as reader:
        coming = reader.submit(load, first)
        for rows in others:
            batch, coming = coming.result(), reader.submit(load, rows)
            yield batch
        yield coming.result()


def all_rows(count: int, batch_size: int) -> tuple[Tensor, ...]:
    """Row indices 0 … count-1 in consecutive batches."""
    return torch.arange(count).split(batch_size)
