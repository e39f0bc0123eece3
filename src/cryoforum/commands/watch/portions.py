"""Predicted portions of the input files: what lies in OUT/predicted, and what it is of.

The name of a portion says all: its number in the order of arrival, the input file, the rows, and a hash of
their text. So its being there, which is one atomic step, means that it is done, and an input file that
changes shows which portions still hold.
"""

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from cryoforum.dataset.columns import EXPECTED_ERROR, IMAGE_NAME, OPTICS_GROUP, SIGNAL_SCALE
from cryoforum.dataset.particle_table import ParticleTable, number_column, split_image_name, with_columns
from cryoforum.errors import InputError
from cryoforum.io.image_paths import StackFinder
from cryoforum.io.located_images import located_images

ROWS = 20_000  # in a portion at most: maps and report follow a large file while it is being predicted
_NAME = re.compile(r"(\d{6,})-(.*-[0-9a-f]{8})-(\d+)-(\d+)-([0-9a-f]{12})\.star")


@dataclass(frozen=True)
class Portion:
    """Rows ``start`` to ``stop`` of the input file that ``source`` stands for, predicted in ``path``."""

    path: Path
    number: int
    source: str
    start: int
    stop: int
    digest: str


def listed_portions(folder: Path) -> list[Portion]:
    """All finished portions, in the order of their arrival."""
    portions = [
        Portion(path, int(match[1]), match[2], int(match[3]), int(match[4]), match[5])
        for path in Path(folder).iterdir()
        if (match := _NAME.fullmatch(path.name))
    ]
    return sorted(portions, key=lambda portion: (portion.number, portion.path.name))


def source_of(path: Path, folder: Path) -> str:
    """A name for an input file of ``folder``: readable, and unique by a hash of its whole path there."""
    relative = Path(path).relative_to(folder).as_posix()
    readable = re.sub(r"[^A-Za-z0-9.]+", "_", relative.removesuffix(Path(path).suffix))[-60:]
    return f"{readable}-{hashlib.sha256(relative.encode('utf-8', 'surrogateescape')).hexdigest()[:8]}"


def split_by_change(
    table: ParticleTable, source: str, portions: Iterable[Portion]
) -> tuple[int, list[Portion]]:
    """How many of the first rows are predicted already, and the portions of the file that hold no longer."""
    own = [portion for portion in portions if portion.source == source]
    valid: list[Portion] = []
    position = 0
    while following := [
        portion
        for portion in own
        if portion.start == position
        and portion.stop <= len(table)
        and portion.digest == digest_of_rows(table, portion.start, portion.stop)
    ]:
        valid.append(following[0])
        position = following[0].stop
    return position, [portion for portion in own if portion not in valid]


def new_portions(table: ParticleTable, source: str, start: int, folder: Path) -> list[Portion]:
    """The rows from ``start`` on as portions to predict, numbered after all that are there.

    One that a kill interrupted gets the number it had, so that it is gone on with.
    """
    number = 1 + max((portion.number for portion in listed_portions(folder)), default=0)
    result = []
    for first in range(start, len(table), ROWS):
        last = min(first + ROWS, len(table))
        digest = digest_of_rows(table, first, last)
        rest = f"{source}-{first}-{last}-{digest}.star"
        begun = [int(log.name[1:].split("-")[0]) for log in folder.glob(f".*-{rest}.progress-1-of-1")]
        number = max(number, *begun) if begun else number
        result.append(Portion(folder / f"{number:06d}-{rest}", number, source, first, last, digest))
        number += 1
    return result


def digest_of_rows(table: ParticleTable, start: int, stop: int) -> str:
    """Hash of the text of some rows and of their optics groups."""
    frame = table.particles.iloc[start:stop]
    digest = hashlib.sha256("\t".join(frame.columns).encode())
    columns = [frame[name].tolist() for name in frame.columns]
    text = "\n".join("\t".join(row) for row in zip(*columns, strict=True))
    digest.update(text.encode("utf-8", "surrogateescape"))
    if table.optics is not None:
        optics = table.optics
        if OPTICS_GROUP in optics and OPTICS_GROUP in frame:
            optics = optics[optics[OPTICS_GROUP].isin(set(frame[OPTICS_GROUP]))]
        digest.update(repr(optics.to_dict("records")).encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:12]


def with_findable_names(table: ParticleTable, root: Path | None, place: Path) -> ParticleTable:
    """The same file with image names that a file in the folder ``place`` may use without a root.

    A name stays where it means the same stack from there, and becomes an absolute path where it does not:
    whoever reads the file may be in any folder. InputError where a stack is not found.
    """
    finder = StackFinder(table.path.absolute().parent, root)

    @cache
    def findable(stack: str) -> str:
        meant = finder.find(stack)
        return stack if _leads_to(stack, place, meant) else str(meant.absolute())

    parts = map(split_image_name, table.particles[IMAGE_NAME])
    return with_columns(table, {IMAGE_NAME: [number + findable(stack) for number, stack in parts]})


def _leads_to(stack: str, place: Path, meant: Path) -> bool:
    """Whether the first file of that name in ``place`` or above is the one that is meant."""
    found = (folder / stack for folder in (place, *place.parents) if (folder / stack).is_file())
    first = next(found, None)
    return first is not None and first.resolve() == meant.resolve()


def image_keys(table: ParticleTable) -> list[str]:
    """What tells one image from another, whatever it is called: its slice, and the path of its stack."""
    finder = StackFinder(table.path.absolute().parent)

    @cache
    def place_of(stack: str) -> str:
        try:
            return str(finder.find(stack).resolve())
        except InputError:  # removed after it was predicted
            return stack

    parts = map(split_image_name, table.particles[IMAGE_NAME])
    return [f"{int(number.removesuffix('@') or 1)}@{place_of(stack)}" for number, stack in parts]


def last_change_of_images(table: ParticleTable, root: Path | None) -> float:
    """When the last of the stacks was changed, in the time of `time.time`. InputError: one is missing."""
    return max(stack.stat().st_mtime for stack in set(located_images(table, root).stacks))


@dataclass(frozen=True)
class PortionScores:
    """What is kept in memory of a portion: keys of its images, expected errors in degrees, signal scales.

    apart: whether each half set was compared with its own half's reference. scales: empty without one.
    """

    keys: Sequence[str]
    errors_deg: np.ndarray
    scales: np.ndarray
    apart: bool


def scores_of(table: ParticleTable, apart: bool) -> PortionScores:
    """Read from a predicted portion."""
    errors, scales = number_column(table, EXPECTED_ERROR), number_column(table, SIGNAL_SCALE)
    if errors is None:
        raise InputError(f"{table.path}: expected a column {EXPECTED_ERROR}")
    scales = np.empty(0) if scales is None else scales
    return PortionScores(image_keys(table), errors.astype(np.float32), scales.astype(np.float32), apart)
