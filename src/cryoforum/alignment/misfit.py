"""Whether a map explains the images that are compared with it, and if not, which mistake may be the cause."""

import logging
from collections.abc import Iterator
from dataclasses import replace

from torch import Tensor

from cryoforum.alignment.draft import (
    COARSE_REFINEMENT,
    COARSE_SEARCH,
    Draft,
    aligned,
    gain_is_below,
    measured,
    transforms_of,
)
from cryoforum.alignment.map_aligner import MapAligner
from cryoforum.dataset.particles import Particles
from cryoforum.dataset.predictions import Predictions
from cryoforum.dataset.resampling import resample_volume
from cryoforum.dataset.sampling import evenly_spaced_rows
from cryoforum.imaging.noise_model import (
    NoiseModel,
    explained_share,
    hidden_shells,
)
from cryoforum.reconstruction.reference_map import Reference

logger = logging.getLogger(__name__)

# Where the reference does not explain the images, others are tried on so many particles; sizes in steps.
FEW, SIZE_STEP, SIZE_STEPS = 64, 1.07, 4
CLEARLY_EXPLAINED = 0.85  # where one of them shows so much, no further one is tried
FAINT_GAIN = 120.0  # median log-likelihood gain below which some poses are lost without some of the shells
LEAST_EXPLAINED = 0.5  # share of the signal in the images that a map of the same molecule explains
LEAST_OF_FAINT = 0.3  # the same of faint particles
CANNOT_TELL = (
    "cannot tell whether the reference explains the images: the surroundings of the particles are "
    "nearly as strong as the particles, as in crowded fields"
)


def reference_explains(
    aligner: MapAligner, found: Predictions, draft: Draft, sample: Particles, background: NoiseModel
) -> bool:
    """Whether the reference explains a sample, or nobody can tell; a warning where it does not."""
    checked, highest = aligner, draft.search(COARSE_SEARCH).highest_frequency
    if aligner.source == "both" and draft.reference.halves is None:
        # A search fits a map of either hand, turned in any way: whether it is the model's, the network tells.
        checked = measured(replace(aligner, source="network"), sample, rounds=1).aligner
    share = _explained_share(checked, sample, background, highest)
    if share is None:
        logger.warning(CANNOT_TELL)
    elif share < (LEAST_OF_FAINT if gain_is_below(FAINT_GAIN, found) else LEAST_EXPLAINED):
        logger.warning(_misfit(share, checked, draft, sample, background))
    if checked is not aligner:
        share = _explained_share(aligner, sample, background, highest)
    return share is None or share >= LEAST_EXPLAINED


def _explained_share(
    aligner: MapAligner, sample: Particles, background: NoiseModel, highest_frequency: int
) -> float | None:
    """`explained_share`, in shells that poses were not fitted to."""
    scale = aligner.noise.scale.clone()
    scale[:, hidden_shells(highest_frequency)] = 0
    unseeing = replace(aligner, noise=replace(aligner.noise, scale=scale))
    found = aligned(unseeing, sample)
    which = aligner.map_of(sample)
    return explained_share(sample, found.poses, aligner.transforms, which, background, highest_frequency)


def _misfit(
    share: float, aligner: MapAligner, draft: Draft, sample: Particles, background: NoiseModel
) -> str:
    """Which mistake may be the cause where the reference does not explain the images."""
    found = f"the reference explains only {100 * share:.0f} % of the signal in the images"
    wrong = "the images' CTF, contrast or pixel size may be wrong, or they hold no particles"
    reference = draft.reference
    if reference.halves is not None:
        return f"{found}: it may be another molecule, or {wrong}"
    by_network = aligner.model is not None and aligner.source == "network"
    few = sample.select(evenly_spaced_rows(len(sample), FEW))
    highest = aligner.maps[0].config.highest_frequency
    best = LEAST_EXPLAINED, ""
    for voxels, finding in _other_maps(reference, by_network):
        other = replace(reference, full=replace(reference.full, voxels=voxels))
        config = replace(draft.config, source=aligner.source)
        tried = replace(draft, reference=other, config=config, transforms=transforms_of(other, few, False))
        first = tried.aligner(background, COARSE_SEARCH, COARSE_REFINEMENT)
        fitted = measured(first, few, rounds=1).aligner
        best = max(best, (_explained_share(fitted, few, background, highest) or 0, finding))
        if best[0] > CLEARLY_EXPLAINED:
            break
    if best[1]:
        return f"{found}, but {best[1]}"
    if not by_network:
        return f"{found}: it may be another molecule or of another pixel size (--map-pixel-size), or {wrong}"
    return (
        f"{found} at the model's orientations: it may be turned or another molecule, or {wrong}; "
        "leave out --reference, or search all orientations with --candidates search"
    )


def _other_maps(reference: Reference, by_network: bool) -> Iterator[tuple[Tensor, str]]:
    """What a map is often mistaken for, and the message where that fits."""
    voxels = reference.full.voxels
    yield -voxels, "its negative fits: the contrast is inverted; multiply it by -1"
    if by_network:  # a search fits either hand
        for axis in range(3):  # nobody knows at which plane a map was mirrored
            mirrored = voxels.flip(axis).roll(1, axis)  # voxel n // 2 stays
            yield mirrored, "its mirror image fits: it is of the other hand than the model; mirror it"
    size, given = reference.full.pixel_size_angstrom, reference.file_pixel_size_angstrom
    factors = [SIZE_STEP**step for step in (*range(-SIZE_STEPS, 0), *range(1, SIZE_STEPS + 1))]
    if given is not None:  # headers of 1 Å, which nobody set
        factors.append(size / given)
    for factor in factors:
        scaled = resample_volume(
            replace(reference.full, pixel_size_angstrom=factor * size), len(voxels), size
        )
        scaling = f"multiply it by {factor:.2f}"
        fix = scaling if given is None else f"give --map-pixel-size {factor * given:.2f}, or near it"
        yield scaled.voxels, f"it fits {factor:.2f} times as large: its pixel size is wrong; {fix}"
