"""Particles: images with what is known of them, and how they are walked through."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryoforum.dataset.ctf_parameters import CtfParameters
from cryoforum.dataset.images import Images, SelectedImages
from cryoforum.dataset.poses import Poses
from cryoforum.errors import InputError, require
from cryoforum.fields.checks import Numbers, doubles, floats, integers, of_kind, positive, same_length, settle
from cryoforum.fields.rows import Index, as_rows, changed

if TYPE_CHECKING:
    import pandas as pd


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

    Raises
    ------
    InputError
        For fields of unequal lengths, images that are not square or not finite, and a pixel size that is not
        above 0.

    Notes
    -----
    Images in memory may be given as a tensor, an array or lists. ``particles[index]`` takes a row, a slice,
    row numbers or a mask, and gives particles: a set of one where ``index`` is one number.
    """

    images: Images
    pixel_size_angstrom: float
    names: tuple[str, ...]
    poses: Poses | None = None
    ctf: CtfParameters | None = None
    half_sets: Int[Tensor, " n"] | None = None
    optics_groups: Int[Tensor, " n"] | None = None
    sources: Int[Tensor, " n"] | None = None

    def __post_init__(self) -> None:
        images = self.images
        if isinstance(images, Tensor | np.ndarray | list | tuple):
            images = floats("images", images, None, None, None)
        require(isinstance(images, Images), "images", type(images).__name__)
        shape = tuple(images.shape)
        if len(shape) != 3 or shape[1] != shape[2]:
            raise InputError(f"expected square images, (n, box, box), found shape {shape}")
        of_kind("poses", self.poses, Poses)
        of_kind("ctf", self.ctf, CtfParameters)
        is_text = isinstance(self.names, str)
        require(not is_text, "a name for each image", f"one text, '{self.names!s:.40}'")
        for name in ("names", "poses", "ctf"):
            same_length(name, getattr(self, name), shape[0])
        positive("pixel_size_angstrom", self.pixel_size_angstrom)
        settle(self, images=images, names=tuple(self.names))
        for name in ("half_sets", "optics_groups", "sources"):
            if (values := getattr(self, name)) is not None:
                settle(self, **{name: integers(name, values, shape[0])})

    def __getitem__(self, index: Index) -> "Particles":
        return self.select(index)

    @classmethod
    def from_arrays(
        cls,
        images: Numbers,
        pixel_size_angstrom: float,
        poses: Poses | None = None,
        ctf: CtfParameters | None = None,
    ) -> "Particles":
        """Particles of images in memory, named 000001@images and so on.

        Parameters
        ----------
        images
            (n, box, box) in any number format, particles bright; their projections are centred on pixel
            box // 2 but for the shift of their pose.
        pixel_size_angstrom
            Of all images.
        poses, ctf
            n of each; None where unknown.

        Raises
        ------
        InputError
            Where images are not square or not finite, a pixel size is not above 0, or lengths differ.
        """
        given = doubles("images", images, None, None, None).float()
        count, rows, columns = given.shape
        require(count > 0 and rows == columns > 1, "one or more square images", f"shape {tuple(given.shape)}")
        require(pixel_size_angstrom > 0, "a pixel size above 0 Å", pixel_size_angstrom)
        require(poses is None or len(poses) == count, f"{count} poses", poses)
        require(ctf is None or len(ctf) == count, f"CTF parameters of {count} particles", ctf)
        names = tuple(f"{row + 1:06d}@images" for row in range(count))
        return cls(given, float(pixel_size_angstrom), names, poses, ctf)

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        parts = {"poses": self.poses, "CTF": self.ctf, "half sets": self.half_sets}
        known = ", ".join(name for name, values in parts.items() if values is not None) or "images alone"
        return f"Particles({len(self)} of {self.box} px and {self.pixel_size_angstrom:.4g} Å/px: {known})"

    def table(self) -> "pd.DataFrame":
        """Names and numbers of all particles, a row each, in RELION's columns and units.

        Angles are in degrees, origins and defocus in Å; the images stay where they are.
        """
        from cryoforum.dataset.number_tables import particle_numbers  # pandas takes a while: on first use

        return particle_numbers(self)

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

    def select(self, index: Index) -> "Particles":
        """The particles of the given rows, in that order; images stay where they are.

        Parameters
        ----------
        index
            As `fields.rows.as_rows` takes it: a row, a slice, row numbers or a mask.
        """
        rows = as_rows(index, len(self))
        columns = ("poses", "ctf", "half_sets", "optics_groups", "sources")
        known = {name: value for name in columns if (value := getattr(self, name)) is not None}
        return changed(
            self,
            images=SelectedImages(self.images, rows),
            names=tuple(self.names[row] for row in rows.tolist()),
            **{name: value[rows] for name, value in known.items()},
        )

    def with_poses(self, poses: Poses) -> "Particles":
        """The same particles under other poses."""
        return replace(self, poses=poses)

    def with_orientations(self, quaternions: Float[Tensor, "n 4"]) -> "Particles":
        """The same particles under other ``quaternions``; shifts stay, or are 0 where unknown."""
        shifts = torch.zeros(len(self), 2) if self.poses is None else self.poses.shifts_angstrom
        return self.with_poses(Poses(quaternions, shifts))


def loaded_batches(particles: Particles, batch_size: int) -> Iterator[Particles]:
    """Consecutive particles with their images in memory; the next ones are read while the caller works."""

    def load(rows: Tensor) -> Particles:
        return changed(particles.select(rows), images=particles.images[rows])

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
