"""The whole density that a network says of each orientation, and its modes with their probabilities."""

import math
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from scipy.spatial import cKDTree
from torch import Tensor
from torch.nn.functional import normalize

from cryoforum.dataset import columns as c
from cryoforum.dataset.particles import Particles, loaded_batches
from cryoforum.distributions.bingham import OrientationPosterior
from cryoforum.errors import InputError, require
from cryoforum.geometry.point_groups import asymmetric_unit, symmetric_distance, symmetry_group
from cryoforum.geometry.rotations import compose, rotvec_to_unitquat, unitquat_to_relion_euler
from cryoforum.geometry.so3_grid import rotation_grid
from cryoforum.network.matrix_heads import MatrixHead
from cryoforum.network.model import TrainedModel
from cryoforum.network.predict import check_compatible, network_numbers
from cryoforum.runtime.devices import compute_for

if TYPE_CHECKING:
    import pandas as pd

BATCH_SIZE = 32
MODES_NSIDE = 6  # 10° between the rotations that modes are looked for on
NEIGHBOURS = 26  # of each rotation of a grid; of these none is higher than a mode
CLIMBS = 6  # each halves the distance up to which a mode moves: from the grid's spacing to 0.2°
_ROWS_AT_ONCE = 1024


@torch.no_grad()
def log_density(
    model: TrainedModel, particles: Particles, rotations_or_nside: Float[Tensor, "g 4"] | int
) -> Float[Tensor, "n g"]:
    """Log density of each particle's orientation, relative to the uniform one (which is 0 everywhere).

    The network reads each image once, without test-time augmentation.

    Parameters
    ----------
    model
        Of any head; its sharpness counts.
    particles
        n of the model's box and pixel size.
    rotations_or_nside
        Unit quaternions (g, 4); or the nside of a `rotation_grid` (4: 15° apart, 8: 7.5°), over which the
        mean of the density is about 1.

    Returns
    -------
    Tensor
        (n, g). Equivalent orientations of a symmetric molecule are equally probable.

    Raises
    ------
    InputError
        Where box or pixel size are not the model's, or a quaternion is not of length 1.
    """
    check_compatible(model, particles)
    rotations = _rotations(rotations_or_nside)
    found, compute = [torch.zeros(0, len(rotations))], compute_for()
    for batch in loaded_batches(particles, BATCH_SIZE) if len(particles) else ():
        numbers = network_numbers(model, batch, compute)
        found.append(_log_density(model, numbers, rotations) - _log_normaliser(model, numbers))
    return torch.cat(found)


@torch.no_grad()
def modes(
    model: TrainedModel, particles: Particles, count: int = 5, nside: int = MODES_NSIDE
) -> "pd.DataFrame":
    """The most probable modes of each particle's orientation.

    A mode is found on a grid of rotations as one without a higher neighbour, and climbs to its top; its
    probability is that of all rotations which are nearer to it than to another mode, of all that there are.

    Parameters
    ----------
    model, particles
        As for `log_density`.
    count
        Of modes of each particle at most; there may be fewer.
    nside
        Of the grid, whose rotations are 60° / nside apart: narrower modes may be missed.

    Returns
    -------
    DataFrame
        A row a mode, by particle and falling probability: particle (its row, from 0), rlnImageName, mode
        (from 1), angles in degrees, probability, and log_density relative to the uniform one. Of equivalent
        modes there is one, with the probability of all.

    Raises
    ------
    InputError
        As `log_density`, or for a count below 1.
    """
    import pandas as pd  # takes a while: on first use

    require(count >= 1, "a count of 1 or more", count)
    check_compatible(model, particles)
    grid, neighbours = _grid_and_neighbours(nside, model.config.symmetry)
    found: list[pd.DataFrame] = []
    compute = compute_for()
    for batch in loaded_batches(particles, BATCH_SIZE) if len(particles) else ():
        numbers = network_numbers(model, batch, compute)
        each = batch.names, numbers, _log_density(model, numbers, grid), _log_normaliser(model, numbers)
        for name, own, density, constant in zip(*each, strict=True):
            peaks = (density >= density[neighbours].amax(1)).nonzero()[:, 0]
            shares = _shares(density, peaks, grid, model.config.symmetry)
            top = shares.argsort(descending=True)[:count]
            tops = _climbed(model, own[None], grid[peaks[top]], math.radians(60 / nside))
            columns = {
                "particle": len(found),
                c.IMAGE_NAME: name,
                "mode": range(1, len(top) + 1),
                **dict(zip(c.ANGLE_COLUMNS, unitquat_to_relion_euler(tops).numpy().T, strict=True)),
                "probability": shares[top].numpy(),
                "log_density": (_log_density(model, own[None], tops)[0] - constant).numpy(),
            }
            found.append(pd.DataFrame(columns))
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame()


