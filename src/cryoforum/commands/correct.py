"""Particle files that said something else than they meant, corrected."""

import math
from dataclasses import dataclass, replace

import pandas as pd

from cryoforum.dataset.particle_table import (
    ParticleStar,
    format_number,
    missing_columns,
    number_column,
    with_columns,
)
from cryoforum.geometry.rotations import inverse
from cryoforum.io.cryosparc.records import with_fields
from cryoforum.io.relion.lengths import pixel_sizes_from_star
from cryoforum.io.relion.particles import poses_from_star, with_orientations

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
        if not math.isfinite(self.origin_factor):
            raise ValueError(f"expected a number for --scale-origins, found {self.origin_factor}")
        if not 0 < self.pixel_size_factor < math.inf:
            raise ValueError(f"expected --scale-pixel-size above 0, found {self.pixel_size_factor}")


def corrected(star: ParticleStar, corrections: Corrections) -> ParticleStar:
    """The same file, corrected. ValueError where it lacks what is to be changed."""
    if corrections.inverse_rotations:
        poses = poses_from_star(star)
        if poses is None:
            raise ValueError(f"{star.path}: expected rlnAngleRot, rlnAngleTilt and rlnAnglePsi, found none")
        star = with_orientations(star, inverse(poses.quaternions))
    if corrections.origin_factor != 1:
        found = [name for name in _ORIGINS if not missing_columns(star, [name])]
        if not found:
            raise ValueError(f"{star.path}: expected rlnOriginXAngst or rlnOriginX, found none to scale")
        for name in found:
            star = _multiplied(star, name, corrections.origin_factor)
    if corrections.pixel_size_factor != 1:
        star = _with_scaled_pixels(star, corrections.pixel_size_factor)
    return star


def _with_scaled_pixels(star: ParticleStar, factor: float) -> ParticleStar:
    """Every pixel size times a factor: as it is given or, in RELION 3.0, follows from the detector's."""
    pixel_sizes_from_star(star)
    for name in ("rlnImagePixelSize", "rlnDetectorPixelSize"):
        if not missing_columns(star, [name]):
            star = _multiplied(star, name, factor)
    if star.dataset is None:
        return star
    sizes = {"blob/psize_A": star.dataset["blob/psize_A"] * factor}
    return replace(star, dataset=with_fields(star.dataset, sizes))


def _multiplied(star: ParticleStar, name: str, factor: float) -> ParticleStar:
    """The numbers of a column, of optics groups or of particles, times a factor."""
    values = number_column(star, name)
    assert values is not None
    if star.optics is None or name not in star.optics:
        return with_columns(star, {name: factor * values})
    sizes = pd.to_numeric(star.optics[name], errors="coerce")
    return replace(star, optics=star.optics.assign(**{name: [format_number(factor * x) for x in sizes]}))
