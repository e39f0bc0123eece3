"""Particle files whose columns meant something else than they said, corrected."""

import math
from dataclasses import dataclass, replace

import pandas as pd

from cryoforum.dataset.particle_table import (
    ParticleTable,
    format_numbers,
    missing_columns,
    number_column,
    with_columns,
)
from cryoforum.errors import InputError, require
from cryoforum.geometry.rotations import inverse
from cryoforum.io.cryosparc.records import with_fields
from cryoforum.io.relion.lengths import pixel_sizes_from_table
from cryoforum.io.relion.particles import poses_from_table, with_orientations

_ORIGINS = ("rlnOriginX", "rlnOriginY", "rlnOriginXAngst", "rlnOriginYAngst")


@dataclass(frozen=True)
class Corrections:
    """What is to be changed; by default nothing.

    origin_factor: origins are multiplied by it. inverse_rotations: angles become those of the inverses.
    pixel_size_factor: the pixel size of every image is multiplied by it; origins, in the unit that they are
    given in, and defocus stay what they are.
    """

    origin_factor: float = 1.0
    inverse_rotations: bool = False
    pixel_size_factor: float = 1.0

    def __post_init__(self) -> None:
        require(math.isfinite(self.origin_factor), "a number for --scale-origins", self.origin_factor)
        factor = self.pixel_size_factor
        require(0 < factor < math.inf, "--scale-pixel-size above 0", factor)


def corrected(table: ParticleTable, corrections: Corrections) -> ParticleTable:
    """The same file, corrected. InputError where it lacks what is to be changed."""
    if corrections.inverse_rotations:
        poses = poses_from_table(table)
        if poses is None:
            raise InputError(f"{table.path}: expected rlnAngleRot, rlnAngleTilt and rlnAnglePsi, found none")
        table = with_orientations(table, inverse(poses.quaternions))
    if corrections.origin_factor != 1:
        found = [name for name in _ORIGINS if not missing_columns(table, [name])]
        if not found:
            raise InputError(f"{table.path}: expected rlnOriginXAngst or rlnOriginX, found none to scale")
        for name in found:
            table = _multiplied(table, name, corrections.origin_factor)
    if corrections.pixel_size_factor != 1:
        table = _with_scaled_pixels(table, corrections.pixel_size_factor)
    return table


def _with_scaled_pixels(table: ParticleTable, factor: float) -> ParticleTable:
    """Every pixel size times a factor: as it is given or, in RELION 3.0, follows from the detector's."""
    pixel_sizes_from_table(table)
    for name in ("rlnImagePixelSize", "rlnDetectorPixelSize"):
        if not missing_columns(table, [name]):
            table = _multiplied(table, name, factor)
    if table.dataset is None:
        return table
    sizes = {"blob/psize_A": table.dataset["blob/psize_A"] * factor}
    return replace(table, dataset=with_fields(table.dataset, sizes))


def _multiplied(table: ParticleTable, name: str, factor: float) -> ParticleTable:
    """The numbers of a column, of optics groups or of particles, times a factor."""
    values = number_column(table, name)
    assert values is not None
    if table.optics is None or name not in table.optics:
        return with_columns(table, {name: factor * values})
    sizes = pd.to_numeric(table.optics[name], errors="coerce")
    return replace(table, optics=table.optics.assign(**{name: format_numbers(factor * sizes)}))
