"""Particle files from one format into another; images are not touched and need not be there."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from cryoforum.choices import RelionDialect, check_choice
from cryoforum.commands.correct import Corrections, corrected
from cryoforum.dataset.columns import HALF_SET, IMAGE_NAME
from cryoforum.dataset.particle_table import (
    ParticleTable,
    missing_columns,
    optics_rows,
    split_image_name,
    with_columns,
)
from cryoforum.dataset.repeats import found_repeats, warn_of_oversights
from cryoforum.errors import InputError
from cryoforum.io.cryosparc.reading import lost_in_table
from cryoforum.io.image_paths import StackFinder
from cryoforum.io.join import joined
from cryoforum.io.located_images import image_numbers
from cryoforum.io.mrc.header import read_header
from cryoforum.io.particle_files import CRYOSPARC, check_writable, read_files, write_particle_file
from cryoforum.io.predictions import half_sets_are_independent, without_own_columns
from cryoforum.io.relion.dialects import relion30, relion31
from cryoforum.io.relion.particles import poses_from_table
from cryoforum.io.relion.units import refuse_impossible_ctf, refuse_impossible_pixel_sizes
from cryoforum.reconstruction.half_sets import drawn_half_sets
from cryoforum.storage.files import check_output

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ConvertRequest:
    """What `cryoforum convert` is asked for.

    Parameters
    ----------
    inputs
        A particle file, or several to be joined; a .cs file and its passthrough files are one.
    out
        Where to write, in the format of its suffix.
    relion
        Dialect of a STAR file; None for 3.1, or for that of the input where it is corrected.
    root
        Folder that image names are looked for in first.
    corrections
        What the file said otherwise than it meant.
    overwrite
        Replace what is there.
    drop_unusable
        Leave out particles whose numbers are none or cannot be, rather than refuse the file.
    plain
        Leave out the columns of our own predictions.
    """

    inputs: Sequence[Path]
    out: Path
    relion: RelionDialect | None = None
    root: Path | None = None
    corrections: Corrections = Corrections()
    overwrite: bool = False
    drop_unusable: bool = False
    plain: bool = False

    def __post_init__(self) -> None:
        check_choice("--relion", self.relion, RelionDialect)
        if self.relion is not None and Path(self.out).suffix == CRYOSPARC:
            raise InputError(f"expected --relion with a .star file at --out, found {self.out}")


def convert(request: ConvertRequest) -> int:
    """Write the particles in another format, or corrected; how many. InputError: nothing to do."""
    out, relion, root = Path(request.out), request.relion, request.root
    if any(Path(path).resolve() == out.resolve() for path in request.inputs):
        raise InputError(f"expected another name at --out than the input's, found {out}")
    check_output(out, request.overwrite)
    tables = read_files(request.inputs, request.drop_unusable)
    independent = [half_sets_are_independent(each) for each in tables]
    table = tables[0] if len(tables) == 1 else joined(with_half_sets_in_all(tables), root)
    check_writable(table, out)
    to_cryosparc = out.suffix == CRYOSPARC
    if request.plain:
        table = without_own_columns(table)
    if HALF_SET in table.particles and not all(independent) and half_sets_are_independent(table):
        logger.warning(
            f"{out} no longer says that one reference aligned both half sets: after a refinement that starts "
            "from these poses, keep to low frequencies first, or the resolution is optimistic"
        )
    is_changed = request.plain or request.drop_unusable or len(tables) > 1
    if request.corrections == Corrections() and not is_changed:
        _refuse_idle_work(table, out, "cryoSPARC" if to_cryosparc else f"RELION {relion or '3.1'}")
    elif relion is None and table.optics is None:  # a correction keeps the dialect
        relion = "3.0"
    _tell_of_oversights(table, root)
    table = corrected(table, request.corrections)
    _refuse_unusable(table)
    converted = _for_cryosparc(table, root) if to_cryosparc else _for_relion(table, relion, root)
    write_particle_file(converted, out)
    return len(table)


def _tell_of_oversights(table: ParticleTable, root: Path | None) -> None:
    """Symmetry-expanded sets are meant to hold an image several times; others are not."""
    numbers = image_numbers(table, root)
    if len(numbers.unique()) < len(numbers):
        warn_of_oversights(table, found_repeats(numbers, poses_from_table(table)))


def with_half_sets_in_all(tables: Sequence[ParticleTable]) -> list[ParticleTable]:
    """The files, with half sets drawn for those that have none beside others that have some."""
    having = [HALF_SET in table.particles for table in tables]
    result = list(tables)
    for position, table in enumerate(tables):
        if any(having) and not having[position]:
            logger.warning(f"{table.path}: no {HALF_SET}, which other files have: half sets are drawn")
            drawn = drawn_half_sets(table.particles[IMAGE_NAME].tolist())
            result[position] = with_columns(table, {HALF_SET: drawn.numpy()})
    return result


def _refuse_idle_work(table: ParticleTable, out: Path, wanted: str) -> None:
    if table.dataset is not None:
        found = "cryoSPARC" if not table.companions else "cryoSPARC, in several files"
    else:
        found = "RELION 3.0" if table.optics is None else "RELION 3.1"
    if found == wanted:
        raise InputError(f"{table.path} is a file of {found} already: nothing to convert into {out}")


def _refuse_unusable(table: ParticleTable) -> None:
    """InputError where what is read from the result would be refused: no number, or in another unit."""
    refuse_impossible_ctf(table)
    if not missing_columns(table, ["rlnImagePixelSize"]):
        refuse_impossible_pixel_sizes(table)
        poses_from_table(table)


def _for_cryosparc(table: ParticleTable, root: Path | None) -> ParticleTable:
    if table.dataset is not None:
        return table
    return _with_image_sizes(table, root, "there is no blob/shape, which cryoSPARC needs")


def _for_relion(table: ParticleTable, relion: str | None, root: Path | None) -> ParticleTable:
    lost = lost_in_table(table)
    if lost:
        logger.warning(
            f"not written, as RELION counts it otherwise: {', '.join(lost)}; estimate it there again"
        )
    if table.dataset is not None and (table.particles["rlnImageName"].str.endswith(".mrc")).any():
        logger.warning(
            "RELION takes .mrc for maps: link the stacks under names in .mrcs, and change rlnImageName"
        )
    if relion == "3.0":
        return relion30(table)
    return _with_image_sizes(table, root, "rlnImageSize is left out, which RELION needs")


def _with_image_sizes(table: ParticleTable, root: Path | None, without: str) -> ParticleTable:
    """In the dialect of RELION 3.1, with rlnImageSize where the first stack of every optics group is found.

    ``without``: what follows where one is not, for a warning.
    """
    table = relion31(table)
    if table.optics is None or not missing_columns(table, ["rlnImageSize"]):
        return table
    used, first_rows = np.unique(optics_rows(table, table.optics), return_index=True)
    finder = StackFinder(table.path.absolute().parent, root)
    names = table.particles["rlnImageName"].iloc[first_rows]
    try:
        stacks = [finder.find(split_image_name(name)[1]) for name in names]
    except InputError as error:
        logger.warning(f"{without}: {error}")
        return table
    boxes = [read_header(stack).layout.shape[2] for stack in stacks]
    # A group without particles has no stack to ask; any size does.
    sizes = [str(boxes[0])] * len(table.optics)
    for group, box in zip(used, boxes, strict=True):
        sizes[group] = str(box)
    return replace(table, optics=table.optics.assign(rlnImageSize=sizes).astype(str))
