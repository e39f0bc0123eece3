"""Poses and map in turn, in two halves that never meet: the gold standard.

The first rounds search all orientations, against a map that starts at low resolution; later ones go on from
the last pose, with a share of the particles searched anew. Noise and signal scale are measured in each round
against the map of the other half. It ends where neither resolution nor poses change any more.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cryoforum.alignment.config import AlignmentConfig
from cryoforum.alignment.fitting import aligner_with_own_noise, fitted_aligner
from cryoforum.alignment.map_aligner import MapAligner
from cryoforum.dataset.particles import Particles, all_rows, loaded_batches
from cryoforum.dataset.predictions import Predictions, joined_predictions
from cryoforum.dataset.volumes import Volume
from cryoforum.errors import require
from cryoforum.geometry.point_groups import symmetric_distance, symmetry_group
from cryoforum.imaging.shells import filter_shells
from cryoforum.reconstruction.half_sets import checked_half_sets
from cryoforum.reconstruction.reference_map import Reference, reference_from_map, reference_from_particles

BATCH_SIZE = 64


@dataclass(frozen=True)
class RefinementConfig:
    """How `refine` works.

    Parameters
    ----------
    initial_resolution_angstrom
        To which the start is filtered, so that the halves share nothing beyond.
    symmetry
        Point group of the molecule.
    search_rounds
        First rounds, in which all orientations are searched.
    searched_share
        Of the particles in each later round: those that are searched anew, others in each round.
    most_rounds
        After which it ends in any case.
    still
        Median change of the orientations over their median expected error below which they stand still.
    """

    initial_resolution_angstrom: float = 40.0
    symmetry: str = "C1"
    search_rounds: int = 2
    searched_share: float = 0.1
    most_rounds: int = 12
    still: float = 0.15

    def __post_init__(self) -> None:
        require(self.most_rounds >= 1, "one round or more", self.most_rounds)
        require(0 <= self.searched_share <= 1, "a searched_share in [0, 1]", self.searched_share)


@dataclass(frozen=True)
class Round:
    """What a round has found.

    Parameters
    ----------
    number
        From 1.
    predictions
        Of all particles.
    reference
        Map, half maps, FSC and noise of the particles at these poses.
    resolution_angstrom
        Of the half maps in their mask.
    change_rad
        Median change of the orientations since the last round; infinite in the first.
    """

    number: int
    predictions: Predictions
    reference: Reference
    resolution_angstrom: float
    change_rad: float


def refine(
    particles: Particles,
    start: Volume,
    config: RefinementConfig,
    progress: Callable[[int], None] = lambda count: None,
) -> Iterator[Round]:
    """Rounds of alignment and reconstruction, until nothing changes any more.

    Parameters
    ----------
    particles
        n of them; poses are not used. Half sets are drawn where there are none.
    start
        A map at their box and pixel size.
    config
        Settings.
    progress
        Called with the number of particles of each batch aligned.

    Raises
    ------
    InputError
        Where the half maps do not agree even at low resolution.
    """
    particles = replace(particles, half_sets=checked_half_sets(particles), poses=None)
    reference = _filtered(start, config)
    group, last = symmetry_group(config.symmetry), None
    for number in range(1, config.most_rounds + 1):
        predictions = _aligned(reference, particles, number, config, progress)
        change = torch.inf
        if last is not None:
            moved = symmetric_distance(predictions.posterior.mode, last.predictions.posterior.mode, group)
            change = float(moved.median())
        particles = particles.with_poses(predictions.poses)
        reference = reference_from_particles(particles, config.symmetry)
        extent = particles.box * particles.pixel_size_angstrom
        found = Round(number, predictions, reference, extent / reference.highest_frequency, change)
        yield found
        if last is not None and _stands_still(found, last, config):
            return
        last = found


def _filtered(start: Volume, config: RefinementConfig) -> Reference:
    """The start without what lies beyond the initial resolution."""
    reference = reference_from_map(start, config.symmetry, config.initial_resolution_angstrom)
    shells = torch.arange(len(start.voxels) // 2 + 1)
    kept = (shells <= reference.highest_frequency).float()
    return replace(reference, full=replace(start, voxels=filter_shells(start.voxels, kept)))


def _aligned(
    reference: Reference,
    particles: Particles,
    number: int,
    config: RefinementConfig,
    progress: Callable[[int], None],
) -> Predictions:
    """Poses of all particles, each half against its own map; in the first round there is but one map."""
    settings = AlignmentConfig(source="search")
    if reference.noise is None:
        aligner = fitted_aligner(reference, particles, None, settings)
    else:
        aligner = aligner_with_own_noise(reference, particles, settings, own_half_maps=True)
    searched = _searched(number, len(particles), config)
    rows_of_batches = all_rows(len(particles), BATCH_SIZE)
    batches = []
    for rows, batch in zip(rows_of_batches, loaded_batches(particles, BATCH_SIZE), strict=True):
        batches.append(_aligned_batch(aligner, batch, searched[rows]))
        progress(len(rows))
    return joined_predictions(batches)


def _searched(number: int, count: int, config: RefinementConfig) -> Tensor:
    """Whether each particle (n,) is searched all over in a round: all at first, then others in each round."""
    if number <= config.search_rounds:
        return torch.ones(count, dtype=torch.bool)
    turn = (torch.arange(count) + number * round(config.searched_share * count)) % count
    return turn < round(config.searched_share * count)


def _aligned_batch(aligner: MapAligner, batch: Particles, searched: Tensor) -> Predictions:
    """Some searched anew, the others from where they are."""
    parts, order = [], []
    for rows, align in (
        (searched.nonzero()[:, 0], aligner.align_batch),
        ((~searched).nonzero()[:, 0], aligner.align_batch_from_poses),
    ):
        if len(rows):
            parts.append(align(replace(batch.select(rows), images=batch.images[rows])))
            order.append(rows)
    return joined_predictions(parts)[torch.argsort(torch.cat(order))]


def _stands_still(found: Round, last: Round, config: RefinementConfig) -> bool:
    expected = float(found.predictions.expected_error_rad.median())
    better = found.reference.highest_frequency > last.reference.highest_frequency
    return not better and found.number > config.search_rounds and found.change_rad < config.still * expected
