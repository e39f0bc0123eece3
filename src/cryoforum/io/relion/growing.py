"""One STAR file of the rows of many, which grows while others may read it."""

import re
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from cryoforum.dataset.particle_table import ParticleTable, optics_rows, select_rows
from cryoforum.errors import InputError
from cryoforum.io.join import NEUTRAL_OPTICS, NEUTRAL_PARTICLE, free_name, with_common_columns
from cryoforum.io.relion.star_files import write_star
from cryoforum.io.relion.star_text import open_for_writing, write_rows
from cryoforum.storage.files import replacing

_GROUP, _NAME = "rlnOpticsGroup", "rlnOpticsGroupName"


class GrowingStar:
    """The rows of many files in one, which is whole at any moment.

    `append` copies the file and adds lines to the copy, without reading what was there; where that is not
    possible, as a new optics group has come, it says so and `rewrite` has to read everything again, one file
    at a time.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._head: ParticleTable | None = None  # optics and columns of what was written, without rows

    def rewrite(self, tables: Callable[[], Iterable[ParticleTable]]) -> None:
        """Write anew all files that a call of ``tables`` gives; it is called twice. No row: no file."""
        head = None
        for table in filter(len, tables()):
            head = select_rows(joined([table] if head is None else [head, table]), [])
        self._head = head
        if head is None:
            self.path.unlink(missing_ok=True)
            return
        with replacing(self.path) as temporary:
            write_star(head, temporary)
            self._add(temporary, head, filter(len, tables()))

    def append(self, tables: Sequence[ParticleTable]) -> bool:
        """Add the rows of more files; False, and nothing done, where all has to be written anew."""
        if self._head is None or not self.path.is_file():
            return False
        tables = [table for table in tables if len(table)]
        if not all(_fits(joined([self._head, select_rows(table, [])]), self._head) for table in tables):
            return False
        if tables:
            with replacing(self.path) as temporary:
                shutil.copyfile(self.path, temporary)
                self._add(temporary, self._head, tables)
        return True

    @staticmethod
    def _add(path: Path, head: ParticleTable, tables: Iterable[ParticleTable]) -> None:
        with open(path, "r+b") as binary:
            binary.seek(-1, 2)  # the empty line after the last row would end the table
            binary.truncate()
        with open_for_writing(path, "a") as file:
            for table in tables:
                write_rows(file, joined([head, table]).particles)
            file.write("\n")


def joined(tables: Sequence[ParticleTable]) -> ParticleTable:
    """The rows of all files in one, with the columns that all have; which are left out is logged.

    As in `io.join` a missing column may have a meaning; but tables alone are looked at, so that adding to a
    file costs what is added. Optics groups of the same name and values are one; others keep their number and
    name where they are free. InputError where only some files have optics.
    """
    check_joinable(tables)
    first, paths = tables[0], [table.path for table in tables]
    if first.optics is None:
        frames = with_common_columns([table.particles for table in tables], paths, {})
        return replace(first, particles=pd.concat(frames, ignore_index=True))
    optics_tables = [table.optics for table in tables if table.optics is not None]
    groups: list[dict[str, str]] = []
    particles = []
    for table, frame in zip(tables, with_common_columns(optics_tables, paths, NEUTRAL_OPTICS), strict=True):
        numbers = np.array([_number_of(row, groups) for row in frame.to_dict("records")], dtype=str)
        particles.append(table.particles.assign(**{_GROUP: numbers[optics_rows(table, frame)]}))
    optics = pd.DataFrame(groups, columns=list(frame), dtype=str)
    frames = with_common_columns(particles, paths, NEUTRAL_PARTICLE)
    return replace(first, optics=optics, particles=pd.concat(frames, ignore_index=True))


def check_joinable(tables: Sequence[ParticleTable]) -> None:
    """InputError where only some of the tables have optics groups, or an optics group is not unique."""
    first = tables[0]
    for table in tables:
        if (table.optics is None) != (first.optics is None):
            raise InputError(f"{table.path}: expected data_optics as in {first.path}, or in none of the two")
        if table.optics is not None:
            optics_rows(table, table.optics)


def _number_of(row: dict[str, str], groups: list[dict[str, str]]) -> str:
    """The number of an optics group among ``groups``, which it is added to where it is new."""
    for group in groups:
        if _values(group) == _values(row) and _may_be_called(group.get(_NAME, ""), row.get(_NAME, "")):
            return group[_GROUP]
    numbers, names = {float(group[_GROUP]) for group in groups}, {group.get(_NAME, "") for group in groups}
    new = dict(row)
    if float(new[_GROUP]) in numbers:
        new[_GROUP] = next(str(free) for free in range(1, len(numbers) + 2) if free not in numbers)
    if _NAME in new and new[_NAME] in names:
        new[_NAME] = free_name(new[_NAME], names)
    groups.append(new)
    return new[_GROUP]


def _values(group: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in group.items() if name not in (_GROUP, _NAME)}


def _may_be_called(given: str, own: str) -> bool:
    """Whether a group's name is its own, or what `free_name` made of it at an earlier joining."""
    return given == own or re.fullmatch(re.escape(own) + r"_\d+", given) is not None


def _fits(table: ParticleTable, head: ParticleTable) -> bool:
    """Whether a table has the columns and the optics of the other."""
    optics_agree = table.optics is None or (head.optics is not None and table.optics.equals(head.optics))
    return optics_agree and list(table.particles.columns) == list(head.particles.columns)
