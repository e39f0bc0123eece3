"""Orientation and origin of each particle."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from cryoforum.dataset.pose_errors import orientation_errors
from cryoforum.errors import InputError, require
from cryoforum.fields.checks import Numbers, doubles, floats, settle, unit_quaternions
from cryoforum.fields.rows import Rows
from cryoforum.geometry.rotations import (
    QUATERNION_DTYPE,
    relion_euler_to_unitquat,
    rotmat_to_unitquat,
    unitquat_to_relion_euler,
    unitquat_to_rotmat,
)

LENGTH_TOLERANCE = 0.01  # of given quaternions and matrices: beyond, they are something else


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

    def __repr__(self) -> str:
        return f"Poses({len(self)})"

    @classmethod
    def from_euler(cls, angles_deg: Numbers, shifts_angstrom: Numbers | None = None) -> "Poses":
        """Poses of RELION's angles.

        Parameters
        ----------
        angles_deg
            (n, 3): rot, tilt and psi in degrees, as in rlnAngleRot, rlnAngleTilt and rlnAnglePsi.
        shifts_angstrom
            (n, 2): rlnOriginXAngst and rlnOriginYAngst; None for 0.

        Raises
        ------
        InputError
            Where shapes are others, or a number is not finite.
        """
        return _poses(relion_euler_to_unitquat(doubles("angles", angles_deg, None, 3)), shifts_angstrom)

    @classmethod
    def from_matrices(cls, matrices: Numbers, shifts_angstrom: Numbers | None = None) -> "Poses":
        """Poses of rotation matrices.

        Parameters
        ----------
        matrices
            (n, 3, 3), which take view coordinates (x, y, z) to those of the volume; RELION's own matrix
            is the transpose.
        shifts_angstrom
            As for `from_euler`.

        Raises
        ------
        InputError
            Where shapes are others, or a matrix is no rotation, as one that mirrors.
        """
        given = doubles("matrices", matrices, None, 3, 3)
        off = (given @ given.mT - torch.eye(3, dtype=given.dtype)).abs().amax((-2, -1))
        _refuse((off > LENGTH_TOLERANCE) | (torch.linalg.det(given) < 0), "rotation matrices", given)
        return _poses(rotmat_to_unitquat(given), shifts_angstrom)

    @classmethod
    def from_quaternions(
        cls, quaternions: Numbers, shifts_angstrom: Numbers | None = None, *, scalar_first: bool = False
    ) -> "Poses":
        """Poses of quaternions, which are brought to length 1 exactly.

        Parameters
        ----------
        quaternions
            (n, 4) of about length 1: x, y, z, w as in SciPy.
        shifts_angstrom
            As for `from_euler`.
        scalar_first
            They come as w, x, y, z.

        Raises
        ------
        InputError
            Where shapes are others, or a length is not 1 to a hundredth.
        """
        given = doubles("quaternions", quaternions, None, 4)
        _refuse((given.norm(dim=-1) - 1).abs() > LENGTH_TOLERANCE, "quaternions of length 1", given)
        return _poses(given.roll(-1, dims=-1) if scalar_first else given, shifts_angstrom)

    @property
    def euler_deg(self) -> Float[Tensor, "n 3"]:
        """RELION's rot, tilt and psi in degrees, (n, 3) float64; see `geometry.rotations`."""
        return unitquat_to_relion_euler(self.quaternions)

    @property
    def matrices(self) -> Float[Tensor, "n 3 3"]:
        """Rotation matrices (n, 3, 3) that take view coordinates to those of the volume."""
        return unitquat_to_rotmat(self.quaternions)

    def shifts_pixel(self, pixel_size_angstrom: float) -> Float[Tensor, "n 2"]:
        """The shifts (n, 2) in pixels of ``pixel_size_angstrom``; InputError where that is 0 or less."""
        require(pixel_size_angstrom > 0, "a pixel size above 0 Å", pixel_size_angstrom)
        return self.shifts_angstrom / pixel_size_angstrom

    def errors(self, to: "Poses", symmetry: str = "C1") -> Float[Tensor, " n"]:
        """Angles in radians, (n,), from these orientations to those of as many other poses.

        Parameters
        ----------
        to
            n poses of the same particles; shifts are not compared.
        symmetry
            Point group: the smallest angle to an equivalent orientation counts.

        Raises
        ------
        InputError
            Where there are not as many, or nobody knows the point group.
        """
        return orientation_errors(self.quaternions, to.quaternions, symmetry)


def _poses(quaternions: Tensor, shifts_angstrom: Numbers | None) -> Poses:
    """Poses of quaternions (n, 4) of about length 1."""
    count = len(quaternions)
    shifts = torch.zeros(count, 2) if shifts_angstrom is None else shifts_angstrom
    unit = torch.nn.functional.normalize(quaternions, dim=-1)
    return Poses(unit.to(QUATERNION_DTYPE), doubles("shifts", shifts, count, 2).float())


def _refuse(wrong: Tensor, expected: str, given: Tensor) -> None:
    if wrong.any():
        row = int(wrong.nonzero()[0])
        raise InputError(f"expected {expected}, found {given[row].tolist()} at row {row}")
