"""Parameters of the contrast transfer function, one number a particle."""

from dataclasses import dataclass, fields, replace

from jaxtyping import Float
from torch import Tensor

from cryoforum.fields.checks import floats, settle
from cryoforum.fields.rows import Rows


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

    Raises
    ------
    InputError
        For values that are not finite, and fields of unequal lengths.
    """

    defocus_u_angstrom: Float[Tensor, " n"]
    defocus_v_angstrom: Float[Tensor, " n"]
    defocus_angle_deg: Float[Tensor, " n"]
    voltage_kv: Float[Tensor, " n"]
    spherical_aberration_mm: Float[Tensor, " n"]
    amplitude_contrast: Float[Tensor, " n"]
    phase_shift_deg: Float[Tensor, " n"]

    def __post_init__(self) -> None:
        count: int | None = None
        for entry in fields(self):
            found = floats(entry.name, getattr(self, entry.name), count)
            settle(self, **{entry.name: found})
            count = len(found)

    def defocused_by(self, change_angstrom: Float[Tensor, " n"]) -> "CtfParameters":
        """The same with ``change_angstrom`` more underfocus."""
        return replace(
            self,
            defocus_u_angstrom=self.defocus_u_angstrom + change_angstrom,
            defocus_v_angstrom=self.defocus_v_angstrom + change_angstrom,
        )
