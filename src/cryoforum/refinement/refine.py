"""Poses, classes and maps in turn, in two halves that never meet: the gold standard.

The first rounds search all orientations, against maps that start at low resolution; later ones go on from the
last pose, with a share of the particles searched anew. Noise and signal scale are measured in each round
against the map of the other half. Where several classes are wanted and one map was given, all particles share
it until it stands still, and are then parted along the strongest components of their variance. It ends where
neither resolution nor poses nor classes change any more.
"""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import one_hot

from cryoforum.alignment.class_aligner import class_aligner
from cryoforum.alignment.class_likelihood import class_probabilities
from cryoforum.alignment.config import AlignmentConfig
from cryoforum.alignment.fitting import aligner_with_own_noise, fitted_aligner
from cryoforum.alignment.map_aligner import MapAligner
from cryoforum.dataset.particles import Particles, all_rows, loaded_batches
from cryoforum.dataset.predictions import Predictions, joined_predictions
from cryoforum.dataset.volumes import HalfMaps, Volume
from cryoforum.errors import InputError, require
from cryoforum.fields.rows import each_tensor
from cryoforum.geometry.point_groups import symmetric_distance, symmetry_group
from cryoforum.imaging.noise_model import FEWEST_OF_A_GROUP
from cryoforum.imaging.shells import filter_shells
from cryoforum.reconstruction.half_sets import checked_half_sets
from cryoforum.reconstruction.inversion import (
    ReconstructionConfig,
    add_to_sums,
    empty_sums,
    finished_maps,
)
from cryoforum.reconstruction.reference_map import (
    Reference,
    masked_reference,
    reference_from_map,
    reference_with_noise,
)
from cryoforum.refinement.classes import class_maps, first_classes
from cryoforum.runtime.distributed import add_up, joined_shares, own_share

logger = logging.getLogger(__name__)

BATCH_SIZE = 64
Compare = Callable[[Particles, Sequence[Predictions]], Tensor]


@dataclass(frozen=True)
class RefinementConfig:
    """How `refine` works.

    Parameters
    ----------
    initial_resolution_angstrom
        To which the start is filtered, so that the halves share nothing beyond.
    symmetry
        Point group of the molecule.
    classes
        Maps at once.
    search_rounds
        First rounds, in which all orientations are searched.
    searched_share
        Of the particles in each later round: those that are searched anew, others in each round.
    max_shift_pixel
        Largest origin along x and y that is searched; None for 3, or what origins have turned out to reach.
    most_rounds
        After which it ends in any case.
    still
        Median change of the orientations over their median expected error below which they stand still.
    still_share
        Of the particles that change their class, below which classes stand still.
    seed
        Of the first classes.
    """

    initial_resolution_angstrom: float = 40.0
    symmetry: str = "C1"
    classes: int = 1
    search_rounds: int = 2
    searched_share: float = 0.1
    max_shift_pixel: float | None = None
    most_rounds: int = 25
    still: float = 0.15
    still_share: float = 0.005
    seed: int = 0

    def first_shells(self, extent_angstrom: float) -> int:
        """Shells of a box, ``extent_angstrom``, that the start is used up to; reading it reaches one more."""
        return max(2, int(extent_angstrom / self.initial_resolution_angstrom))

    def __post_init__(self) -> None:
        require(self.most_rounds >= 1, "one round or more", self.most_rounds)
        require(self.classes >= 1, "one class or more", self.classes)
        resolution = self.initial_resolution_angstrom
        require(0 < resolution < math.inf, "an initial resolution above 0 Å", resolution)
        symmetry_group(self.symmetry)
        require(0 <= self.searched_share <= 1, "a searched_share in [0, 1]", self.searched_share)


@dataclass(frozen=True)
class Round:
    """What a round has found; the next one goes on from it.

    Parameters
    ----------
    number
        From 1.
    predictions
        Of all particles, each in its class.
    classes
        Of each particle, from 0.
    class_probabilities
        Of each particle.
    half_maps
        Of each class, of its particles at these poses, as they are.
    references
        The same filtered by their FSC, to align against, and the noise of the particles.
    change_rad
        Median change of the orientations since the last round; infinite in the first.
    moved_share
        Of the particles that were in another class in the last round.
    stands_still
        Whether neither resolution nor poses nor classes have changed.
    parted
        Whether particles are in as many classes as they will be, but for those that empty.
    """

    number: int
    predictions: Predictions
    classes: Int[Tensor, " n"]
    class_probabilities: Float[Tensor, "n k"]
    half_maps: tuple[HalfMaps, ...]
    references: tuple[Reference, ...]
    change_rad: float = torch.inf
    moved_share: float = 1.0
    stands_still: bool = False
    parted: bool = True

    @property
    def change_deg(self) -> float:
        """Median change of the orientations in degrees."""
        return math.degrees(self.change_rad)

    @property
    def highest_frequencies(self) -> tuple[int, ...]:
        """Cycles per box up to which the half maps of each class agree in their mask."""
        return tuple(one.highest_frequency for one in self.references)

    @property
    def resolutions_angstrom(self) -> tuple[float, ...]:
        """The same in Å."""
        volume = self.references[0].full
        return tuple(len(volume.voxels) * volume.pixel_size_angstrom / f for f in self.highest_frequencies)


