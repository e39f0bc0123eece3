"""The tables of a particle file, whose values stay text until a number is asked for."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from torch import Tensor

from cryoforum.dataset.columns import OPTICS_OF_READING
from cryoforum.errors import InputError
from cryoforum.fields.rows import Index, as_rows

ROWS_NAMED = 5  # of the rows that have a fault


@dataclass(frozen=True)
class ParticleTable:
    """The tables of a particle file in RELION's terms; every value is the text that was read.

    Parameters
    ----------
    path
        Where the file was read, for messages and for image names that are relative to it.
    optics
        One row an optics group; None in the RELION 3.0 dialect.
    particles
        One row a particle.
    dataset
        cryoSPARC's records (n,) of the same particles, where they came from there; None otherwise.
    companions
        Further files that the rows were merged from.
    """

    path: Path
    optics: pd.DataFrame | None
    particles: pd.DataFrame
    dataset: np.ndarray | None = None
    companions: tuple[Path, ...] = ()

    def __len__(self) -> int:
        return len(self.particles)


def select_rows(table: ParticleTable, index: Index) -> ParticleTable:
    """The particles of the given rows (as `fields.rows.as_rows` takes them), in that order.

    All optics groups stay.
    """
    chosen = as_rows(index, len(table)).cpu().numpy()
    particles = table.particles.iloc[chosen].reset_index(drop=True)
    return replace(
        table, particles=particles, dataset=None if table.dataset is None else table.dataset[chosen]
    )


def with_columns(
    table: ParticleTable, columns: Mapping[str, np.ndarray | pd.Series | Tensor | Sequence[str | int]]
) -> ParticleTable:
    """The same file with particle columns replaced, or appended where they are new."""
    particles = table.particles.copy()
    for name, values in columns.items():
        if len(values) != len(particles):
            raise InputError(f"{table.path}: expected {len(particles)} values of {name}, found {len(values)}")
        particles[name] = pd.Series(_formatted(name, values), index=particles.index, dtype=str)
    return replace(table, particles=particles)


def missing_columns(table: ParticleTable, columns: Iterable[str]) -> tuple[str, ...]:
    """Those of the columns that neither the particles nor their optics groups have."""
    present = {*table.particles.columns, *(() if table.optics is None else table.optics.columns)}
    return tuple(column for column in columns if column not in present)


def number_column(table: ParticleTable, column: str) -> np.ndarray | None:
    """A number for each particle, (n,) float64, of its optics group or row; None without the column.

    InputError where a value is no finite number: it names file, row and image.
    """
    found = _texts_and_rows(table, column)
    if found is None:
        return None
    texts, rows = found
    numbers = _as_numbers(texts)[rows]
    refuse_rows(
        table,
        ~np.isfinite(numbers),
        lambda row: f"expected a number in column {column}, found '{texts.iloc[rows[row]]}'",
        "; correct it, or leave such rows out with cryoforum convert --drop-unusable",
    )
    return numbers


def numbers_or_nan(table: ParticleTable, column: str) -> np.ndarray | None:
    """What `number_column` gives, with NaN where a value is no number."""
    found = _texts_and_rows(table, column)
    return None if found is None else _as_numbers(found[0])[found[1]]


def _texts_and_rows(table: ParticleTable, column: str) -> tuple[pd.Series, np.ndarray] | None:
    """The values of a column, of optics groups or of particles, and which of them each particle has, (n,)."""
    if table.optics is not None and column in table.optics:
        return table.optics[column], optics_rows(table, table.optics)
    return (table.particles[column], np.arange(len(table))) if column in table.particles else None


def _as_numbers(texts: pd.Series) -> np.ndarray:
    return pd.to_numeric(texts, errors="coerce").to_numpy(dtype=np.float64)


def number_columns(table: ParticleTable, columns: Sequence[str]) -> list[np.ndarray] | None:
    """`number_column` of each of the columns; None where one of them is missing."""
    if missing_columns(table, columns):
        return None
    return [values for column in columns if (values := number_column(table, column)) is not None]


def optics_rows(table: ParticleTable, optics: pd.DataFrame) -> np.ndarray:
    """Row of ``optics``, the data_optics of ``table``, that each particle belongs to, (n,)."""
    if "rlnOpticsGroup" not in optics or "rlnOpticsGroup" not in table.particles:
        if len(optics) == 1:
            return np.zeros(len(table), dtype=np.int64)
        raise InputError(f"{table.path}: expected a column rlnOpticsGroup in data_optics and data_particles")
    group_of_row, known = table.particles["rlnOpticsGroup"], ", ".join(optics["rlnOpticsGroup"])
    groups = pd.Index(pd.to_numeric(optics["rlnOpticsGroup"], errors="coerce"))
    if not groups.is_unique or groups.hasnans:
        raise InputError(
            f"{table.path}: expected another rlnOpticsGroup in each row of data_optics, found {known}"
        )
    rows = groups.get_indexer(pd.to_numeric(group_of_row, errors="coerce"))
    refuse_rows(
        table,
        rows < 0,
        lambda row: f"optics group '{group_of_row.iloc[row]}' is not in data_optics ({known})",
    )
    return rows


def refuse_rows(
    table: ParticleTable, wrong: np.ndarray, problem_of: Callable[[int], str], remedy: str = ""
) -> None:
    """InputError with the place and the problem of the first row that is ``wrong`` (n,), if any is.

    Where there are more such rows the message says how many, and which are the first; ``remedy`` ends it.
    """
    if wrong.any():
        row = int(wrong.argmax())
        raise InputError(f"{place_of_row(table, row)}: {problem_of(row)}{and_further_rows(wrong)}{remedy}")


def and_further_rows(wrong: np.ndarray) -> str:
    """How many of all rows are ``wrong`` (n,), and the numbers of the first; empty where just one is."""
    count = int(wrong.sum())
    if count < 2:
        return ""
    if wrong.all():
        return f" (so it is in all {count} rows)"
    return f" (so it is in {count} of {len(wrong)} rows: {numbers_of_rows(wrong)})"


def numbers_of_rows(wrong: np.ndarray) -> str:
    """The numbers, from 1, of the first rows of a mask (n,), as in ``3, 4, …``."""
    rows = np.flatnonzero(wrong) + 1
    return ", ".join(map(str, rows[:ROWS_NAMED])) + (", …" if len(rows) > ROWS_NAMED else "")


def where_to_add(table: ParticleTable, column: str) -> str:
    """What a user may do about a column that is missing: where it belongs in this file."""
    if table.dataset is not None:
        return "merge the file that has it: cryoforum convert PARTICLES.cs PASSTHROUGH.cs --out merged.cs"
    if table.optics is not None:
        return f"add the column to {'data_optics' if column in OPTICS_OF_READING else 'data_particles'}"
    if "rlnOpticsGroup" in table.particles:
        return (
            "the rows name optics groups, but there is no data_optics: put that of the file which they came "
            "from before data_particles"
        )
    return "add the column to the table of particles (without data_optics every row has its own value)"


def place_of_row(table: ParticleTable, row: int) -> str:
    """Where an error is: file, row from 1, and image name."""
    return f"{table.path}, row {row + 1} ({table.particles['rlnImageName'].iloc[row]})"


def split_image_name(name: str) -> tuple[str, str]:
    """The slice with its @, and the stack: 000001@ and stack.mrcs; as in RELION the first @ counts.

    The slice is empty in the name of a single image.
    """
    number, at, stack = name.partition("@")
    return (number + at, stack) if at else ("", name)


def normalised_image_name(name: str) -> str:
    """One name for all spellings: 1@./a//b.mrcs is 1@a/b.mrcs; a name that is none stays as it is."""
    at_slice, stack = split_image_name(name)
    number = at_slice.removesuffix("@") or "1"
    return f"{int(number)}@{os.path.normpath(stack)}" if number.isdecimal() and stack else name


def format_numbers(values: np.ndarray | pd.Series | Sequence[float]) -> list[str]:
    """Six decimals as RELION writes; nine digits where six decimals would lose more than float32 does."""
    numbers = np.asarray(values, dtype=np.float64)
    is_short = np.abs(np.round(numbers, 6) - numbers) <= 1e-6 * np.abs(numbers)
    pairs = zip(numbers.tolist(), is_short.tolist(), strict=True)
    return [f"{value:.6f}" if short else f"{value:.9g}" for value, short in pairs]


def _formatted(name: str, values: np.ndarray | pd.Series | Tensor | Sequence[str | int]) -> list[str]:
    """The text of a column; InputError where a number is NaN or infinite."""
    array = np.asarray(values)
    if array.ndim != 1:
        raise InputError(f"expected one value of {name} for each particle, found shape {array.shape}")
    if array.dtype.kind in "biu":
        return [str(int(value)) for value in array]
    if array.dtype.kind != "f":
        return [str(value) for value in values]
    if not np.isfinite(array).all():
        row = int((~np.isfinite(array)).argmax())
        raise InputError(f"cannot write {name}: row {row + 1} is {array[row]}")
    return format_numbers(array)
