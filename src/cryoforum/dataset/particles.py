"""The nouns that the steps pass to each other. Frozen, unit in the name, nothing computed here."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from typing import Protocol

import torch
from torch import Tensor

from cryoforum.distributions.bingham import OrientationBelief
from cryoforum.imaging.ctf import Optics


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
    optics_groups: (n,) int, rlnOpticsGroup; None where there is none.
    sources: (n,) int64, a number for the place of each image on disk, whatever its name; None in memory.
    """

    images: Images
    pixel_size_angstrom: float
    names: tuple[str, ...]
    poses: Poses | None = None
    optics: Optics | None = None
    subsets: Tensor | None = None
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
            optics=None if self.optics is None else self.optics[rows],
            subsets=None if self.subsets is None else self.subsets[rows],
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
        return (len(self), *self.parts[0].shape[1:])

    @property
    def identity(self) -> str:
        """Text that changes when one of the stacks is replaced or changed."""
        return str([getattr(part, "identity", "") for part in self.parts])


@dataclass(frozen=True)
class ImageEvidence:
    """What the comparison with a reference says of each particle, besides its pose.

    bound_rad: (n,) Cramér-Rao bound: the root mean square orientation error of the best unbiased estimate,
        from reference, CTF and noise, the origin being unknown, too.
    origin_covariance_angstrom2: (n, 2, 2). log_likelihood_gain: (n,) over noise alone.
    signal_scale: (n,) how strong the particle is in its image; about 1, and near 0 for junk.
    mode_probability: (n,) that of the pose's mode among all modes that were tried.
    reference_half: (n,) int, the half (1 or 2) whose reference it was; 0 for that of all particles.
    defocus_change_angstrom: (n,) by which the underfocus differs from what was given; 0 if not looked for.
    """

    bound_rad: Tensor
    origin_covariance_angstrom2: Tensor
    log_likelihood_gain: Tensor
    signal_scale: Tensor
    mode_probability: Tensor
    reference_half: Tensor
    defocus_change_angstrom: Tensor


@dataclass(frozen=True)
class Predictions:
    """What is believed of each particle.

    belief: (n,) orientation beliefs; their modes are the orientations.
    expected_error_rad: (n,) root mean square orientation error that the belief means.
    shifts_angstrom: (n, 2) as in `Poses`; None where there was no reference to find them by.
    evidence: None for the network alone.
    model_half: (n,) int, the half (1 or 2) whose particles alone made the model and the reference that were
        used; 0 where a reference came from elsewhere; None where one model posed both halves.
    """

    belief: OrientationBelief
    expected_error_rad: Tensor
    shifts_angstrom: Tensor | None = None
    evidence: ImageEvidence | None = None
    model_half: Tensor | None = None

    def __len__(self) -> int:
        return len(self.belief)

    def __getitem__(self, rows: Tensor) -> "Predictions":
        evidence = self.evidence
        return Predictions(
            OrientationBelief(self.belief.concentration[rows]),
            self.expected_error_rad[rows],
            None if self.shifts_angstrom is None else self.shifts_angstrom[rows],
            None if evidence is None else ImageEvidence(**{k: v[rows] for k, v in vars(evidence).items()}),
            None if self.model_half is None else self.model_half[rows],
        )

    @property
    def poses(self) -> Poses:
        """Most probable poses; ValueError where shifts are not known."""
        if self.shifts_angstrom is None:
            raise ValueError("expected predictions with shifts, found none; predict them with a reference")
        return Poses(self.belief.mode, self.shifts_angstrom)

    @property
    def figure_of_merit(self) -> Tensor:
        """cos² of half the expected error, (n,): 1 where certain."""
        return torch.cos(self.expected_error_rad / 2).square()


def joined_predictions(batches: Sequence[Predictions]) -> Predictions:
    """The predictions of consecutive batches in one; all have the same fields."""
    shifts = [batch.shifts_angstrom for batch in batches if batch.shifts_angstrom is not None]
    evidence = [batch.evidence for batch in batches if batch.evidence is not None]
    halves = [batch.model_half for batch in batches if batch.model_half is not None]
    return Predictions(
        belief=OrientationBelief(torch.cat([batch.belief.concentration for batch in batches])),
        expected_error_rad=torch.cat([batch.expected_error_rad for batch in batches]),
        shifts_angstrom=torch.cat(shifts) if shifts else None,
        evidence=_joined_evidence(evidence) if evidence else None,
        model_half=torch.cat(halves) if halves else None,
    )


def _joined_evidence(parts: Sequence[ImageEvidence]) -> ImageEvidence:
    return ImageEvidence(
        **{
            entry.name: torch.cat([getattr(part, entry.name) for part in parts])
            for entry in fields(ImageEvidence)
        }
    )


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
