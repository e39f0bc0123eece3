"""RELION's 3.0 dialect said in that of 3.1: optics groups, and lengths in Å."""

from dataclasses import replace

import numpy as np
import pandas as pd

from cryoforum.io.lengths import pixel_sizes_from_star
from cryoforum.io.particlestar import ParticleStar, format_number, number_column, with_columns

# What particles of one group share, as RELION's own conversion has it; the last three are not RELION's.
_SHARED = (
    "rlnVoltage",
    "rlnSphericalAberration",
    "rlnAmplitudeContrast",
    "rlnBeamTiltX",
    "rlnBeamTiltY",
    "rlnDetectorPixelSize",
    "rlnMagnification",
    "rlnImagePixelSize",
    "rlnImageSize",
    "rlnOpticsGroup",
)
_LENGTHS = {
    "rlnOriginX": "rlnOriginXAngst",
    "rlnOriginY": "rlnOriginYAngst",
    "rlnOriginXPrior": "rlnOriginXPriorAngst",
    "rlnOriginYPrior": "rlnOriginYPriorAngst",
    "rlnHelicalTrackLength": "rlnHelicalTrackLengthAngst",
}


def with_lengths_in_angstrom(star: ParticleStar) -> ParticleStar:
    """The same file without lengths in pixels; of one in both units that which `shift_angstrom` takes."""
    columns = {}
    for in_pixels, in_angstrom in _LENGTHS.items():
        pixels = number_column(star, in_pixels)
        if pixels is not None and (star.optics is None or in_angstrom not in star.particles):
            columns[in_angstrom] = pixels * pixel_sizes_from_star(star)
    kept = star.particles.drop(columns=list(_LENGTHS), errors="ignore")
    return with_columns(replace(star, particles=kept), columns)


def with_optics_groups(star: ParticleStar) -> ParticleStar:
    """The same file with a data_optics, in which particles of one microscope and pixel size are a group."""
    if star.optics is not None:
        return star
    sizes = [format_number(size) for size in pixel_sizes_from_star(star).tolist()]
    shared = [column for column in _SHARED if column in star.particles]
    keys = star.particles[shared].assign(rlnImagePixelSize=sizes)
    optics = keys.drop_duplicates(ignore_index=True)
    group_of_row = keys.groupby(list(keys), sort=False).ngroup().to_numpy()
    dropped = ["rlnOpticsGroup", "rlnMagnification", "rlnDetectorPixelSize"]
    optics = optics.drop(columns=dropped, errors="ignore")
    numbers = [str(number + 1) for number in range(len(optics))]
    optics.insert(0, "rlnOpticsGroup", numbers)
    optics.insert(0, "rlnOpticsGroupName", [f"opticsGroup{number}" for number in numbers])
    particles = star.particles.drop(columns=shared)
    groups = pd.Series(np.asarray(numbers)[group_of_row], index=particles.index, dtype=str)
    return replace(star, optics=optics.astype(str), particles=particles.assign(rlnOpticsGroup=groups))
