"""The tables of a particle file, whose values stay text until a number is asked for."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from torch import Tensor

from cryoforum.io.relion.star_text import open_for_writing, read_tables, write_tables
from cryoforum.storage.files import replacing

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


@dataclass(frozen=True)
class ParticleStar:
    """The tables of a particle STAR file; every value is the text that was read.

    optics: one row an optics group, None in the RELION 3.0 dialect.
    particles: one row a particle.
    dataset: cryoSPARC's records (n,) of the same particles, where they came from there; None otherwise.
    companions: further files that the rows were merged from.
    """

    path: Path
    optics: pd.DataFrame | None
    particles: pd.DataFrame
    dataset: np.ndarray | None = None
    companions: tuple[Path, ...] = ()

    def __len__(self) -> int:
        return len(self.particles)


def read_star(path: Path) -> ParticleStar:
    """Read the tables of a particle STAR file; ValueError names what else the file is."""
    path = Path(path)
    tables = read_tables(path)
    blocks = dict(reversed(tables))  # of two blocks of one name the first counts
    found = ", ".join(f"data_{block}" for block in dict(tables)) or "no data_ block at all"
    kinds = [kind for block, kind in _OTHER_KINDS.items() if block in blocks and "particles" not in blocks]
    if kinds:
        raise ValueError(f"{path}: expected a particle STAR file, found {kinds[0]} ({found})")
    optics = blocks.get("optics")
    particles = blocks.get("particles")
    if particles is None and optics is None:  # RELION 3.0 calls its one table what it likes
        named = [table for _, table in tables if "rlnImageName" in table]
        particles = next(iter(named), tables[0][1] if len(tables) == 1 else None)
    if particles is None:
        raise ValueError(f"{path}: expected a data_particles block, found {found}")
    _check_particle_table(path, particles, optics)
    return ParticleStar(path, optics, particles)


def write_star(star: ParticleStar, path: Path) -> None:
    """Write the tables for RELION 3.1 and later (or 3.0, where there are no optics), atomically."""
    with replacing(path) as temporary, open_for_writing(temporary) as file:
        if star.optics is None:
            write_tables(file, [("images", star.particles)])
        else:
            tables = [("optics", star.optics), ("particles", star.particles)]
            write_tables(file, tables, version_line="# version 30001")


def select_rows(star: ParticleStar, rows: Tensor | np.ndarray | Sequence[int]) -> ParticleStar:
    """The particles of the given rows (numbers or a mask), in that order; all optics groups stay."""
    chosen = np.asarray(rows)
    if not len(chosen):
        chosen = chosen.astype(np.int64)  # no rows are of no kind
    particles = star.particles.iloc[chosen].reset_index(drop=True)
    return replace(star, particles=particles, dataset=None if star.dataset is None else star.dataset[chosen])


def with_columns(
    star: ParticleStar, columns: Mapping[str, np.ndarray | Tensor | Sequence[str]]
) -> ParticleStar:
    """The same file with particle columns replaced, or appended where they are new."""
    particles = star.particles.copy()
    for name, values in columns.items():
        if len(values) != len(particles):
            raise ValueError(f"{star.path}: expected {len(particles)} values of {name}, found {len(values)}")
        particles[name] = pd.Series(_formatted(name, values), index=particles.index, dtype=str)
    return replace(star, particles=particles)


def missing_columns(star: ParticleStar, columns: Iterable[str]) -> tuple[str, ...]:
    """Those of the columns that neither the particles nor their optics groups have."""
    present = {*star.particles.columns, *(() if star.optics is None else star.optics.columns)}
    return tuple(column for column in columns if column not in present)


def number_column(star: ParticleStar, column: str) -> np.ndarray | None:
    """A number for each particle, (n,) float64, of its optics group or its own row; None without column."""
    if star.optics is not None and column in star.optics:
        text, rows = star.optics[column], optics_rows(star, star.optics)
    elif column in star.particles:
        text, rows = star.particles[column], np.arange(len(star))
    else:
        return None
    numbers = pd.to_numeric(text, errors="coerce").to_numpy(dtype=np.float64)[rows]
    wrong = ~np.isfinite(numbers)
    if wrong.any():
        row = int(wrong.argmax())
        raise ValueError(
            f"{place_of_row(star, row)}: expected a number in column {column}, found '{text.iloc[rows[row]]}'"
        )
    return numbers


def optics_rows(star: ParticleStar, optics: pd.DataFrame) -> np.ndarray:
    """Row of ``optics``, the data_optics of ``star``, that each particle belongs to, (n,)."""
    if "rlnOpticsGroup" not in optics or "rlnOpticsGroup" not in star.particles:
        if len(optics) == 1:
            return np.zeros(len(star), dtype=np.int64)
        raise ValueError(f"{star.path}: expected a column rlnOpticsGroup in data_optics and data_particles")
    groups = pd.Index(pd.to_numeric(optics["rlnOpticsGroup"], errors="coerce"))
    if not groups.is_unique or groups.hasnans:
        found = ", ".join(optics["rlnOpticsGroup"])
        raise ValueError(
            f"{star.path}: expected another rlnOpticsGroup in each row of data_optics, found {found}"
        )
    rows = groups.get_indexer(pd.to_numeric(star.particles["rlnOpticsGroup"], errors="coerce"))
    if (rows < 0).any():
        row = int((rows < 0).argmax())
        group = star.particles["rlnOpticsGroup"].iloc[row]
        raise ValueError(
            f"{place_of_row(star, row)}: optics group '{group}' is not in data_optics "
            f"({', '.join(optics['rlnOpticsGroup'])})"
        )
    return rows


def place_of_row(star: ParticleStar, row: int) -> str:
    """Where an error is: file, row from 1, and image name."""
    return f"{star.path}, row {row + 1} ({star.particles['rlnImageName'].iloc[row]})"


def split_image_name(name: str) -> tuple[str, str]:
    """The slice with its @, and the stack: 000001@ and stack.mrcs; as in RELION the first @ counts.

    The slice is empty in the name of a single image.
    """
    number, at, stack = name.partition("@")
    return (number + at, stack) if at else ("", name)


def format_number(value: float) -> str:
    """Six decimals as RELION writes; nine digits where six decimals would lose more than float32 does."""
    text = f"{value:.6f}"
    return text if abs(float(text) - value) <= 1e-6 * abs(value) else f"{value:.9g}"


def _check_particle_table(path: Path, particles: pd.DataFrame, optics: pd.DataFrame | None) -> None:
    """ValueError where this is no table of 2D particle images."""
    columns = ", ".join(particles.columns[:5])
    if particles.empty:
        raise ValueError(f"{path}: expected particles, found an empty table ({columns})")
    if "rlnTomoParticlesFile" in particles:
        raise ValueError(f"{path}: expected a particle STAR file, found an optimisation set ({columns})")
    if any(column.startswith("rlnTomo") for column in particles):
        raise ValueError(
            f"{path}: expected single-particle images, found particles of tomograms (rlnTomo…), subtomograms "
            "or stacks of their tilt images, which are not supported"
        )
    dimensions = optics.get("rlnImageDimensionality") if optics is not None else None
    is_3d = dimensions is not None and (pd.to_numeric(dimensions, errors="coerce") == 3).any()
    if is_3d or "rlnCoordinateZ" in particles or "rlnCtfImage" in particles:
        raise ValueError(f"{path}: expected 2D particle images, found subtomograms, which are not supported")
    if "rlnImageName" not in particles:
        raise ValueError(
            f"{path}: expected a column rlnImageName, found only {columns}, …; use the STAR file of "
            "extracted particles"
        )


def _formatted(name: str, values: np.ndarray | Tensor | Sequence[str]) -> list[str]:
    """The text of a column; ValueError where a number is NaN or infinite."""
    array = np.asarray(values)
    if array.ndim != 1:
        raise ValueError(f"expected one value of {name} for each particle, found shape {array.shape}")
    if array.dtype.kind in "biu":
        return [str(int(value)) for value in array]
    if array.dtype.kind != "f":
        return [str(value) for value in values]
    if not np.isfinite(array).all():
        row = int((~np.isfinite(array)).argmax())
        raise ValueError(f"cannot write {name}: row {row + 1} is {array[row]}")
    numbers = array.astype(np.float64)
    is_short = np.abs(np.round(numbers, 6) - numbers) <= 1e-6 * np.abs(numbers)  # `format_number`, at once
    pairs = zip(numbers.tolist(), is_short.tolist(), strict=True)
    return [f"{value:.6f}" if short else f"{value:.9g}" for value, short in pairs]