def refine(
    particles: Particles,
    starts: Sequence[Volume],
    config: RefinementConfig,
    mask: Float[Tensor, "m m m"] | None = None,
    progress: Callable[[int], None] = lambda count: None,
    last: Round | None = None,
) -> Iterator[Round]:
    """Rounds of alignment and reconstruction, until nothing changes any more.

    Parameters
    ----------
    particles
        n of them; poses are not used. Half sets are drawn where there are none.
    starts
        One map at their box and pixel size, or one of each class.
    config
        Settings.
    mask
        That the maps which images are compared with are multiplied by.
    progress
        Called with the number of particles of each batch aligned.
    last
        A round of an earlier run to go on from.

    Raises
    ------
    InputError
        Where the half maps do not agree even at low resolution, or there are maps for other classes.
    """
    expected = f"one map to start from, or {config.classes}, one of each class"
    require(len(starts) in (1, config.classes), expected, len(starts))
    particles = replace(particles, half_sets=checked_half_sets(particles), poses=None)
    if last is None:
        references = [_masked(_filtered(start, config), mask) for start in starts]
        last = _first_round(particles, references, config, progress)
        yield last
    while last.number < config.most_rounds and not (last.parted and last.stands_still):
        if last.stands_still:
            last = _parted(particles, last, config)
        last = _next_round(particles, last, config, mask, progress)
        yield last


def _first_round(
    particles: Particles,
    references: Sequence[Reference],
    config: RefinementConfig,
    progress: Callable[[int], None],
) -> Round:
    """Against maps from elsewhere; each particle in the class of the likeliest."""
    search = _search(config)
    compare: Compare = _gains
    if len(references) == 1:
        aligners: tuple[MapAligner, ...] = (fitted_aligner(references[0], particles, None, search),)
    else:
        of_classes = class_aligner(references, particles, None, search)
        aligners, compare = of_classes.aligners, of_classes.maps.log_likelihoods
    searched = torch.ones(len(particles), dtype=torch.bool)
    found, log_likelihoods = _aligned(aligners, particles, searched, compare, progress)
    first = _round(1, particles, found, log_likelihoods, config)
    return replace(first, parted=len(references) == config.classes)


def _next_round(
    particles: Particles,
    last: Round,
    config: RefinementConfig,
    mask: Tensor | None,
    progress: Callable[[int], None],
) -> Round:
    """Each half against its own maps, and judged by those of the other half where there are classes."""
    particles, number = particles.with_poses(last.predictions.poses), last.number + 1
    search = _search(config)
    aligners = [
        aligner_with_own_noise(
            _masked(reference, mask), particles, search, own_half_maps=True, found=last.predictions
        )
        for reference in last.references
    ]
    compare: Compare = _gains
    if len(aligners) > 1:
        compare = class_maps(last.half_maps, particles, last.classes).log_likelihoods
    searched = _searched(number, len(particles), config)
    found, log_likelihoods = _aligned(aligners, particles, searched, compare, progress)
    result = _round(number, particles, found, log_likelihoods, config)
    group = symmetry_group(config.symmetry)
    moved = symmetric_distance(result.predictions.posterior.mode, last.predictions.posterior.mode, group)
    change, moved_share = float(moved.median()), float((result.classes != last.classes).float().mean())
    pairs = zip(result.highest_frequencies, last.highest_frequencies, strict=False)
    still = (
        number > config.search_rounds
        and not any(new > old for new, old in pairs)
        and change < config.still * float(result.predictions.expected_error_rad.median())
        and moved_share < config.still_share
    )
    result = replace(result, change_rad=change, moved_share=moved_share)
    return replace(result, stands_still=still, parted=last.parted)


def _parted(particles: Particles, last: Round, config: RefinementConfig) -> Round:
    """The same poses, with the particles in classes along the strongest components of their variance."""
    particles = particles.with_poses(last.predictions.poses)
    classes = first_classes(particles, last.references[0], config.classes, config.seed)
    shares = one_hot(classes, config.classes).float()
    maps = with_maps(particles, classes, shares, config.symmetry)
    return replace(last, **maps, stands_still=False, parted=True)


