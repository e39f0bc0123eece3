"""RELION's two dialects of a particle STAR file: 3.0, one table, and 3.1, with optics groups beside it."""

from dataclasses import replace

import numpy as np
import pandas as pd

from cryoforum.dataset.particle_table import ParticleTable, format_numbers, number_column, optics_rows
from cryoforum.io.relion.lengths import pixel_sizes_from_table

OPTICS_COLUMNS = (  # what RELION 3.1 keeps for an optics group, and 3.0 for a particle
    "rlnOpticsGroupName",
    "rlnMtfFileName",
    "rlnMicrographOriginalPixelSize",
    "rlnMicrographPixelSize",
    "rlnVoltage",
    "rlnSphericalAberration",
    "rlnAmplitudeContrast",
    "rlnImagePixelSize",
    "rlnImageSize",
    "rlnImageDimensionality",
    "rlnBeamTiltX",
    "rlnBeamTiltY",
    "rlnMagMat00",
    "rlnMagMat01",
    "rlnMagMat10",
    "rlnMagMat11",
    "rlnOddZernike",
    "rlnEvenZernike",
    "rlnCtfDataAreCtfPremultiplied",
    "rlnCtfDataArePhaseFlipped",
)
_LENGTHS = {  # in pixels until 3.0, in Å since
    "rlnOriginX": "rlnOriginXAngst",
    "rlnOriginY": "rlnOriginYAngst",
    "rlnOriginZ": "rlnOriginZAngst",
    "rlnOriginXPrior": "rlnOriginXPriorAngst",
    "rlnOriginYPrior": "rlnOriginYPriorAngst",
    "rlnOriginZPrior": "rlnOriginZPriorAngst",
    "rlnHelicalTrackLength": "rlnHelicalTrackLengthAngst",
}
_PIXEL_SIZE_30 = ("rlnDetectorPixelSize", "rlnMagnification")
_GROUP_30 = "rlnBeamTiltClass"  # the only groups that RELION 3.0 has
_MAGNIFICATION = 10_000.0  # with it the detector's pixels in µm are as large as the image's in Å


def relion30(table: ParticleTable) -> ParticleTable:
    """The same particles in the dialect of RELION 3.0: what the optics groups say stands in every row."""
    if table.optics is None:
        return table
    sizes = pixel_sizes_from_table(table)
    moved = table.optics.iloc[optics_rows(table, table.optics)].reset_index(drop=True)
    groups = moved.get("rlnOpticsGroup")
    moved = moved.drop(columns=["rlnOpticsGroup", "rlnImagePixelSize", *_PIXEL_SIZE_30], errors="ignore")
    particles = table.particles.drop(columns=["rlnOpticsGroup", *moved.columns], errors="ignore")
    particles = _with_other_lengths(table, particles, {new: old for old, new in _LENGTHS.items()}, 1 / sizes)
    added = {name: moved[name] for name in moved}
    if groups is not None and len(table.optics) > 1:
        added[_GROUP_30] = groups
    added["rlnDetectorPixelSize"] = format_numbers(sizes * _MAGNIFICATION / 1e4)
    added["rlnMagnification"] = format_numbers(np.full(len(table), _MAGNIFICATION))
    return replace(table, optics=None, particles=particles.assign(**added).astype(str))


def relion31(table: ParticleTable) -> ParticleTable:
    """The same particles in the dialect of RELION 3.1: an optics group for all that share their optics."""
    if table.optics is not None:
        return table
    sizes = pixel_sizes_from_table(table)
    particles = table.particles.drop(columns=list(_PIXEL_SIZE_30), errors="ignore")
    particles = particles.assign(rlnImagePixelSize=format_numbers(sizes))
    shared = [name for name in OPTICS_COLUMNS if name in particles]
    marks = [name for name in (*shared, _GROUP_30, "rlnOpticsGroup") if name in particles]
    group_of_row = particles[marks].apply(_as_numbers).groupby(marks, sort=False).ngroup().to_numpy()
    _, first_rows = np.unique(group_of_row, return_index=True)
    optics = particles[shared].iloc[first_rows].reset_index(drop=True)
    numbers = [str(number) for number in range(1, len(optics) + 1)]
    if "rlnOpticsGroupName" not in optics:
        optics.insert(0, "rlnOpticsGroupName", [f"opticsGroup{number}" for number in numbers])
    optics.insert(1, "rlnOpticsGroup", numbers)
    if "rlnImageDimensionality" not in optics:
        optics["rlnImageDimensionality"] = "2"
    particles = particles.drop(columns=marks)
    particles = _with_other_lengths(table, particles, _LENGTHS, sizes)
    particles = particles.assign(rlnOpticsGroup=[numbers[group] for group in group_of_row])
    return replace(table, optics=optics.astype(str), particles=particles.astype(str))


def with_lengths_in_angstrom(table: ParticleTable) -> ParticleTable:
    """The same particles, their lengths in Å as in the dialect of RELION 3.1."""
    sizes = pixel_sizes_from_table(table)
    return replace(table, particles=_with_other_lengths(table, table.particles, _LENGTHS, sizes))


def _with_other_lengths(
    table: ParticleTable, particles: pd.DataFrame, names: dict[str, str], factors: np.ndarray
) -> pd.DataFrame:
    """Lengths under their other names, times factors (n,).

    Of a file that has both, as in RELION: those in pixels count without optics groups, those in Å with them.
    """
    angstrom_counts = table.optics is not None
    twins = names | {new: old for old, new in names.items()}
    columns = {}
    for name in particles:
        counts = name.endswith("Angst") == angstrom_counts
        if name in twins and not counts and twins[name] in particles:
            continue
        values = number_column(table, name) if name in names else None
        texts = particles[name] if values is None else format_numbers(values * factors)
        columns[names.get(name, name)] = texts
    return pd.DataFrame(columns, index=particles.index)


def _as_numbers(column: pd.Series) -> pd.Series:
    """300 and 300.000 are one voltage; what is no number is compared as text."""
    numbers = pd.to_numeric(column, errors="coerce")
    return column if numbers.isna().any() else numbers
