"""Parameters of the contrast transfer function, one number a particle."""

from dataclasses import dataclass, fields, replace

from torch import Tensor


@dataclass(frozen=True)
class CtfParameters:
    """What bends the electrons, one number a particle: every field is an (n,) float tensor."""

    defocus_u_angstrom: Tensor
    defocus_v_angstrom: Tensor
    defocus_angle_deg: Tensor
    voltage_kv: Tensor
    spherical_aberration_mm: Tensor
    amplitude_contrast: Tensor
    phase_shift_deg: Tensor

    def __len__(self) -> int:
        return len(self.defocus_u_angstrom)

    def __getitem__(self, rows: Tensor) -> "CtfParameters":
        return CtfParameters(*(getattr(self, field.name)[rows] for field in fields(self)))

    def defocused_by(self, change_angstrom: Tensor) -> "CtfParameters":
        """The same with ``change_angstrom`` (n,) more underfocus."""
        return replace(
            self,
            defocus_u_angstrom=self.defocus_u_angstrom + change_angstrom,
            defocus_v_angstrom=self.defocus_v_angstrom + change_angstrom,
        )