def _round(
    number: int,
    particles: Particles,
    found: Sequence[Predictions],
    log_likelihoods: Float[Tensor, "n k"],
    config: RefinementConfig,
) -> Round:
    """The likeliest class of each particle with its pose there, and the maps of the classes."""
    probabilities = class_probabilities(log_likelihoods)
    classes, count = probabilities.argmax(1), len(particles)
    predictions = joined_predictions(found)[classes * count + torch.arange(count)]
    particles = particles.with_poses(predictions.poses)
    maps = with_maps(particles, classes, probabilities, config.symmetry)
    return Round(number=number, predictions=predictions, **maps)


def with_maps(particles: Particles, classes: Tensor, probabilities: Tensor, symmetry: str) -> dict[str, Any]:
    """Fields of a `Round`: maps of classes; one of too few particles for half maps that agree is left out."""
    kept, half_maps, references = [], [], []
    for number in range(probabilities.shape[1]):
        own = particles.select((classes == number).nonzero()[:, 0])
        try:
            require(len(own) >= FEWEST_OF_A_GROUP, f"{FEWEST_OF_A_GROUP} particles or more", len(own))
            found = half_maps_of(own, symmetry)
            references.append(reference_with_noise(found, own, symmetry))
            half_maps.append(found)
            kept.append(number)
        except InputError as error:
            if probabilities.shape[1] == 1:
                raise
            logger.warning(f"class {number + 1} has emptied: {error}")
    if not kept:
        raise InputError("expected half maps of a class that agree, found none; take fewer classes")
    if len(kept) < probabilities.shape[1]:
        probabilities = probabilities[:, kept]
        probabilities = probabilities / probabilities.sum(1, keepdim=True).clamp_min(1e-30)
        classes = probabilities.argmax(1)
    maps = {"half_maps": tuple(half_maps), "references": tuple(references)}
    return {"classes": classes, "class_probabilities": probabilities, **maps}


def half_maps_of(particles: Particles, symmetry: str, *, independent: bool = True) -> HalfMaps:
    """Half maps of particles with poses and half sets; of several processes each adds up its share."""
    sums = empty_sums(particles.box, particles.pixel_size_angstrom)
    add_to_sums(sums, particles.select(torch.arange(len(particles))[own_share()]))
    add_up(torch.view_as_real(sums.data))
    add_up(sums.weight)
    return finished_maps(sums, ReconstructionConfig(symmetry=symmetry), independent=independent)


def _aligned(
    aligners: Sequence[MapAligner],
    particles: Particles,
    searched: Tensor,
    compare: Compare,
    progress: Callable[[int], None],
) -> tuple[list[Predictions], Tensor]:
    """Poses of all particles in each class, and the log-likelihoods (n, k) of their images there."""
    count = len(particles)
    share = torch.arange(count)[own_share()]
    own, searched = particles.select(share), searched[share]
    found: list[list[Predictions]] = [[] for _ in aligners]
    log_likelihoods = []
    batches = loaded_batches(own, BATCH_SIZE)
    for rows, batch in zip(all_rows(len(own), BATCH_SIZE), batches, strict=True):
        in_classes = [_aligned_batch(aligner, batch, searched[rows]) for aligner in aligners]
        log_likelihoods.append(compare(batch, in_classes))
        for parts, part in zip(found, in_classes, strict=True):
            parts.append(part)
        progress(len(rows))

    def of_all(values: Tensor) -> Tensor:
        return joined_shares(values, count)

    joined = [each_tensor(joined_predictions(parts), of_all) for parts in found]
    return joined, of_all(torch.cat(log_likelihoods))


def _gains(batch: Particles, found: Sequence[Predictions]) -> Float[Tensor, "n k"]:
    """Log-likelihoods against maps that hold no noise of the particles."""
    return torch.stack([one.evidence.log_likelihood_gain for one in found if one.evidence], dim=1)


def _search(config: RefinementConfig) -> AlignmentConfig:
    return AlignmentConfig(source="search", max_shift_pixel=config.max_shift_pixel)


def _masked(reference: Reference, mask: Tensor | None) -> Reference:
    return reference if mask is None else masked_reference(reference, mask)


def _filtered(start: Volume, config: RefinementConfig) -> Reference:
    """The start without what lies beyond the initial resolution."""
    extent = len(start.voxels) * start.pixel_size_angstrom
    reference = reference_from_map(start, config.symmetry, extent / config.first_shells(extent))
    shells = torch.arange(len(start.voxels) // 2 + 1)
    kept = (shells <= reference.highest_frequency).float()
    return replace(reference, full=replace(start, voxels=filter_shells(start.voxels, kept)))


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
