"""Particles: images with what is known of them, and how they are walked through."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryoforum.dataset.ctf_parameters import CtfParameters
from cryoforum.dataset.images import Images, SelectedImages
from cryoforum.dataset.poses import Poses


@dataclass(frozen=True)
class Particles:
    """Particle images with what is known of them.

    Parameters
    ----------
    images
        (n, box, box), in memory or read from disk on demand.
    pixel_size_angstrom
        Of all images.
    names
        n image names, in the order of the images; in a symmetry-expanded set each of them several times.
    poses, ctf
        None where unknown.
    half_sets
        RELION's random half, 1 or 2; None where not assigned.
    optics_groups
        rlnOpticsGroup; None where there is none.
    sources
        A number for the place of each image on disk, whatever its name; None in memory.
    """

    images: Images
    pixel_size_angstrom: float
    names: tuple[str, ...]
    poses: Poses | None = None
    ctf: CtfParameters | None = None
    half_sets: Int[Tensor, " n"] | None = None
    optics_groups: Int[Tensor, " n"] | None = None
    sources: Int[Tensor, " n"] | None = None

    def __len__(self) -> int:
        return len(self.images)

    @property
    def box(self) -> int:
        """Image width in pixels."""
        return self.images.shape[-1]

    @property
    def image_numbers(self) -> Int[Tensor, " n"]:
        """The same number for the same image: by its place on disk, in memory by its name."""
        if self.sources is not None:
            return self.sources
        known: dict[str, int] = {}
        return torch.tensor([known.setdefault(name, len(known)) for name in self.names])

    def select(self, rows: Int[Tensor, " k"]) -> "Particles":
        """The particles of the given rows, in that order; images stay where they are."""
        names = ("poses", "ctf", "half_sets", "optics_groups", "sources")
        known: dict[str, Any] = {name: getattr(self, name) for name in names}
        return replace(
            self,
            images=SelectedImages(self.images, rows),
            names=tuple(self.names[row] for row in rows.tolist()),
            **{name: values[rows] for name, values in known.items() if values is not None},
        )

    def with_poses(self, poses: Poses) -> "Particles":
        """The same particles under other poses."""
        return replace(self, poses=poses)

    def with_orientations(self, quaternions: Float[Tensor, "n 4"]) -> "Particles":
        """The same particles under other orientations; shifts stay, or are 0 where unknown."""
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
