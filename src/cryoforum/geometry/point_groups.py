"""Point groups: which orientations show the same view of a symmetric molecule, with RELION's axes.

A symmetry S acts on the volume, from the left: a molecule that S leaves as it is looks alike at R and
at S·R. Cn turns about z and Dn about x as well; T has a 3-fold axis along z, O its 4-fold axes along
x, y and z; I1 to I4 are four settings of the icosahedron, of which I is I2. Groups with mirrors or an
inversion are refused, as a molecule of one hand cannot have them.
"""

import math
import re
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import normalize

from cryoforum.errors import InputError
from cryoforum.geometry.rotations import QUATERNION_DTYPE, compose, geodesic_distance, inverse

NAMES = "C1 to C99, D1 to D99, T, O, I, I1, I2, I3, I4"
# RELION's names of groups with mirrors, an inversion or rotary reflections.
_IMPROPER = re.compile(r"C[IS]|[CD][0-9]+[VH]|S[0-9]+|T[DH]|OH|I[1-5]?H")
GOLDEN = (1 + math.sqrt(5)) / 2
Z = (0.0, 0.0, 1.0)

# A hair off the identity: no two equivalent rotations of a regular grid are then equally near.
_NEAR_IDENTITY = normalize(torch.tensor([1.1e-4, 1.7e-4, 2.3e-4, 1.0], dtype=torch.float64), dim=-1)

# Order and axis of two rotations that generate each group.
_GENERATORS = {
    "T": ((3, Z), (2, (0.0, math.sqrt(2), 1.0))),
    "O": ((4, Z), (3, (1.0, 1.0, 1.0))),
    "I1": ((5, (GOLDEN, 0.0, 1.0)), (3, (1.0, 1.0, 1.0))),
    "I2": ((5, (GOLDEN, 1.0, 0.0)), (3, (1.0, 1.0, 1.0))),
    "I3": ((5, Z), (2, (1.0, 0.0, -GOLDEN))),
    "I4": ((5, Z), (2, (1.0, 0.0, GOLDEN))),
}
_GENERATORS["I"] = _GENERATORS["I2"]


@lru_cache(maxsize=32)
def symmetry_group(name: str, dtype: torch.dtype = QUATERNION_DTYPE) -> Tensor:
    """Unit quaternions (g, 4) of the point group ``name``, the identity first; not to be changed.

    Names are RELION's, in capitals or not; InputError lists them.
    """
    elements = [torch.tensor([0.0, 0.0, 0.0, 1.0], dtype=torch.float64)]
    generators = [_turn(order, axis) for order, axis in _generators(name)]
    for element in elements:  # grows while it is walked through, until nothing new comes
        for generator in generators:
            product = compose(generator, element)
            if (torch.stack(elements) @ product).abs().max() < 1 - 1e-6:
                elements.append(product)
    return torch.stack(elements).to(dtype)


def finest_axis(name: str) -> int:
    """Largest n of the n-fold axes of the point group ``name``; 1 for C1."""
    return max(order for order, _ in _generators(name))


def nearest_equivalent(quaternions: Tensor, reference: Tensor, group: Tensor) -> Tensor:
    """Of all S·q the one nearest to ``reference``; unit quaternions (..., 4), broadcasting.

    ``group`` (g, 4) comes from `symmetry_group`.
    """
    if len(group) == 1:
        return quaternions
    # ⟨reference, S q⟩ = ⟨reference q⁻¹, S⟩: one product compares with the whole group.
    group = group.to(quaternions)
    between = compose(reference, inverse(quaternions))
    best = (between.detach() @ group.T).abs().argmax(-1)
    return compose(group[best], quaternions)


def symmetric_distance(first: Tensor, second: Tensor, group: Tensor) -> Tensor:
    """Smallest geodesic angle in radians between ``first`` and any S·``second``, (..., 4), broadcasting."""
    return geodesic_distance(first, nearest_equivalent(second, first, group))


def largest_overlaps(rotations: Tensor, grid: Tensor, group: Tensor) -> Tensor:
    """|⟨S·q, g⟩| of each rotation q (n, 4) with each of a grid (g, 4), S·q being the nearest one; (n, g).

    The cosine of half of their angle, without ``n·g`` products of quaternions.
    """
    equivalents = compose(group[:, None], rotations)
    return torch.stack([(one @ grid.T).abs() for one in equivalents]).amax(0)


def asymmetric_unit(grid: Tensor, group: Tensor) -> Tensor:
    """The rows of a rotation grid (n, 4) that have no equivalent nearer to the identity; about n / g.

    Every rotation has an equivalent among those nearest to the identity (its Dirichlet domain), so
    what is kept stands for all.
    """
    between = compose(_NEAR_IDENTITY, inverse(grid.double()))
    overlaps = (between @ group.double().T).abs()
    return grid[overlaps.argmax(-1) == 0]


def in_fundamental_domain(quaternions: Tensor, group: Tensor) -> Tensor:
    """Of the equivalents of each orientation (n, 4) the one in `asymmetric_unit`'s domain."""
    return nearest_equivalent(quaternions.double(), _NEAR_IDENTITY, group).to(quaternions)


def distance_to_domain_border(quaternions: Tensor, group: Tensor) -> Tensor:
    """Angle in radians from orientations (n, 4) of the fundamental domain to its border; infinite for C1.

    The border towards the equivalent by S is where ⟨q, c⟩ = ⟨q, S c⟩, c being the domain's centre.
    """
    if len(group) == 1:
        return torch.full(quaternions.shape[:-1], math.inf)
    q = quaternions.double()
    q = torch.where((q @ _NEAR_IDENTITY)[..., None] < 0, -q, q)
    centres = compose(group.double()[1:], _NEAR_IDENTITY)
    normals = normalize(_NEAR_IDENTITY - torch.cat([centres, -centres]), dim=-1)
    return 2 * torch.asin((q @ normals.T).amin(-1).clamp(0, 1)).to(quaternions)


def _generators(name: str) -> tuple[tuple[int, tuple[float, float, float]], ...]:
    known = name.strip().upper()
    if known in _GENERATORS:
        return _GENERATORS[known]
    match = re.fullmatch(r"([CD])([1-9][0-9]?)", known)
    if match is None:
        raise InputError(f"expected a point group out of {NAMES}, found '{name}'{_reason(known)}")
    turns = ((int(match[2]), Z),)
    return turns if match[1] == "C" else (*turns, (2, (1.0, 0.0, 0.0)))


def _reason(name: str) -> str:
    """Why a point group that RELION knows by name is none of ours; empty where nobody knows it."""
    if _IMPROPER.fullmatch(name):
        return ": it turns molecules into those of the other hand; give the group of its rotations alone"
    return ": RELION has its name, but no operators for it" if name == "I5" else ""


def _turn(order: int, axis: tuple[float, float, float]) -> Tensor:
    """Quaternion of the turn by 2π / order about ``axis``."""
    half = math.pi / order
    direction = normalize(torch.tensor(axis, dtype=torch.float64), dim=-1)
    return torch.cat([math.sin(half) * direction, torch.tensor([math.cos(half)], dtype=torch.float64)])
