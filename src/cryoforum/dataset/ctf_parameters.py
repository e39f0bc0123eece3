"""Parameters of the contrast transfer function, one number a particle."""

from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from cryoforum.errors import require
from cryoforum.fields.checks import Numbers, doubles, floats, settle
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

    @classmethod
    def from_values(
        cls,
        defocus_u_angstrom: Numbers,
        defocus_v_angstrom: Numbers | None = None,
        defocus_angle_deg: Numbers = 0.0,
        voltage_kv: Numbers = 300.0,
        spherical_aberration_mm: Numbers = 2.7,
        amplitude_contrast: Numbers = 0.1,
        phase_shift_deg: Numbers = 0.0,
    ) -> "CtfParameters":
        """CTF parameters of numbers, each one for all particles or one a particle.

        Parameters
        ----------
        defocus_u_angstrom, defocus_v_angstrom, defocus_angle_deg
            As of `CtfParameters`; without the second there is no astigmatism.
        voltage_kv, spherical_aberration_mm, amplitude_contrast, phase_shift_deg
            As of `CtfParameters`.

        Raises
        ------
        InputError
            Where the lengths differ, a number is not finite, or a voltage is not above 0.
        """
        second = defocus_u_angstrom if defocus_v_angstrom is None else defocus_v_angstrom
        optics = (voltage_kv, spherical_aberration_mm, amplitude_contrast, phase_shift_deg)
        given = (defocus_u_angstrom, second, defocus_angle_deg, *optics)
        columns = [
            doubles(entry.name, _at_least_one(values), None)
            for entry, values in zip(fields(cls), given, strict=True)
        ]
        lengths = {len(column) for column in columns} - {1}
        require(len(lengths) <= 1, "one number for all particles or one a particle", f"lengths {lengths}")
        count = lengths.pop() if lengths else 1
        made = cls(*(column.float().expand(count) for column in columns))
        require(bool((made.voltage_kv > 0).all()), "voltages above 0 kV", float(made.voltage_kv.min()))
        return made

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


def _at_least_one(values: Numbers) -> Numbers:
    """A single number as one of a row."""
    return torch.atleast_1d(values) if isinstance(values, Tensor) else np.atleast_1d(np.asarray(values))
