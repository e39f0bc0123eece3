"""STAR files as text: named tables whose values stay exactly the text that was read.

The `starfile` library guesses types (micrograph 007 becomes the number 7), takes every # as a comment
and pads short rows; a pass through this project must change nothing but what it means to change.
"""

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TextIO

import pandas as pd

from cryoforum.errors import InputError

# Only ASCII blanks part values, as in RELION: a no-break or an ideographic space is part of a name.
_TOKEN = re.compile(r"""(?<!\S)(?:"([^"]*)"|'([^']*)')(?!\S)|(\S+)""", re.ASCII)
_NEEDS_QUOTES = re.compile(r"""^$|\s|^[#"']""", re.ASCII)
_WORD = re.compile(r"\S+", re.ASCII)
_KEYWORDS = ("data_", "loop_", "_")  # with which a line begins that is no row
_ODD_BYTES = "surrogateescape"  # in file names of other encodings they come back unchanged
_CHUNK_ROWS = 20_000  # rows that are lists of Python strings at a time: a table takes a fraction of that


@dataclass
class _Table:
    block: str
    is_loop: bool
    columns: list[str] = field(default_factory=list)
    rows: list[list[str]] = field(default_factory=list)
    finished: list[pd.DataFrame] = field(default_factory=list)

    def append(self, values: list[str]) -> None:
        self.rows.append(values)
        if len(self.rows) == _CHUNK_ROWS:
            self._finish_rows()

    def dataframe(self, path: Path) -> pd.DataFrame:
        """All rows as a table of str; InputError, which names ``path``, where two columns have one name."""
        repeated = [column for column in self.columns if self.columns.count(column) > 1]
        if repeated:
            raise InputError(f"{path}: column {repeated[0]} occurs twice in data_{self.block}")
        if self.rows or not self.finished:
            self._finish_rows()
        return self.finished[0] if len(self.finished) == 1 else pd.concat(self.finished, ignore_index=True)

    def _finish_rows(self) -> None:
        self.finished.append(pd.DataFrame(self.rows, columns=self.columns, dtype=str))
        self.rows = []

    @property
    def has_rows(self) -> bool:
        return bool(self.rows or self.finished)

    def takes_as_row(self, values: list[str], is_quoted: bool) -> bool:
        """Whether a line belongs to this loop; even where it starts with data_ as a file name may."""
        if not self.is_loop or not self.columns:
            return False
        if is_quoted or not values[0].startswith(_KEYWORDS):
            return True
        is_header = values[0].startswith("_") and not self.has_rows
        return len(values) == len(self.columns) > 1 and not is_header


def read_tables(path: Path) -> list[tuple[str, pd.DataFrame]]:
    """All (block name, table of str) of a STAR file, in order.

    A list of `_name value` pairs is a table of one row. InputError where the file is no STAR file.
    """
    tables: list[_Table] = []
    block: str | None = None
    current: _Table | None = None
    for number, values, is_quoted in _numbered_lines(path):
        first = values[0]
        if current is not None and current.takes_as_row(values, is_quoted):
            if len(values) != len(current.columns):
                raise InputError(
                    f"{path}, line {number}: expected {len(current.columns)} values, one for each column of "
                    f"data_{current.block}, found {len(values)}; the file may be cut off or badly edited"
                )
            current.append(values)
        elif first.startswith("data_"):
            block, current = first.removeprefix("data_"), None
        elif block is not None and first == "loop_":
            current = _Table(block, is_loop=True)
            tables.append(current)
        elif block is not None and first.startswith("_"):
            if current is None or current.has_rows and current.is_loop:
                current = _Table(block, is_loop=False, rows=[[]])
                tables.append(current)
            current.columns.append(first[1:])
            if not current.is_loop:
                current.rows[0].append(" ".join(values[1:]))
        else:
            raise InputError(
                f"{path}, line {number}: expected data_, loop_ or _name of a STAR file, found '{first[:40]}'"
            )
    return [(table.block, table.dataframe(path)) for table in tables]


