"""One STAR file of the rows of many, which grows while others may read it."""

import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from cryoforum.io.files import replacing
from cryoforum.io.particlestar import ParticleStar, select_rows, write_star
from cryoforum.io.startables import open_for_writing, write_rows

_GROUP = "rlnOpticsGroup"


class GrowingStar:
    """The rows of many files in one, which is whole at any moment.

    `append` copies the file and adds lines to the copy, without reading what was there; where that is not
    possible, as a new optics group has come, it says so and `rewrite` has to read everything again, one file
    at a time.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._head: ParticleStar | None = None  # optics and columns of what was written, without rows

    def rewrite(self, stars: Callable[[], Iterable[ParticleStar]]) -> None:
        """Write anew all files that a call of ``stars`` gives; it is called twice. No row: no file."""
        head = None
        for star in filter(len, stars()):
            head = select_rows(joined([star] if head is None else [head, star]), [])
        self._head = head
        if head is None:
            self.path.unlink(missing_ok=True)
            return
        with replacing(self.path) as temporary:
            write_star(head, temporary)
            self._add(temporary, head, filter(len, stars()))

    def append(self, stars: Sequence[ParticleStar]) -> bool:
        """Add the rows of more files; False, and nothing done, where all has to be written anew."""
        if self._head is None or not self.path.is_file():
            return False
        stars = [star for star in stars if len(star)]
        if not all(_fits(joined([self._head, select_rows(star, [])]), self._head) for star in stars):
            return False
        if stars:
            with replacing(self.path) as temporary:
                shutil.copyfile(self.path, temporary)
                self._add(temporary, self._head, stars)
        return True

    @staticmethod
    def _add(path: Path, head: ParticleStar, stars: Iterable[ParticleStar]) -> None:
        with open(path, "r+b") as binary:
            binary.seek(-1, 2)  # the empty line after the last row would end the table
            binary.truncate()
        with open_for_writing(path, "a") as file:
            for star in stars:
                write_rows(file, joined([head, star]).particles)
            file.write("\n")


def joined(stars: Sequence[ParticleStar]) -> ParticleStar:
    """The rows of all files in one, with the columns that all have.

    Unlike `io.joining` it looks at tables alone, so that adding to a file costs what is added. Optics groups
    of the same values are one; others keep their number where it is free. ValueError where only some files
    have optics.
    """
    first = stars[0]
    for star in stars:
        if (star.optics is None) != (first.optics is None):
            raise ValueError(f"{star.path}: expected data_optics as in {first.path}, or in none of the two")
    tables = [star.particles for star in stars]
    if first.optics is None:
        return replace(first, particles=_concatenated(tables))
    columns = _common_columns([star.optics for star in stars if star.optics is not None])
    groups: dict[tuple[str, ...], dict[str, str]] = {}
    renumbered = []
    for star, table in zip(stars, tables, strict=True):
        if star.optics is None or _GROUP not in star.optics or _GROUP not in table:
            raise ValueError(f"{star.path}: expected a column {_GROUP} in data_optics and data_particles")
        number_of = {}
        for row in star.optics[columns].to_dict("records"):
            values = tuple(value for name, value in row.items() if name != _GROUP)
            if values not in groups:
                groups[values] = {**row, _GROUP: _free(row[_GROUP], groups.values())}
            number_of[row[_GROUP]] = groups[values][_GROUP]
        renumbered.append(table.assign(**{_GROUP: table[_GROUP].map(number_of).astype(str)}))
    optics = pd.DataFrame(list(groups.values()), columns=columns, dtype=str)
    return replace(first, optics=optics, particles=_concatenated(renumbered))


def _free(number: str, groups: Iterable[dict[str, str]]) -> str:
    """The number or, where another group has it, the first that none has."""
    taken = {group[_GROUP] for group in groups}
    return next(each for each in (number, *map(str, range(1, len(taken) + 2))) if each not in taken)


def _concatenated(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    columns = _common_columns(tables)
    return pd.concat([table[columns] for table in tables], ignore_index=True)


def _common_columns(tables: Sequence[pd.DataFrame]) -> list[str]:
    return [name for name in tables[0].columns if all(name in table for table in tables)]


def _fits(star: ParticleStar, head: ParticleStar) -> bool:
    """Whether a table has the columns and the optics of the other."""
    optics_agree = star.optics is None or (head.optics is not None and star.optics.equals(head.optics))
    return optics_agree and list(star.particles.columns) == list(head.particles.columns)
