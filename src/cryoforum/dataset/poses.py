"""Orientation and origin of each particle."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Poses:
    """Orientation and in-plane origin of each particle.

    quaternions: (n, 4) unit, scalar last (see `rotations`).
    shifts_angstrom: (n, 2) x and y of RELION's rlnOriginX/YAngst: the particle image is the centred
        projection moved by *minus* this.
    """

    quaternions: Tensor
    shifts_angstrom: Tensor

    def __len__(self) -> int:
        return len(self.quaternions)

    def __getitem__(self, rows: Tensor) -> "Poses":
        return Poses(self.quaternions[rows], self.shifts_angstrom[rows])
