"""Particle files from one format into another; images are not touched and need not be there."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from cryoforum.commands.correct import Corrections, corrected
from cryoforum.dataset.particle_table import ParticleStar, missing_columns, optics_rows, split_image_name
from cryoforum.io.cryosparc.reading import lost_in_star
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

    relion: "3.0" or "3.1", the dialect of a STAR file. The number of particles; ValueError where there is
    nothing to do.
    """
    if relion not in (None, "3.0", "3.1"):
        raise ValueError(f"expected --relion 3.0 or 3.1, found '{relion}'")
    if any(Path(path).resolve() == Path(out).resolve() for path in inputs):
        raise ValueError(f"expected another name at --out than the input's, found {out}")
    refuse_to_overwrite(out, overwrite)
    require_folder_of(out)
    star, *others = read_each(inputs)
    if others:
        raise ValueError(
            f"expected one particle file, or a .cs file and what it lacks (passthrough), found "
            f"{others[0].path}, too"
        )
    check_writable(star, out, tell)
    for companion in star.companions:
        tell(f"merged with {companion}")
    to_cryosparc = Path(out).suffix == CRYOSPARC
    if to_cryosparc and relion is not None:
        raise ValueError(f"expected --relion with a .star file at --out, found {out}")
    if corrections == NO_CORRECTIONS:
        _refuse_idle_work(star, out, "cryoSPARC" if to_cryosparc else f"RELION {relion or '3.1'}")
    elif relion is None and star.optics is None:  # a correction keeps the dialect
        relion = "3.0"
    star = corrected(star, corrections)
    converted = _for_cryosparc(star, root, tell) if to_cryosparc else _for_relion(star, relion, root, tell)
    write_particle_file(converted, out)
    return len(star)


def _refuse_idle_work(star: ParticleStar, out: Path, wanted: str) -> None:
    if star.dataset is not None:
        found = "cryoSPARC" if not star.companions else "cryoSPARC, in several files"
    else:
        found = "RELION 3.0" if star.optics is None else "RELION 3.1"
    if found == wanted:
        raise ValueError(f"{star.path} is a file of {found} already: nothing to convert into {out}")


def _for_cryosparc(star: ParticleStar, root: Path | None, tell: Tell) -> ParticleStar:
    if star.dataset is not None:
        return star
    sized = with_image_sizes(relion31(star), root)
    if missing_columns(sized, ["rlnImageSize"]):
        tell("the stacks are not found, so there is no blob/shape, which cryoSPARC needs; give --root")
    return sized


def _for_relion(star: ParticleStar, relion: str | None, root: Path | None, tell: Tell) -> ParticleStar:
    lost = lost_in_star(star)
    if lost:
        tell(f"not written, as RELION counts it otherwise: {', '.join(lost)}; estimate it there again")
    if star.dataset is not None and (star.particles["rlnImageName"].str.endswith(".mrc")).any():
        tell("RELION takes .mrc for maps: link the stacks under names in .mrcs, and change rlnImageName")
    if relion == "3.0":
        return relion30(star)
    sized = with_image_sizes(relion31(star), root)
    if missing_columns(sized, ["rlnImageSize"]):
        tell("the stacks are not found, so rlnImageSize is left out; RELION needs it: give --root")
    return sized


def with_image_sizes(star: ParticleStar, root: Path | None) -> ParticleStar:
    """The same with rlnImageSize, where it is missing and the first stack of every optics group is found."""
    if star.optics is None or not missing_columns(star, ["rlnImageSize"]):
        return star
    used, first_rows = np.unique(optics_rows(star, star.optics), return_index=True)
    boxes = [_box(star, int(row), root) for row in first_rows]
    if None in boxes:
        return star
    sizes = [str(boxes[0])] * len(star.optics)  # a group without particles has no stack to ask; any size does
    for group, box in zip(used, boxes, strict=True):
        sizes[group] = str(box)
    return replace(star, optics=star.optics.assign(rlnImageSize=sizes).astype(str))


def _box(star: ParticleStar, row: int, root: Path | None) -> int | None:
    """Width in pixels of the image of a row; None where its stack is not found."""
    _, stack = split_image_name(star.particles["rlnImageName"].iloc[row])
    try:
        path = find_file(stack, star.path.absolute().parent, root)
    except ValueError:
        return None
    return read_header(path).layout.shape[2]
