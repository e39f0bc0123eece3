"""Particle files from one format into another; images are not touched and need not be there."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from cryoforum.commands.correct import Corrections, corrected
from cryoforum.dataset.particle_table import ParticleTable, missing_columns, optics_rows, split_image_name
from cryoforum.errors import InputError
from cryoforum.io.cryosparc.reading import lost_in_table
from cryoforum.io.image_paths import find_file
from cryoforum.io.mrc.header import read_header
from cryoforum.io.particle_files import CRYOSPARC, check_writable, read_each, write_particle_file
from cryoforum.io.relion.dialects import relion30, relion31
from cryoforum.storage.files import refuse_to_overwrite, require_folder_of

NO_CORRECTIONS = Corrections()
Tell = Callable[[str], None]


def convert_file(
    inputs: Sequence[Path],
    out: Path,
    relion: str | None,
    root: Path | None,
    overwrite: bool,
    tell: Tell,
    corrections: Corrections = NO_CORRECTIONS,
) -> int:
    """Write the particles of a file, or of a .cs file and its passthrough files, in the format of ``out``.

    relion: "3.0" or "3.1", the dialect of a STAR file. The number of particles; InputError where there is
    nothing to do.
    """
    if relion not in (None, "3.0", "3.1"):
        raise InputError(f"expected --relion 3.0 or 3.1, found '{relion}'")
    if any(Path(path).resolve() == Path(out).resolve() for path in inputs):
        raise InputError(f"expected another name at --out than the input's, found {out}")
    refuse_to_overwrite(out, overwrite)
    require_folder_of(out)
    table, *others = read_each(inputs)
    if others:
        raise InputError(
            f"expected one particle file, or a .cs file and what it lacks (passthrough), found "
            f"{others[0].path}, too"
        )
    check_writable(table, out, tell)
    for companion in table.companions:
        tell(f"merged with {companion}")
    to_cryosparc = Path(out).suffix == CRYOSPARC
    if to_cryosparc and relion is not None:
        raise InputError(f"expected --relion with a .star file at --out, found {out}")
    if corrections == NO_CORRECTIONS:
        _refuse_idle_work(table, out, "cryoSPARC" if to_cryosparc else f"RELION {relion or '3.1'}")
    elif relion is None and table.optics is None:  # a correction keeps the dialect
        relion = "3.0"
    table = corrected(table, corrections)
    converted = _for_cryosparc(table, root, tell) if to_cryosparc else _for_relion(table, relion, root, tell)
    write_particle_file(converted, out)
    return len(table)


def _refuse_idle_work(table: ParticleTable, out: Path, wanted: str) -> None:
    if table.dataset is not None:
        found = "cryoSPARC" if not table.companions else "cryoSPARC, in several files"
    else:
        found = "RELION 3.0" if table.optics is None else "RELION 3.1"
    if found == wanted:
        raise InputError(f"{table.path} is a file of {found} already: nothing to convert into {out}")


def _for_cryosparc(table: ParticleTable, root: Path | None, tell: Tell) -> ParticleTable:
    if table.dataset is not None:
        return table
    sized = with_image_sizes(relion31(table), root)
    if missing_columns(sized, ["rlnImageSize"]):
        tell("the stacks are not found, so there is no blob/shape, which cryoSPARC needs; give --root")
    return sized


def _for_relion(table: ParticleTable, relion: str | None, root: Path | None, tell: Tell) -> ParticleTable:
    lost = lost_in_table(table)
    if lost:
        tell(f"not written, as RELION counts it otherwise: {', '.join(lost)}; estimate it there again")
    if table.dataset is not None and (table.particles["rlnImageName"].str.endswith(".mrc")).any():
        tell("RELION takes .mrc for maps: link the stacks under names in .mrcs, and change rlnImageName")
    if relion == "3.0":
        return relion30(table)
    sized = with_image_sizes(relion31(table), root)
    if missing_columns(sized, ["rlnImageSize"]):
        tell("the stacks are not found, so rlnImageSize is left out; RELION needs it: give --root")
    return sized


def with_image_sizes(table: ParticleTable, root: Path | None) -> ParticleTable:
    """The same with rlnImageSize, where it is missing and the first stack of every optics group is found."""
    if table.optics is None or not missing_columns(table, ["rlnImageSize"]):
        return table
    used, first_rows = np.unique(optics_rows(table, table.optics), return_index=True)
    boxes = [_box(table, int(row), root) for row in first_rows]
    if None in boxes:
        return table
    sizes = [str(boxes[0])] * len(
        table.optics
    )  # a group without particles has no stack to ask; any size does
    for group, box in zip(used, boxes, strict=True):
        sizes[group] = str(box)
    return replace(table, optics=table.optics.assign(rlnImageSize=sizes).astype(str))


def _box(table: ParticleTable, row: int, root: Path | None) -> int | None:
    """Width in pixels of the image of a row; None where its stack is not found."""
    _, stack = split_image_name(table.particles["rlnImageName"].iloc[row])
    try:
        path = find_file(stack, table.path.absolute().parent, root)
    except InputError:
        return None
    return read_header(path).layout.shape[2]
