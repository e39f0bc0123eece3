"""Whether the images of a particle file agree with its columns, or with another interpretation of them.

Every alternative interpretation is compared with the current one on the images. The one that fits best is
adopted, and the others are compared with it again, because a file often has several faults at once.
"""

import math
from dataclasses import dataclass, replace
from enum import StrEnum

from torch import Tensor

from cryoforum.commands.check.alternatives import other_interpretations
from cryoforum.commands.check.estimated_ctf import estimated_ctf
from cryoforum.commands.check.interpretations import (
    Interpretation,
    Sample,
    Support,
    drawn_sample,
    support,
    support_by_maps_of,
)
from cryoforum.commands.check.map_comparison import skewness
from cryoforum.dataset.particles import Particles
from cryoforum.dataset.volumes import Volume
from cryoforum.errors import InputError
from cryoforum.imaging.shells import filter_shells
from cryoforum.reconstruction.fsc import fourier_shell_correlation

MOST_PARTICLES = 1000  # in the sample: its errors are then 20 times smaller than most faults
MOST_FAULTS = 4  # adopted one after the other
# An interpretation is better, or worse, where the log-likelihoods differ by this many standard errors and by
# this share of all that is explained: a smaller share may come from our model of the images.
LEAST_DEVIATIONS, LEAST_SHARE = 5.0, 0.01
TRIED_BY_OWN_MAPS = 2  # interpretations of one respect
FEWEST = 20  # particles from which two halves make maps
SMALLEST_BOX = 16  # pixels, below which a map has too few shells to compare


class TooFewParticles(InputError):
    """The images are too few or too small to judge a file by."""


class Outcome(StrEnum):
    """How an alternative interpretation compares with the best one on the images."""

    BETTER = "fits better"
    WORSE = "excluded"
    CLOSE = "hardly differs"
    UNDECIDED = "cannot tell"


ALTERNATIVES_HEADER = (
    "Other interpretation",
    "Outcome",
    "Difference of log-likelihoods in standard errors",
    "Difference as share of the gain",
)


@dataclass(frozen=True)
class Alternative:
    """Another interpretation than the one that fits the images best.

    Attributes
    ----------
    deviations
        Difference of the mean log-likelihoods in standard errors, positive where the alternative is better.
    share
        The same difference over the gain in log-likelihood of the better one of the two.
    """

    name: str
    deviations: float
    share: float

    @property
    def outcome(self) -> Outcome:
        """Better or worse only where both thresholds are passed."""
        if abs(self.deviations) < LEAST_DEVIATIONS:
            return Outcome.UNDECIDED
        if abs(self.share) < LEAST_SHARE:
            return Outcome.CLOSE
        return Outcome.BETTER if self.share > 0 else Outcome.WORSE

    @property
    def cells(self) -> tuple[str, str, str, str]:
        """A row of a table under `ALTERNATIVES_HEADER`."""
        return self.name, self.outcome.value, f"{self.deviations:+.0f}", f"{100 * self.share:+.1f} %"


@dataclass(frozen=True)
class Findings:
    """The result of comparing a file with its images.

    Attributes
    ----------
    count
        Particles in the sample.
    interpretation
        The one that fits the images best.
    alternatives
        The others, compared with it.
    oriented
        Whether the orientations explain more than those of other images would; None where the images are too
        faint to decide.
    skewness
        Of the map; negative where contrast is inverted.
    volume
        Map of the sample, filtered to the signal that its two halves share.
    undescribed_defocus_angstrom
        Median defocus of a CTF that is in the images and not in the file; None where there is none.
    """

    count: int
    interpretation: Interpretation
    alternatives: tuple[Alternative, ...]
    oriented: bool | None
    skewness: float
    volume: Volume
    undescribed_defocus_angstrom: float | None = None


