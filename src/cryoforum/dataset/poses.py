"""Orientation and origin of each particle."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from cryoforum.fields.checks import floats, settle, unit_quaternions
from cryoforum.fields.rows import Rows


@dataclass(frozen=True)
class Poses(Rows):
    """Orientation and in-plane origin of each particle.

    Parameters
    ----------
    quaternions
        Unit, scalar last (see `geometry.rotations`).
    shifts_angstrom
        x and y of RELION's rlnOriginX/YAngst: the particle image is the centred projection moved by *minus*
        this.

    Raises
    ------
    InputError
        For quaternions that are not of length 1, values that are not finite, and other lengths and shapes.

    Notes
    -----
    Fields may be given as tensors, arrays or lists. ``poses[index]`` takes a row, a slice, row numbers or a
    mask, and gives poses.
    """

    quaternions: Float[Tensor, "n 4"]
    shifts_angstrom: Float[Tensor, "n 2"]

    def __post_init__(self) -> None:
        quaternions = unit_quaternions("quaternions", self.quaternions)
        shifts = floats("shifts_angstrom", self.shifts_angstrom, len(quaternions), 2)
        settle(self, quaternions=quaternions, shifts_angstrom=shifts)
