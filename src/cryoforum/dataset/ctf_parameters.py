"""Parameters of the contrast transfer function, one number a particle."""

from dataclasses import dataclass, replace

from jaxtyping import Float
from torch import Tensor

from cryoforum.dataset.rows import Rows


@dataclass(frozen=True)
class CtfParameters(Rows):
    """What the CTF of each particle depends on, with RELION's signs: underfocus is positive.

    Parameters
    ----------
    defocus_u_angstrom, defocus_v_angstrom, defocus_angle_deg
        Defocus along the axis at the angle from x, and across it.
    voltage_kv, spherical_aberration_mm
        Of the microscope.
    amplitude_contrast
        As a fraction.
    phase_shift_deg
        Of a phase plate; 0 without one.
    """

    defocus_u_angstrom: Float[Tensor, " n"]
    defocus_v_angstrom: Float[Tensor, " n"]
    defocus_angle_deg: Float[Tensor, " n"]
    voltage_kv: Float[Tensor, " n"]
    spherical_aberration_mm: Float[Tensor, " n"]
    amplitude_contrast: Float[Tensor, " n"]
    phase_shift_deg: Float[Tensor, " n"]

    def __repr__(self) -> str:
        if not len(self):
            return "CtfParameters(0)"
        least, most = float(self.defocus_v_angstrom.min()), float(self.defocus_u_angstrom.max())
        return f"CtfParameters({len(self)} of {least:.0f} to {most:.0f} Å underfocus)"

    def defocused_by(self, change_angstrom: Float[Tensor, " n"]) -> "CtfParameters":
        """The same with ``change_angstrom`` more underfocus."""
        return replace(
            self,
            defocus_u_angstrom=self.defocus_u_angstrom + change_angstrom,
            defocus_v_angstrom=self.defocus_v_angstrom + change_angstrom,
        )
