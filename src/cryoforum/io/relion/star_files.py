"""Particle STAR files of RELION 3.0 to 5."""

import logging
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from cryoforum.dataset.particle_table import ParticleTable
from cryoforum.errors import InputError
from cryoforum.io.relion.star_text import open_for_writing, read_tables, write_tables
from cryoforum.storage.files import replacing

logger = logging.getLogger(__name__)

_OTHER_KINDS = {  # a block that only another kind of STAR file has
    "fsc": "a post-processing result",
    "guinier": "a post-processing result",
    "model_general": "a model file (use the _data.star of the same job)",
    "optimiser_general": "an optimiser file (use the _data.star of the same job)",
    "sampling_general": "a sampling file (use the _data.star of the same job)",
    "micrographs": "a list of micrographs",
    "movies": "a list of movies",
    "coordinate_files": "a list of picked coordinates",
    "job": "the options of a job",
    "pipeline_general": "a pipeline file",
    "global": "a list of tomograms",
    "tomograms": "a list of tomograms",
}


def read_star(path: Path) -> ParticleTable:
    """Read the tables of a particle STAR file; InputError names what else the file is."""
    path = Path(path)
    tables = read_tables(path)
    blocks = dict(reversed(tables))
    found = ", ".join(f"data_{block}" for block in dict(tables)) or "no data_ block at all"
    kinds = [kind for block, kind in _OTHER_KINDS.items() if block in blocks and "particles" not in blocks]
    if kinds:
        raise InputError(f"{path}: expected a particle STAR file, found {kinds[0]} ({found})")
    optics = [table for block, table in tables if block == "optics"]
    rows = [table for block, table in tables if block == "particles"]
    if not rows and not optics:  # RELION 3.0 calls its one table what it likes
        named = [table for _, table in tables if "rlnImageName" in table]
        rows = named or [table for _, table in tables if len(tables) == 1]
    if not rows:
        raise InputError(f"{path}: expected a data_particles block, found {found}")
    return _one_table(path, optics, rows)


def _one_table(
    path: Path, optics_tables: Sequence[pd.DataFrame], blocks: Sequence[pd.DataFrame]
) -> ParticleTable:
    """The rows of all blocks of particles, as there are several where files were put one behind the other.

    InputError where their columns or optics groups differ: then their rows do not mean the same.
    """
    first, columns = blocks[0], set(blocks[0].columns)
    alike = all(set(block.columns) == columns for block in blocks)
    alike = alike and all(table.equals(optics_tables[0]) for table in optics_tables)
    if not alike:
        raise InputError(
            f"{path}: expected one table of particles and one data_optics, found {len(blocks)} "
            f"and {len(optics_tables)}, of other columns or other optics groups, as when files are put one "
            "behind the other; give the files themselves, which every command joins"
        )
    particles = first
    if len(blocks) > 1:
        particles = pd.concat([block[first.columns] for block in blocks], ignore_index=True)
        counts = " + ".join(str(len(block)) for block in blocks)
        logger.warning(f"{path}: holds {len(blocks)} tables of particles; all their rows are read ({counts})")
    optics = optics_tables[0] if optics_tables else None
    _check_particle_table(path, particles, optics)
    return ParticleTable(path, optics, particles)


def write_star(table: ParticleTable, path: Path) -> None:
    """Write the tables for RELION 3.1 and later (or 3.0, where there are no optics), atomically."""
    with replacing(path) as temporary, open_for_writing(temporary) as file:
        if table.optics is None:
            write_tables(file, [("images", table.particles)])
        else:
            tables = [("optics", table.optics), ("particles", table.particles)]
            write_tables(file, tables, version_line="# version 30001")


def _check_particle_table(path: Path, particles: pd.DataFrame, optics: pd.DataFrame | None) -> None:
    """InputError where this is no table of 2D particle images."""
    columns = ", ".join(particles.columns[:5])
    if particles.empty:
        raise InputError(f"{path}: expected particles, found an empty table ({columns})")
    if "rlnTomoParticlesFile" in particles:
        raise InputError(f"{path}: expected a particle STAR file, found an optimisation set ({columns})")
    if any(column.startswith("rlnTomo") for column in particles):
        raise InputError(
            f"{path}: expected single-particle images, found particles of tomograms (rlnTomo…), subtomograms "
            "or stacks of their tilt images, which are not supported"
        )
    dimensions = optics.get("rlnImageDimensionality") if optics is not None else None
    is_3d = dimensions is not None and (pd.to_numeric(dimensions, errors="coerce") == 3).any()
    if is_3d or "rlnCoordinateZ" in particles or "rlnCtfImage" in particles:
        raise InputError(f"{path}: expected 2D particle images, found subtomograms, which are not supported")
    if "rlnImageName" not in particles:
        raise InputError(
            f"{path}: expected a column rlnImageName, found only {columns}, …; use the STAR file of "
            "extracted particles"
        )
