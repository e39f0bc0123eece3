"""What the numbers of a microscope can be, and which unit one looks like that it cannot be.

A range holds all that was ever used, and more: overfocus, lenses corrected for their spherical aberration,
phase plates, low magnification. Beyond it lies another unit, or a column that nobody filled.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from cryoforum.dataset.particle_table import ParticleTable, number_column, numbers_of_rows, refuse_rows
from cryoforum.errors import InputError
from cryoforum.io.relion.lengths import pixel_sizes_from_table

LEAST_DEFOCUS = 50.0  # Å, of the most defocused particle of a group, where defocus is not 0 altogether


@dataclass(frozen=True)
class Quantity:
    """A number of a microscope.

    Parameters
    ----------
    column, unit
        RELION's name, and the unit that its values are in.
    least, most
        Values that can be.
    usual
        Range of nearly all values, by which another unit is recognised.
    factors
        Of other units: by what their numbers have to be multiplied.
    """

    column: str
    unit: str
    least: float
    most: float
    usual: tuple[float, float]
    factors: Mapping[str, float] = field(default_factory=dict)

    def is_impossible(self, values: np.ndarray) -> np.ndarray:
        """Which of the values (n,) cannot be."""
        return (values < self.least) | (values > self.most)

    def expected(self, name: str) -> str:
        """What to expect of it under the name that a file has for it."""
        return f"{name} from {self.least:g} to {self.most:g} {self.unit}"

    def remedy(self, value: float) -> str:
        """A hint, with a semicolon before it, at the unit that a value seems to be in; empty for none."""
        for unit, factor in self.factors.items():
            if self.usual[0] <= abs(value) * factor <= self.usual[1]:
                return f"; it seems to be in {unit}: multiply it by {factor:g}"
        return ""


_METRES_IN_ANGSTROM = {"µm": 1e4, "nm": 10.0, "mm": 1e7, "m": 1e10, "pm": 1e-2}
VOLTAGE = Quantity("rlnVoltage", "kV", 10, 1000, (60, 400), {"V": 1e-3, "MV": 1e3})
ABERRATION = Quantity(  # below 0 or near it: the microscope has a corrector
    "rlnSphericalAberration", "mm", -20, 20, (0.3, 10), {"µm": 1e-3, "nm": 1e-6, "Å": 1e-7}
)
AMPLITUDE_CONTRAST = Quantity("rlnAmplitudeContrast", "as a fraction", 0, 1, (0.01, 0.5), {"percent": 0.01})
DEFOCUS = tuple(
    Quantity(column, "Å", -1e6, 1e6, (2e3, 1e5), _METRES_IN_ANGSTROM)
    for column in ("rlnDefocusU", "rlnDefocusV")
)
PIXEL_SIZE = Quantity("rlnImagePixelSize", "Å", 0.1, 100, (0.3, 20), _METRES_IN_ANGSTROM)
OF_THE_CTF = (*DEFOCUS, VOLTAGE, ABERRATION, AMPLITUDE_CONTRAST)


def refuse_impossible_ctf(table: ParticleTable) -> None:
    """InputError where a CTF parameter is in no unit that its column can have; columns may be missing."""
    for quantity in OF_THE_CTF:
        values = number_column(table, quantity.column)
        if values is not None:
            _refuse(table, quantity, values)
    _refuse_tiny_defocus(table)


def refuse_impossible_pixel_sizes(table: ParticleTable) -> None:
    """InputError where a pixel size is none that particle images have."""
    _refuse(table, PIXEL_SIZE, pixel_sizes_from_table(table))


def _refuse(table: ParticleTable, quantity: Quantity, values: np.ndarray) -> None:
    refuse_rows(
        table,
        quantity.is_impossible(values),
        lambda row: (
            f"expected {quantity.expected(quantity.column)}, found {values[row]:g}"
            f"{quantity.remedy(values[row])}"
        ),
    )


def _refuse_tiny_defocus(table: ParticleTable) -> None:
    """InputError where no particle of a group has more defocus than a few Å, and some have a little.

    A single particle may by chance, with a phase plate. Files of several units are told by their groups.
    """
    defocus = number_column(table, "rlnDefocusU")
    if defocus is None:
        return
    groups = number_column(table, "rlnOpticsGroup") if "rlnOpticsGroup" in table.particles else None
    groups = np.zeros(len(table)) if groups is None else groups
    tiny = np.zeros(len(table), dtype=bool)
    for group in np.unique(groups):
        rows = groups == group
        tiny |= rows & (0 < np.abs(defocus[rows]).max() < LEAST_DEFOCUS)
    if tiny.any():
        largest = float(np.abs(defocus[tiny]).max())
        where = f"all {len(table)} rows" if tiny.all() else f"{tiny.sum()} rows ({numbers_of_rows(tiny)})"
        raise InputError(
            f"{table.path}: expected rlnDefocusU in Å, thousands of them, found at most {largest:g} "
            f"in {where}{DEFOCUS[0].remedy(largest) or '; leave it 0 where there is none'}"
        )
