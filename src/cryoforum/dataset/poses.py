"""Orientation and origin of each particle."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from cryoforum.dataset.rows import Rows


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
    """

    quaternions: Float[Tensor, "n 4"]
    shifts_angstrom: Float[Tensor, "n 2"]
