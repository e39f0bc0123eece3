"""Laying one map on another: which way it is turned, of which hand it is, and how large its pixels are."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from cryoforum.geometry.rotations import compose, random_unitquat
from cryoforum.geometry.so3_grid import rotation_grid
from cryoforum.imaging.fft import FrequencyPoints, frequency_points
from cryoforum.imaging.projection import cropped_transform, slices_at
from cryoforum.imaging.shells import mean_by_shell

SLICES = 24  # central slices that two maps are compared by
GRID_NSIDE, COARSE_SHELL, FINE_SHELL = 4, 8, 16
REFINEMENTS = (0.12, 0.06, 0.03, 0.015)  # rad: how far around the best turn others are tried
TRIED = 48
SIZES = torch.linspace(0.88, 1.12, 25)
LEAST_CORRELATION = 0.4  # of slices of two maps of one molecule
LEAST_HAND = 0.03  # by which the correlations of both hands differ where a hand can be seen
LEAST_DEVIATIONS = 5.0  # and of this many standard errors
DENSE = 0.3  # of the maximum: what counts for the centre of mass


@dataclass(frozen=True)
class Comparison:
    """How the particles' own map lies on one from elsewhere.

    correlation, mirrored_correlation: mean over central slices, as it is and of the other hand. other_hand:
    whether that fits better; None where nothing can be told. size: factor by which the file's pixel size must
    grow for both maps to agree best; NaN where they do not look alike.
    """

    correlation: float
    mirrored_correlation: float
    other_hand: bool | None
    size: float


def compare_maps(voxels: Tensor, other: Tensor) -> Comparison:
    """Hand and size of a map (b, b, b) beside ``other`` (b, b, b); of either contrast."""
    own, other = (one if skewness(one) > 0 else -one for one in (voxels, other))
    (given, size), (turned_over, size_of_other) = align(own, other), align(mirrored(own), other)
    difference = turned_over - given
    gain, error = float(difference.mean()), float(difference.std()) / math.sqrt(SLICES)
    means = float(given.mean()), float(turned_over.mean())
    alike = max(means) > LEAST_CORRELATION
    told = alike and abs(gain) > max(LEAST_HAND, LEAST_DEVIATIONS * error)
    best_size = size if means[0] >= means[1] else size_of_other
    return Comparison(*means, gain > 0 if told else None, best_size if alike else math.nan)


def skewness(voxels: Tensor) -> float:
    """Third standardised moment: a molecule fills little of its box, so its contrast gives the sign."""
    centred = voxels - voxels.mean()
    return float(centred.pow(3).mean() / centred.square().mean().pow(1.5).clamp_min(1e-30))


def align(voxels: Tensor, other: Tensor) -> tuple[Tensor, float]:
    """How a map (b, b, b) agrees with ``other`` (b, b, b) when it is laid on it; both of positive contrast.

    Returns
    -------
    (slices,) correlations of their central slices, every shell alike; and the factor by which the pixel size
    of the first must grow for both to agree best.
    """
    box = len(voxels)
    highest = min(FINE_SHELL, box // 2 - 2)
    transforms = [cropped_transform(_centred(one), box // 2 - 2) for one in (voxels, other)]
    generator = torch.Generator().manual_seed(0)
    views = random_unitquat(SLICES, generator=generator)
    grid = rotation_grid(GRID_NSIDE)
    coarse = frequency_points(box, min(COARSE_SHELL, highest))
    best = grid[_correlations(transforms, views, grid, coarse).mean(1).argmax()]
    fine = frequency_points(box, highest)
    for angle in REFINEMENTS:
        turns = angle / 2 * torch.randn(TRIED, 3, generator=generator)
        turns[0] = 0
        near = compose(normalize(torch.cat([turns, torch.ones(TRIED, 1)], 1), dim=1), best)
        best = near[_correlations(transforms, views, near, fine).mean(1).argmax()]
    sizes = torch.stack(
        [_correlations(transforms, views, best[None], fine, float(size)).mean() for size in SIZES]
    )
    looks_larger = float(SIZES[sizes.argmax()])  # its transform at k is the other's at that times k
    return _correlations(transforms, views, best[None], fine)[0], 1 / looks_larger


def mirrored(voxels: Tensor) -> Tensor:
    """The map of the other hand; voxel n // 2 stays."""
    return voxels.flip(0).roll(1, 0)


def _centred(voxels: Tensor) -> Tensor:
    """The map moved so that its dense part is centred, to a voxel."""
    dense = (voxels - DENSE * voxels.max()).clamp_min(0)
    place = torch.arange(len(voxels)).float() - len(voxels) // 2
    total = dense.sum().clamp_min(1e-30)
    moves = [-round(float((dense.sum(rest) * place).sum() / total)) for rest in ((1, 2), (0, 2), (0, 1))]
    return voxels.roll(moves, (0, 1, 2))


def _correlations(
    transforms: list[Tensor], views: Tensor, turns: Tensor, points: FrequencyPoints, size: float = 1.0
) -> Tensor:
    """(t, v) correlation of slices along ``views`` (v, 4) of the first with those of the second, turned."""
    first = _flat_slices(transforms[0], views, points, 1.0)
    turned = compose(turns[:, None], views).flatten(0, 1)
    second = _flat_slices(transforms[1], turned, points, size).view(len(turns), len(views), -1)
    return (first.conj() * second).real.sum(-1)


def _flat_slices(transform: Tensor, quaternions: Tensor, points: FrequencyPoints, size: float) -> Tensor:
    """Slices (m, p) in which every shell is as strong, each of length 1."""
    scaled = FrequencyPoints(points.box, points.kx * size, points.ky * size)
    slices = slices_at(transform, quaternions, scaled)
    power = mean_by_shell(slices.abs().square().mean(0), points.shell)
    flat = slices / power[points.shell].clamp_min(1e-30).sqrt()
    return flat / flat.abs().square().sum(1, keepdim=True).sqrt().clamp_min(1e-30)
