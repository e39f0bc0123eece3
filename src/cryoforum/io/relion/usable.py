"""Rows of a particle table that cannot be used, as a number that is read from them is none or cannot be."""

import logging
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from cryoforum.dataset.columns import (
    ANGLE_COLUMNS,
    CTF_COLUMNS,
    HALF_SET,
    ORIGIN_COLUMNS,
    ORIGIN_PIXEL_COLUMNS,
)
from cryoforum.dataset.particle_table import (
    ParticleTable,
    numbers_of_rows,
    numbers_or_nan,
    optics_rows,
    select_rows,
)
from cryoforum.errors import InputError
from cryoforum.io.relion.units import OF_THE_CTF

logger = logging.getLogger(__name__)

_PIXEL_SIZE = ("rlnImagePixelSize", "rlnDetectorPixelSize", "rlnMagnification")
_READ = (
    *ANGLE_COLUMNS,
    *ORIGIN_COLUMNS,
    *ORIGIN_PIXEL_COLUMNS,
    *CTF_COLUMNS,
    "rlnPhaseShift",
    *_PIXEL_SIZE,
    HALF_SET,
)


def without_unusable_rows(table: ParticleTable) -> ParticleTable:
    """The particles all of whose numbers can be; the others are logged by column, with their first rows.

    InputError where none is left.
    """
    usable = np.ones(len(table), dtype=bool)
    for expected, wrong in _faults(table):
        logger.warning(
            f"{table.path}: {wrong.sum()} of {len(table)} particles are left out "
            f"(rows {numbers_of_rows(wrong)}): expected {expected}"
        )
        usable &= ~wrong
    if not usable.any():
        raise InputError(f"{table.path}: expected particles that can be used, found none")
    return table if usable.all() else _without_empty_groups(select_rows(table, usable), table)


def _without_empty_groups(kept: ParticleTable, table: ParticleTable) -> ParticleTable:
    """The particles that were kept, without the optics groups that lost all of theirs."""
    if table.optics is None or kept.optics is None:
        return kept
    lost = set(optics_rows(table, table.optics)) - set(optics_rows(kept, kept.optics))
    return replace(
        kept, optics=kept.optics.drop(index=kept.optics.index[sorted(lost)]).reset_index(drop=True)
    )


def _faults(table: ParticleTable) -> Iterator[tuple[str, np.ndarray]]:
    """What is expected, and in which rows (n,) something else is found."""
    quantities = {quantity.column: quantity for quantity in OF_THE_CTF}
    for column in _READ:
        values = numbers_or_nan(table, column)
        if values is None:
            continue
        expected, wrong = f"a number in column {column}", ~np.isfinite(values)
        if column in _PIXEL_SIZE:
            expected, wrong = f"{column} above 0", wrong | (values <= 0)
        elif column == HALF_SET:
            expected, wrong = f"{column} 1 or 2", ~np.isin(values, (1, 2))
        elif column in quantities:
            expected = quantities[column].expected(column)
            wrong = wrong | quantities[column].is_impossible(values)
        if wrong.any():
            yield expected, wrong