def find_interpretation(particles: Particles, symmetry: str = "C1") -> Findings:
    """Find the interpretation of a file that its images fit best.

    Parameters
    ----------
    particles
        With poses; up to `MOST_PARTICLES` of them are looked at.
    symmetry
        Point group of the molecule.

    Raises
    ------
    TooFewParticles
        Where the particles are too few or their images too small.
    """
    sample = _sample(particles, symmetry)
    adopted, alternatives = _best(sample, particles.pixel_size_angstrom)
    shuffled = support(sample, replace(adopted.interpretation, shuffled=True))
    oriented = _alternative("", shuffled, adopted).outcome is Outcome.WORSE
    has_signal = float(shuffled.gains.mean() / _standard_error(shuffled.gains)) > LEAST_DEVIATIONS
    volume = filtered_map(adopted.half_maps, sample.extent_angstrom * adopted.interpretation.pixel_factor)
    return Findings(
        len(sample),
        adopted.interpretation,
        alternatives,
        oriented if oriented or has_signal else None,
        skewness(volume.voxels),
        volume,
        _undescribed_defocus(sample, adopted) if oriented and sample.ctf is None else None,
    )


def _sample(particles: Particles, symmetry: str) -> Sample:
    if particles.box < SMALLEST_BOX:
        raise TooFewParticles(
            f"images of {particles.box} px are too small to judge the file by ({SMALLEST_BOX} or more)"
        )
    sample = drawn_sample(particles, MOST_PARTICLES, symmetry)
    if len(sample) < FEWEST:
        usable = "particles are" if len(sample) == len(particles) else "particles of usual contrast are"
        raise TooFewParticles(f"{len(sample)} {usable} too few to judge the file by ({FEWEST} or more)")
    return sample


def _best(sample: Sample, pixel_size: float) -> tuple[Support, tuple[Alternative, ...]]:
    """The interpretation that fits best, and the others compared with it."""
    adopted = support(sample, Interpretation())
    alternatives: tuple[Alternative, ...] = ()
    for _ in range(MOST_FAULTS):
        better, alternatives = _compared(sample, adopted, pixel_size)
        if not better:
            break
        adopted = max(better, key=lambda one: float(one.gains.mean()))
        if adopted.interpretation.pixel_factor != 1:
            adopted = _refined_pixel(sample, adopted)
    return adopted, alternatives


def _compared(
    sample: Sample, adopted: Support, pixel_size: float
) -> tuple[list[Support], tuple[Alternative, ...]]:
    """The interpretations that are better, each with maps of its own, and the outcome of all.

    Those of one respect are first compared by the maps of the adopted one, which is fast; the best of them
    get maps of their own.
    """
    better, alternatives = [], []
    for respect in other_interpretations(sample, adopted.interpretation, pixel_size):
        names = list(respect)
        if len(names) > 1:
            quick = {
                name: replace(adopted, interpretation=one, gains=support_by_maps_of(adopted, sample, one))
                for name, one in respect.items()
            }
            names.sort(key=lambda name: -float(quick[name].gains.mean()))
            alternatives += [_alternative(name, quick[name], adopted) for name in names[TRIED_BY_OWN_MAPS:]]
        for name in names[:TRIED_BY_OWN_MAPS]:
            found = support(sample, respect[name])
            alternatives.append(_alternative(name, found, adopted))
            if alternatives[-1].outcome is Outcome.BETTER:
                better.append(found)
    return better, tuple(alternatives)


def _undescribed_defocus(sample: Sample, adopted: Support) -> float | None:
    found = estimated_ctf(sample, adopted)
    with_ctf, without = (replace(adopted, gains=gains) for gains in (found.gains_with, found.gains_without))
    outcome = _alternative("", with_ctf, without).outcome
    return found.median_angstrom if outcome is Outcome.BETTER else None


def _alternative(name: str, found: Support, adopted: Support) -> Alternative:
    difference = found.gains - adopted.gains
    explained = max(float(found.gains.mean()), float(adopted.gains.mean()), 1e-30)
    error, mean = _standard_error(difference), float(difference.mean())
    return Alternative(name, mean / error if error > 0 else 0.0, mean / explained)


def _standard_error(values: Tensor) -> float:
    return float(values.std()) / math.sqrt(len(values))


def _refined_pixel(sample: Sample, found: Support) -> Support:
    """The same interpretation with the pixel size that fits best, to 1 %."""
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
    """The mean of two half maps, each shell weighted by the share of signal that their FSC implies.

    Parameters
    ----------
    half_maps
        (2, b, b, b).
    extent_angstrom
        Width of the box in Å.
    """
    pixel_size = extent_angstrom / half_maps.shape[-1]
    fsc = fourier_shell_correlation(*(Volume(half, pixel_size) for half in half_maps)).clamp(0, 1)
    return Volume(filter_shells(half_maps.mean(0), (2 * fsc / (1 + fsc)).float()), pixel_size)