def _climbed(model: TrainedModel, numbers: Tensor, starts: Tensor, reach_rad: float) -> Tensor:
    """Rotations (m, 4) at the top of the density of one particle's numbers (1, k), up from ``starts``."""
    axis = torch.linspace(-1, 1, 5)
    around = torch.cartesian_prod(axis, axis, axis)
    for _ in range(CLIMBS):
        near = compose(starts[:, None], rotvec_to_unitquat(reach_rad * around))
        height = _log_density(model, numbers, near.flatten(0, 1))[0].view(len(starts), -1)
        height[:, len(around) // 2] += 1e-5  # where all are alike a mode stays where it is
        starts = normalize(near[torch.arange(len(starts)), height.argmax(1)], dim=-1)
        reach_rad /= 2
    return starts


def _log_density(model: TrainedModel, numbers: Tensor, rotations: Tensor) -> Tensor:
    """What the numbers (n, k) say of rotations (g, 4), (n, g), but for the constant of `_log_normaliser`.

    The mean over equivalent rotations, where the head does not know that they are alike.
    """
    head, sharpness, group = model.head, model.sharpness, symmetry_group(model.config.symmetry)
    if isinstance(head, MatrixHead):
        sharp = OrientationPosterior(sharpness * head.posterior(numbers).concentration)
        each = [sharp.log_density(compose(one, rotations).expand(len(numbers), -1, -1)) for one in group]
    else:
        if model.config.learned_symmetry == model.config.symmetry:
            group = group[:1]
        numbers = sharpness * numbers  # they are linear in the logarithm of the density
        each = [
            torch.cat([head.log_density(numbers, head.features(p)) for p in turned.split(_ROWS_AT_ONCE)], 1)
            for turned in (compose(one, rotations) for one in group)
        ]
    return torch.stack(each).logsumexp(0) - math.log(len(group))


def _log_normaliser(model: TrainedModel, numbers: Tensor) -> Tensor:
    """By how much `_log_density` is too high, (n, 1); it shows at any one rotation."""
    head = model.head
    if isinstance(head, MatrixHead):
        return torch.zeros(len(numbers), 1)
    numbers, anywhere = model.sharpness * numbers, torch.tensor([[0.0, 0.0, 0.0, 1.0]])
    exact = head.normalised_log_density(numbers, anywhere.expand(len(numbers), -1, -1))
    return head.log_density(numbers, head.features(anywhere)) - exact


def _rotations(rotations_or_nside: Tensor | int) -> Tensor:
    if isinstance(rotations_or_nside, int):
        return rotation_grid(rotations_or_nside)
    given = rotations_or_nside
    require(given.ndim == 2 and given.shape[1] == 4, "rotations of shape (g, 4)", tuple(given.shape))
    wrong = ~((given.norm(dim=-1) - 1).abs() < 1e-3)
    if wrong.any() or not len(given):
        found = given[wrong][0].tolist() if wrong.any() else "none"
        raise InputError(f"expected rotations as quaternions of length 1, found {found}")
    return given.float()


def _shares(log_density: Tensor, peaks: Tensor, grid: Tensor, symmetry: str) -> Tensor:
    """Probability (p,) of all rotations nearest to each of the peaks, rows (p,), of a log density (g,)."""
    distance = symmetric_distance(grid, grid[peaks][:, None], symmetry_group(symmetry))
    return torch.zeros(len(peaks)).index_add_(0, distance.argmin(0), log_density.softmax(0))


@lru_cache(maxsize=2)
def _grid_and_neighbours(nside: int, symmetry: str) -> tuple[Tensor, Tensor]:
    """The asymmetric unit (g, 4) of a grid, and the rows (g, k) that are nearest to each of its rotations."""
    group = symmetry_group(symmetry)
    grid = asymmetric_unit(rotation_grid(nside), group)
    alike = compose(group[:, None], grid).flatten(0, 1)
    tree = cKDTree(torch.cat([alike, -alike]).numpy())
    _, found = tree.query(grid.numpy(), k=NEIGHBOURS + 1)
    return grid, torch.from_numpy(found % len(grid))