def first_value(path: Path, column: str) -> str | None:
    """That of the first row of the first loop with such a column; the rest of the file is not read."""
    current = _Table("", is_loop=True)
    for _, values, is_quoted in _numbered_lines(path):
        if current.takes_as_row(values, is_quoted):
            if column in current.columns:
                return values[current.columns.index(column)]
            current.rows = [values]
        elif values[0].startswith("_"):
            current.columns.append(values[0][1:])
        else:
            current = _Table("", is_loop=True)
    return None


def write_tables(file: TextIO, tables: Iterable[tuple[str, pd.DataFrame]], version_line: str = "") -> None:
    """Write (block name, table of str) loops as RELION does, each after ``version_line``."""
    for block, table in tables:
        file.write(f"\n{version_line}\n\ndata_{block}\n\nloop_\n")
        file.writelines(f"_{column} #{number}\n" for number, column in enumerate(table.columns, 1))
        write_rows(file, table)
        file.write("\n")


def write_rows(file: TextIO, table: pd.DataFrame) -> None:
    """Write the lines of a table without its header."""
    for start in range(0, len(table), _CHUNK_ROWS):
        chunk = table.iloc[start : start + _CHUNK_ROWS]
        columns = [chunk[column].tolist() for column in chunk.columns]
        file.writelines(_line(row) for row in zip(*columns, strict=True))


def open_for_writing(path: Path, mode: Literal["w", "a"] = "w") -> TextIO:
    """A text file in the encoding that `read_tables` reads; mode "w" or, to add to it, "a"."""
    return open(path, mode, newline="\n", encoding="utf-8", errors=_ODD_BYTES)


def _numbered_lines(path: Path) -> Iterator[tuple[int, list[str], bool]]:
    """Of each line that is not empty or a comment: number from 1, values, whether quotes hide a keyword."""
    if not os.path.isfile(path):  # unlike Path's, false for a name that is too long
        raise InputError(f"STAR file {path} not found")
    with open(path, encoding="utf-8", errors=_ODD_BYTES) as file:
        for number, line in enumerate(file, 1):
            if "\0" in line:
                raise InputError(f"{path}: expected a STAR file, found a binary file")
            values = _values(line.removeprefix("\ufeff") if number == 1 else line)
            if values:
                yield number, values, values[0].startswith(_KEYWORDS) and line.lstrip()[0] in "'\""


def _values(line: str) -> list[str]:
    if not _has_marks(line):
        return _words(line)
    values = []
    for match in _TOKEN.finditer(line):
        double, single, plain = match.groups()
        if plain is not None and plain.startswith("#"):
            break
        values.append(next(value for value in (double, single, plain) if value is not None))
    return values


def _line(values: Sequence[str]) -> str:
    line = " ".join(values)
    if values[0].startswith("_") or len(values) == 1 and values[0].startswith(_KEYWORDS):
        return " ".join([_in_quotes(values[0]), *map(_quoted, values[1:])]) + "\n"
    if _has_marks(line) or _words(line) != list(values):  # rare, and dear to ask of every value
        line = " ".join(map(_quoted, values))
    return line + "\n"


def _words(line: str) -> list[str]:
    """What stands between ASCII blanks; `str.split`, which is faster, knows further blanks beyond ASCII."""
    return line.split() if line.isascii() else _WORD.findall(line)


def _has_marks(text: str) -> bool:
    return "#" in text or '"' in text or "'" in text


def _quoted(value: str) -> str:
    return _in_quotes(value) if _NEEDS_QUOTES.search(value) else value


def _in_quotes(value: str) -> str:
    mark = "'" if '"' in value else '"'
    if mark in value or "\n" in value:
        raise InputError(f"the value {value!r} cannot be written to a STAR file; rename it")
    return f"{mark}{value}{mark}"
