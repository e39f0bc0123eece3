"""Particle files that said something else than they meant, corrected."""

import math
from dataclasses import dataclass, replace

import numpy as np

from cryoforum.io.star import (
    ParticleStar,
    missing_columns,
    number_column,
    poses_from_star,
    with_columns,
    with_orientations,
)
from cryoforum.rotations import inverse

_ORIGINS = ("rlnOriginX", "rlnOriginY", "rlnOriginXAngst", "rlnOriginYAngst")


@dataclass(frozen=True)
class Corrections:
    """What is to be changed; by default nothing.

    origin_factor: origins are multiplied by it. inverse_rotations: angles become those of the inverses.
    pixel_size_angstrom: of the images; origins in Å and defocus stay what they are.
    """

    origin_factor: float = 1.0
    inverse_rotations: bool = False
    pixel_size_angstrom: float | None = None

    def __post_init__(self) -> None:
        if not math.isfinite(self.origin_factor):
            raise ValueError(f"expected a number for --scale-origins, found {self.origin_factor}")
        if self.pixel_size_angstrom is not None and not 0 < self.pixel_size_angstrom < math.inf:
            raise ValueError(f"expected --pixel-size above 0 Å, found {self.pixel_size_angstrom}")


def corrected(star: ParticleStar, corrections: Corrections) -> ParticleStar:
    """The same file, corrected. ValueError where it lacks what is to be changed."""
    if corrections.inverse_rotations:
        poses = poses_from_star(star)
        if poses is None:
            raise ValueError(f"{star.path}: expected rlnAngleRot, rlnAngleTilt and rlnAnglePsi, found none")
        star = with_orientations(star, inverse(poses.quaternions))
    if corrections.origin_factor != 1:
        found = {name: number_column(star, name) for name in _ORIGINS}
        scaled = {name: corrections.origin_factor * x for name, x in found.items() if x is not None}
        if not scaled:
            raise ValueError(f"{star.path}: expected rlnOriginXAngst or rlnOriginX, found none to scale")
        star = with_columns(star, scaled)
    if corrections.pixel_size_angstrom is not None:
        star = _with_pixel_size(star, corrections.pixel_size_angstrom)
    return star


def _with_pixel_size(star: ParticleStar, size: float) -> ParticleStar:
    """One pixel size for all images; in the dialect of RELION 3.0 it follows from the detector's."""
    if star.dataset is not None:
        raise ValueError(f"{star.path}: expected a .star file for --pixel-size; convert it first")
    if star.optics is not None:
        return replace(star, optics=star.optics.assign(rlnImagePixelSize=f"{size:.6f}"))
    if missing_columns(star, ["rlnMagnification"]):
        return with_columns(star, {"rlnImagePixelSize": np.full(len(star), size)})
    magnification = number_column(star, "rlnMagnification")
    assert magnification is not None
    return with_columns(star, {"rlnDetectorPixelSize": size * magnification / 1e4})
