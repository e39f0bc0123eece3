"""Lengths of a particle table in Å, whatever unit the file gives them in: pixel sizes and origins."""

import logging

import numpy as np

from cryoforum.dataset.image_grid import SAME_PIXEL_SIZE
from cryoforum.dataset.particle_table import (
    ParticleTable,
    number_column,
    number_columns,
    place_of_row,
    refuse_rows,
    where_to_add,
)
from cryoforum.errors import InputError

logger = logging.getLogger(__name__)

SAME_ORIGIN_ANGSTROM = 0.01


def pixel_sizes_from_table(table: ParticleTable) -> np.ndarray:
    """Pixel size of each image in Å, (n,)."""
    sizes = number_column(table, "rlnImagePixelSize")
    if sizes is None:
        parts = number_columns(table, ("rlnDetectorPixelSize", "rlnMagnification"))
        if parts is None:
            raise InputError(
                f"{table.path}: expected a pixel size, as rlnImagePixelSize (Å) or, as before RELION 3.1, "
                "rlnDetectorPixelSize (µm) and rlnMagnification, found none; "
                f"{where_to_add(table, 'rlnImagePixelSize')}"
            )
        detector_um, magnification = parts
        with np.errstate(divide="ignore", invalid="ignore"):
            sizes = 1e4 * detector_um / magnification
    wrong = ~(np.isfinite(sizes) & (sizes > 0))
    refuse_rows(table, wrong, lambda row: f"expected a pixel size > 0 Å, found {sizes[row]:g}")
    return sizes


def pixel_size_from_table(table: ParticleTable) -> float:
    """Pixel size of the images in Å, which all particles must share."""
    sizes = pixel_sizes_from_table(table)
    if np.ptp(sizes) > SAME_PIXEL_SIZE * sizes[0]:
        found = ", ".join(f"{size:g}" for size in np.unique(sizes)[:5])
        raise InputError(f"{table.path}: expected one pixel size, found {found} Å")
    return float(sizes[0])


def shift_angstrom(table: ParticleTable, axis: str) -> np.ndarray:
    """Origins along x or y, (n,); 0 where there is no column.

    Of origins in Å and in pixels RELION takes Å where there are optics groups, and else pixels, which it
    turns into Å before it looks at them. Unlike RELION we take pixels, too, where there are no others.
    """
    angstrom, pixels = _shifts_in_both_units(table, axis)
    first, second = (angstrom, pixels) if table.optics is not None else (pixels, angstrom)
    found = second if first is None else first
    return np.zeros(len(table)) if found is None else found


def warn_of_contradicting_origins(table: ParticleTable) -> None:
    """Say where origins in Å and in pixels differ, and which are taken."""
    for axis in "XY":
        angstrom, pixels = _shifts_in_both_units(table, axis)
        if angstrom is None or pixels is None:
            continue
        apart = np.abs(angstrom - pixels)
        if (apart > SAME_ORIGIN_ANGSTROM).any():
            row, taken = int(apart.argmax()), "Angst" if table.optics is not None else ""
            logger.warning(
                f"{place_of_row(table, row)}: rlnOrigin{axis}Angst is {angstrom[row]:g} Å, but "
                f"rlnOrigin{axis} {pixels[row]:g} Å; rlnOrigin{axis}{taken} is taken, as in RELION"
            )
            return


def _shifts_in_both_units(table: ParticleTable, axis: str) -> tuple[np.ndarray | None, np.ndarray | None]:
    """rlnOriginXAngst and rlnOriginX (or Y) of each particle, both in Å."""
    pixels = number_column(table, f"rlnOrigin{axis}")
    in_angstrom = None if pixels is None else pixels * pixel_sizes_from_table(table)
    return number_column(table, f"rlnOrigin{axis}Angst"), in_angstrom
