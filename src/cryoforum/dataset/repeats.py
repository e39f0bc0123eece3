"""Images that are in several rows: symmetry-expanded sets, and repeats by oversight.

A symmetry expansion writes each image once for every symmetry operator, each time under another pose. Such a
set can be reconstructed. Nothing can be learned from it honestly, as an image would be in training and test,
nor can its poses be predicted: all copies would get the same.
"""

import logging
import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int
from torch import Tensor

from cryoforum.dataset.particle_set import ParticleSet
from cryoforum.dataset.particle_table import ParticleTable, place_of_row
from cryoforum.dataset.particles import Particles
from cryoforum.dataset.poses import Poses
from cryoforum.errors import InputError

logger = logging.getLogger(__name__)

# Two refinements of one image differ by less; of operators, only those of thin helices turn by hardly more.
SAME_ORIENTATION_DEG = 0.5
SAME_ORIGIN_ANGSTROM = 2.0
MOST_OF_ONE_POSE = 0.05  # of the copies in an expanded set that was refined since
ROWS_SHOWN = 3

BEFORE_EXPANSION = "the file from before the expansion"
WITH_SYMMETRY = f"{BEFORE_EXPANSION}, with its --symmetry"


@dataclass(frozen=True)
class Repeats:
    """What is repeated in ``row_count`` rows of ``image_count`` images.

    have_one_pose: whether some copies of an image have the same pose, or all have none.
    rows: those that show the image of an earlier row again, (k,); where ``have_one_pose``, only those that do
        so under its pose. first: that earlier row of each, (k,).
    """

    row_count: int
    image_count: int
    have_one_pose: bool
    rows: np.ndarray
    first: np.ndarray

    @property
    def is_expansion(self) -> bool:
        """Whether copies have poses of their own, but for a few that a refinement brought together again."""
        return not self.have_one_pose or len(self.rows) < MOST_OF_ONE_POSE * (
            self.row_count - self.image_count
        )

    @property
    def listed(self) -> str:
        """The first of the rows, and their number."""
        pairs = [f"{row + 1} (as {at + 1})" for row, at in zip(self.rows, self.first, strict=True)]
        shown = ", ".join(pairs[:ROWS_SHOWN]) + (", …" if len(pairs) > ROWS_SHOWN else "")
        pose = " and its pose" if self.is_expansion else ""
        return f"{len(pairs)} of {self.row_count} rows with the image of an earlier one{pose}: {shown}"

    def __str__(self) -> str:
        if not self.is_expansion:
            return self.listed
        return (
            f"a symmetry-expanded set ({self.row_count} rows of {self.image_count} images under other poses, "
            f"first rows {self.first[0] + 1} and {self.rows[0] + 1})"
        )


def found_repeats(numbers: Int[Tensor, " n"], poses: Poses | None) -> Repeats | None:
    """The repeats among images that ``numbers`` tell apart; None where each is there once."""
    values = numbers.numpy()
    order = np.argsort(values, kind="stable")  # copies in the order of their rows
    ordered = values[order]
    starts = np.flatnonzero(np.diff(ordered, prepend=ordered[:1] - 1))
    if len(starts) == len(values):
        return None
    copies: list[np.ndarray] = []  # pairs of rows (2, k) of one image
    same: list[np.ndarray] = []
    for lag in range(1, len(values)):
        at = np.flatnonzero(ordered[lag:] == ordered[:-lag])
        if not len(at):
            break
        copies.append(np.stack([order[at], order[at + lag]]))
        same.append(_have_one_pose(poses, *copies[-1]))
    pairs, has_one_pose = np.concatenate(copies, axis=1), np.concatenate(same)
    chosen = pairs[:, has_one_pose] if has_one_pose.any() else pairs
    chosen = chosen[:, np.lexsort(chosen)]  # by the later row, of each the first that it repeats
    rows, at = np.unique(chosen[1], return_index=True)
    return Repeats(len(values), len(starts), bool(has_one_pose.any()), rows, chosen[0, at])


def _have_one_pose(poses: Poses | None, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Whether rows (k,) and (k,) have the same pose, as far as they have one."""
    if poses is None:
        return np.ones(len(first), dtype=bool)
    quaternions = poses.quaternions.double().numpy()
    cosine = np.abs((quaternions[first] * quaternions[second]).sum(axis=1))
    origins = poses.shifts_angstrom.numpy()
    distance = np.linalg.norm(origins[first] - origins[second], axis=1)
    turned = cosine < math.cos(math.radians(SAME_ORIENTATION_DEG) / 2)
    return ~turned & (distance < SAME_ORIGIN_ANGSTROM)


def repeats_of(particles: Particles) -> Repeats | None:
    """The repeats among particles."""
    return found_repeats(particles.image_numbers, particles.poses)


def refuse_repeats(particle_set: ParticleSet, purpose: str, instead: str) -> None:
    """InputError where an image is in several rows; ``purpose`` and ``instead`` as of `refuse_expansion`."""
    repeats = repeats_of(particle_set.particles)
    _refuse_expansion(particle_set.table, repeats, purpose, instead)
    refuse_oversights(particle_set.table, repeats)


def refuse_expansion(particle_set: ParticleSet, purpose: str, instead: str) -> None:
    """InputError where the set is a symmetry-expanded one; other repeats are logged.

    Parameters
    ----------
    purpose
        Of the particles, as in "to learn from".
    instead
        What to give.
    """
    repeats = repeats_of(particle_set.particles)
    _refuse_expansion(particle_set.table, repeats, purpose, instead)
    warn_of_oversights(particle_set.table, repeats)


def _refuse_expansion(table: ParticleTable, repeats: Repeats | None, purpose: str, instead: str) -> None:
    if repeats is not None and repeats.is_expansion:
        raise InputError(f"{table.path}: expected each image once {purpose}, found {repeats}; give {instead}")


def refuse_oversights(table: ParticleTable, repeats: Repeats | None) -> None:
    """InputError where images are repeated under the same pose, or without one; a few are only logged."""
    if repeats is not None and not repeats.is_expansion:
        row, first = int(repeats.rows[0]), int(repeats.first[0])
        raise InputError(
            f"{place_of_row(table, row)}: the image is already in row {first + 1}{_others(repeats)}; remove "
            "the duplicates"
        )
    warn_of_oversights(table, repeats)


def warn_of_oversights(table: ParticleTable, repeats: Repeats | None) -> None:
    """Log the same where it does no harm."""
    if repeats is not None and repeats.have_one_pose:
        logger.warning(f"{table.path}: found {repeats.listed}; remove them if they are an oversight")


def _others(repeats: Repeats) -> str:
    return f", and {len(repeats.rows) - 1} more rows repeat one" if len(repeats.rows) > 1 else ""
