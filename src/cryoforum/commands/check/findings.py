"""Whether a particle file means what it says: its images against other ways to read it.

Of every mistake that is common the images are asked whether they bear it out better than what the file says.
What they bear out best is adopted, and the others are asked again, as faults come in company.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum

from torch import Tensor

from cryoforum.commands.check.interpretations import (
    Interpretation,
    Sample,
    Support,
    Transfer,
    drawn_sample,
    support,
    support_by_maps_of,
)
from cryoforum.commands.check.map_comparison import skewness
from cryoforum.commands.check.own_defocus import own_defocus
from cryoforum.dataset.particles import Particles
from cryoforum.dataset.volumes import Volume
from cryoforum.errors import InputError
from cryoforum.imaging.shells import filter_shells
from cryoforum.reconstruction.fsc import fourier_shell_correlation

MOST_PARTICLES = 1000  # that are looked at: their errors are 20 times smaller than most faults
MOST_FAULTS = 4  # adopted one after the other
# A reading is better, or worse, where the difference of the log-likelihoods is this many of its standard
# errors and this share of all that is explained: less says more about our image model than about the file.
LEAST_DEVIATIONS, LEAST_SHARE = 5.0, 0.01
PIXEL_FACTORS = (0.5, 0.8, 0.9, 0.95, 1.05, 1.1, 1.25, 2.0)
SAME_FACTOR = 0.1  # relative: origins scaled by nearly the same are nearly the same
LEAST_ORIGIN_PIXEL = 0.05  # root mean square, below which origins say nothing
TRIED_BY_OWN_MAPS = 2  # readings of a kind
FEWEST = 20  # particles from which two halves make maps
SMALLEST_BOX = 16  # pixels, below which a map has too few shells to compare


class TooFewParticles(InputError):
    """The images are too few or too small to judge a file by."""


class Outcome(StrEnum):
    """What the images say of another reading."""

    BETTER = "fits better"
    WORSE = "excluded"
    CLOSE = "hardly differs"
    UNDECIDED = "cannot tell"


@dataclass(frozen=True)
class Alternative:
    """What the images say of another reading than that which they bear out best.

    deviations: difference of the mean log-likelihoods over its standard error, positive where the other is
    better. share: the same over what the better of the two explains.
    """

    name: str
    interpretation: Interpretation
    deviations: float
    share: float

    @property
    def outcome(self) -> Outcome:
        if abs(self.deviations) < LEAST_DEVIATIONS:
            return Outcome.UNDECIDED
        if abs(self.share) < LEAST_SHARE:
            return Outcome.CLOSE
        return Outcome.BETTER if self.share > 0 else Outcome.WORSE


@dataclass(frozen=True)
class Findings:
    """What the images of a file say about it.

    reading: that which they bear out best. verdicts: of the others, relative to it. oriented: whether their
    orientations explain more than those of other images would; None where they are too faint to tell.
    skewness: of the map; negative where contrast is inverted. volume: the map, filtered to what its halves
    share. unsaid_defocus_angstrom: median of a CTF that is in the images and not in the file, else None.
    """

    count: int
    interpretation: Interpretation
    alternatives: tuple[Alternative, ...]
    oriented: bool | None
    skewness: float
    volume: Volume
    unsaid_defocus_angstrom: float | None = None


def find_interpretation(
    particles: Particles, symmetry: str = "C1", progress: Callable[[int], None] = lambda count: None
) -> Findings:
    """Which reading of a file its images bear out; ``progress`` is told of each reading that was tried.

    `TooLittle` where nothing can be told from so few particles, or so small ones.
    """
    if particles.box < SMALLEST_BOX:
        raise TooFewParticles(
            f"images of {particles.box} px are too small to judge the file by ({SMALLEST_BOX} or more)"
        )
    sample = drawn_sample(particles, MOST_PARTICLES, symmetry)
    if len(sample) < FEWEST:
        usable = "particles are" if len(sample) == len(particles) else "particles of usual contrast are"
        raise TooFewParticles(f"{len(sample)} {usable} too few to judge the file by ({FEWEST} or more)")
    adopted = support(sample, Interpretation())
    alternatives: tuple[Alternative, ...] = ()
    for _ in range(MOST_FAULTS):
        rivals, alternatives = _compared(sample, adopted, particles.pixel_size_angstrom)
        better = [rival for rival, alternative in rivals if alternative.outcome is Outcome.BETTER]
        progress(1)
        if not better:
            break
        adopted = max(better, key=lambda rival: float(rival.gains.mean()))
        if adopted.interpretation.pixel_factor != 1:
            adopted = _refined_pixel(sample, adopted)
    shuffled = support(sample, replace(adopted.interpretation, shuffled=True))
    oriented = _alternative("", shuffled.interpretation, shuffled.gains, adopted).outcome is Outcome.WORSE
    seen = float(shuffled.gains.mean() / _standard_error(shuffled.gains)) > LEAST_DEVIATIONS
    volume = filtered_map(adopted.half_maps, sample.extent_angstrom * adopted.interpretation.pixel_factor)
    return Findings(
        len(sample),
        adopted.interpretation,
        alternatives,
        True if oriented else (False if seen else None),
        skewness(volume.voxels),
        volume,
        _unsaid_defocus(sample, adopted) if oriented and sample.ctf is None else None,
    )


def _unsaid_defocus(sample: Sample, adopted: Support) -> float | None:
    found = own_defocus(sample, adopted)
    plain = replace(adopted, gains=found.gains_without)
    outcome = _alternative("", adopted.interpretation, found.gains_with, plain).outcome
    return found.median_angstrom if outcome is Outcome.BETTER else None


def _compared(
    sample: Sample, adopted: Support, pixel_size: float
) -> tuple[list[tuple[Support, Alternative]], tuple[Alternative, ...]]:
    """The readings that may be better, each with maps of its own; and the verdicts on all.

    Of a kind all are tried by the maps of what is adopted, and its best by maps of its own.
    """
    rivals, alternatives = [], []
    for kind in other_interpretations(sample, adopted.interpretation, pixel_size):
        tried = list(kind.items())
        if len(tried) > 1:
            gains = [support_by_maps_of(adopted, sample, interpretation) for _, interpretation in tried]
            order = sorted(range(len(tried)), key=lambda at: -float(gains[at].mean()))
            for at in order[TRIED_BY_OWN_MAPS:]:
                alternatives.append(_alternative(*tried[at], gains[at], adopted))
            tried = [tried[at] for at in order[:TRIED_BY_OWN_MAPS]]
        for name, interpretation in tried:
            rival = support(sample, interpretation)
            alternatives.append(_alternative(name, interpretation, rival.gains, adopted))
            rivals.append((rival, alternatives[-1]))
    return rivals, tuple(alternatives)


def other_interpretations(
    sample: Sample, current: Interpretation, pixel_size: float
) -> list[dict[str, Interpretation]]:
    """Every other reading that differs from ``current`` in one respect, by name; one dictionary a respect."""
    angles = "angles as in the file" if current.inverse_rotation else "angles of the inverse rotation"
    kinds = [{angles: replace(current, inverse_rotation=not current.inverse_rotation)}]
    rms = sample.poses.shifts_angstrom.square().mean().sqrt() * sample.points.box / sample.extent_angstrom
    if rms > LEAST_ORIGIN_PIXEL:
        kinds.append(
            {
                name: replace(current, origin_factor=factor)
                for factor, name in _origin_factors(pixel_size)
                if factor != current.origin_factor
            }
        )
    if sample.ctf is None:
        return kinds
    kinds.append(
        {
            f"images {transfer}": replace(current, transfer=transfer)
            for transfer in Transfer
            if transfer is not current.transfer
        }
    )
    kinds.append(_other_pixel_sizes(current, pixel_size, with_origins=False))
    if rms > LEAST_ORIGIN_PIXEL:
        kinds.append(_other_pixel_sizes(current, pixel_size, with_origins=True))
    return kinds


def _other_pixel_sizes(
    current: Interpretation, pixel_size: float, with_origins: bool
) -> dict[str, Interpretation]:
    """Other pixel sizes, either of images whose origins are right in Å, or of those where they go along."""
    is_current = current.pixel_factor == 1 or with_origins == current.origins_with_pixels
    factors = PIXEL_FACTORS if is_current else (1.0, *PIXEL_FACTORS)
    sizes = [current.pixel_factor * factor for factor in factors]
    note = " with origins" if with_origins else ""
    return {
        f"pixel size {pixel_size * size:.3g} Å{note}": replace(
            current, pixel_factor=size, origins_with_pixels=with_origins
        )
        for size in sizes
    }


def _origin_factors(pixel_size: float) -> list[tuple[float, str]]:
    """Factors on origins, each with what it means; none nearly the same as an earlier one."""
    named = [
        (1.0, "origins as in the file"),
        (-1.0, "origins of the opposite sign"),
        (0.0, "origins applied already"),
        (pixel_size, "origins too small by the pixel size"),
        (1 / pixel_size, "origins too large by the pixel size"),
        (2.0, "origins too small by 2"),
        (0.5, "origins too large by 2"),
    ]
    distinct: list[tuple[float, str]] = []
    for factor, name in named:
        if all(abs(factor - other) > SAME_FACTOR * abs(factor) for other, _ in distinct):
            distinct.append((factor, name))
    return distinct


def _alternative(name: str, interpretation: Interpretation, gains: Tensor, adopted: Support) -> Alternative:
    difference = gains - adopted.gains
    explained = max(float(gains.mean()), float(adopted.gains.mean()), 1e-30)
    error = _standard_error(difference)
    deviations = float(difference.mean()) / error if error > 0 else 0.0
    return Alternative(name, interpretation, deviations, float(difference.mean()) / explained)


def _standard_error(values: Tensor) -> float:
    return float(values.std()) / math.sqrt(len(values))


def _refined_pixel(sample: Sample, found: Support) -> Support:
    """The reading with the pixel size that the images bear out best, to 1 %."""
    step, best, factor = 0.04, float(found.gains.mean()), found.interpretation.pixel_factor
    while step >= 0.01:
        tried = {}
        for other in (factor * (1 - step), factor * (1 + step)):
            interpretation = replace(found.interpretation, pixel_factor=other)
            tried[float(support_by_maps_of(found, sample, interpretation).mean())] = other
        if max(tried) > best:
            best, factor = max(tried), tried[max(tried)]
        else:
            step /= 2
    return support(sample, replace(found.interpretation, pixel_factor=factor))


def filtered_map(half_maps: Tensor, extent_angstrom: float) -> Volume:
    """The mean of two half maps (2, b, b, b), every shell weighted by what its FSC says is signal."""
    pixel_size = extent_angstrom / half_maps.shape[-1]
    fsc = fourier_shell_correlation(*(Volume(half, pixel_size) for half in half_maps)).clamp(0, 1)
    return Volume(filter_shells(half_maps.mean(0), (2 * fsc / (1 + fsc)).float()), pixel_size)
