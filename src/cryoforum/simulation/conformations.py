"""Other states of a molecule: a domain turned about a hinge, and half of it.

The molecule is cut across its longest axis. Everything is done on voxels, so that it is the same for atoms
and for maps; the cut is soft and the turned domain is interpolated by cubic splines.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from scipy import ndimage
from scipy.spatial.transform import Rotation
from torch import Tensor

from cryoforum.dataset.volumes import Volume
from cryoforum.errors import InputError

DOMAIN_SHARE = 0.35  # of the molecule's mass, beyond the hinge
_MASS_THRESHOLD = 0.05  # of the highest voxel, below which nothing is the molecule's
_EDGE_VOXELS = 3.0  # over which a cut is smeared


@dataclass(frozen=True)
class _Axes:
    """Principal axes of a molecule.

    centre: (3,) x, y, z in voxels from voxel n // 2. directions: (3, 3) unit, the longest first.
    positions: (m, 3) of the voxels with mass. mass: (m,) adds up to 1.
    """

    centre: Float[Tensor, "3"]
    directions: Float[Tensor, "3 3"]
    positions: Float[Tensor, "m 3"]
    mass: Float[Tensor, " m"]


def conformations(volume: Volume, count: int, hinge_angle_deg: float) -> tuple[Volume, ...]:
    """``count`` states of a molecule: the given one, then its domain turned by once, twice, … the angle.

    Parameters
    ----------
    volume
        (n, n, n) map of the molecule.
    count
        How many states, 1 or more.
    hinge_angle_deg
        From each state to the next. The domain is the end of the longest axis that holds `DOMAIN_SHARE` of
        the mass; the hinge lies in the cut, along the second axis.
    """
    axes = _principal_axes(volume)
    height = (axes.positions - axes.centre) @ axes.directions[0]
    cut = _weighted_quantile(height, axes.mass, 1 - DOMAIN_SHARE)
    domain = volume.voxels * _beyond(volume, axes, cut)
    in_cut = (height - cut).abs() < _EDGE_VOXELS
    hinge = (axes.positions[in_cut] * axes.mass[in_cut, None]).sum(0) / axes.mass[in_cut].sum()
    states = [volume]
    for number in range(1, count):
        turn = Rotation.from_rotvec(math.radians(number * hinge_angle_deg) * axes.directions[1].numpy())
        turned = _turned(domain, torch.from_numpy(turn.as_matrix()).float(), hinge)
        states.append(Volume(volume.voxels - domain + turned, volume.pixel_size_angstrom))
    return tuple(states)


def half_of(volume: Volume) -> Volume:
    """The molecule without what lies beyond the middle of its longest axis."""
    axes = _principal_axes(volume)
    return Volume(volume.voxels * (1 - _beyond(volume, axes, 0.0)), volume.pixel_size_angstrom)


def radius_angstrom(volume: Volume) -> float:
    """Distance from the centre of the box within which 98 % of the molecule's mass lies."""
    axes = _principal_axes(volume)
    distance = axes.positions.norm(dim=-1)
    return _weighted_quantile(distance, axes.mass, 0.98) * volume.pixel_size_angstrom


def _principal_axes(volume: Volume) -> _Axes:
    voxels = volume.voxels
    places = (voxels > _MASS_THRESHOLD * voxels.max()).nonzero()
    if len(places) < 4:
        raise InputError("expected a map with a molecule of positive density, found none")
    positions = places.flip(-1).float() - len(voxels) // 2
    mass = voxels[tuple(places.T)]
    mass = mass / mass.sum()
    centre = mass @ positions
    offsets = positions - centre
    _, directions = torch.linalg.eigh((offsets * mass[:, None]).T @ offsets)
    return _Axes(centre, directions.T.flip(0), positions, mass)


def _beyond(volume: Volume, axes: _Axes, cut: float) -> Tensor:
    """Soft mask (n, n, n) of what lies more than ``cut`` voxels from the centre along the longest axis."""
    axis = (torch.arange(len(volume.voxels)) - len(volume.voxels) // 2).float()
    x, y, z = axes.directions[0]
    height = axis[:, None, None] * z + axis[:, None] * y + axis * x - axes.directions[0] @ axes.centre
    return torch.sigmoid(4 * (height - cut) / _EDGE_VOXELS)


def _turned(voxels: Tensor, matrix: Float[Tensor, "3 3"], point: Float[Tensor, "3"]) -> Tensor:
    """The map turned by a rotation matrix of x, y, z about a point in voxels from voxel n // 2."""
    backwards = matrix.T.flip(0).flip(1)  # for z, y, x: a voxel's value is that where it came from
    fixed = point.flip(0) + len(voxels) // 2
    offset = fixed - backwards @ fixed
    turned = ndimage.affine_transform(voxels.numpy(), backwards.numpy(), offset.numpy(), order=3)
    return torch.from_numpy(turned)


def _weighted_quantile(values: Tensor, weights: Tensor, share: float) -> float:
    order = values.argsort()
    reached = weights[order].cumsum(0)
    return float(values[order][torch.searchsorted(reached, share * reached[-1]).clamp_max(len(values) - 1)])
