"""Particle files of any program, told apart by their suffix: the door that every command goes through."""

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryoforum.dataset.columns import CTF_COLUMNS, IMAGE_NAME
from cryoforum.dataset.image_grid import ImageGrid
from cryoforum.dataset.levelling import levelled
from cryoforum.dataset.particle_set import ParticleSet
from cryoforum.dataset.particle_table import ParticleTable, missing_columns, split_image_name, where_to_add
from cryoforum.dataset.poses import Poses
from cryoforum.errors import InputError
from cryoforum.io.cryosparc.reading import is_passthrough_of, left_out_of_star, read_cryosparc
from cryoforum.io.cryosparc.records import read_records, texts
from cryoforum.io.cryosparc.writing import lost_in_records, write_cryosparc
from cryoforum.io.image_paths import found_file
from cryoforum.io.join import joined
from cryoforum.io.relion.particles import contrast_signs, has_only_2d_alignments, particles_from_table
from cryoforum.io.relion.star_files import read_star, write_star
from cryoforum.io.relion.star_text import first_value
from cryoforum.io.relion.usable import without_unusable_rows

logger = logging.getLogger(__name__)

STAR, CRYOSPARC = ".star", ".cs"


@dataclass(frozen=True)
class ParticleFormat:
    """How particle files of one suffix are read and written, in RELION's terms.

    Parameters
    ----------
    read, write
        A whole file; `write` replaces an existing one only when it is complete.
    first_stack
        The stack of the first image of a file, of which no more is read than needed; None for none.
    refuse
        Raises InputError where the format cannot hold a table's particles.
    lost
        Columns of a table that the format leaves out.
    """

    read: Callable[[Path], ParticleTable]
    write: Callable[[ParticleTable, Path], None]
    first_stack: Callable[[Path], str | None] = lambda path: None
    refuse: Callable[[ParticleTable, Path], None] = lambda table, path: None
    lost: Callable[[ParticleTable], list[str]] = lambda table: []


def _refuse_dark_particles(table: ParticleTable, path: Path) -> None:
    if contrast_signs(table) is not None:
        raise InputError(
            f"{table.path}: its particles are dark on light (blob/sign 1), which a STAR file cannot say; "
            f"write {Path(path).with_suffix(CRYOSPARC).name} instead, or invert the stacks first"
        )


def _first_star_stack(path: Path) -> str | None:
    name = first_value(path, IMAGE_NAME)
    return None if name is None else split_image_name(name)[1]


def _first_cryosparc_stack(path: Path) -> str | None:
    return texts(read_records(path)["blob/path"][:1])[0]


# Another entry is another format that every command reads and writes.
FORMATS = {
    STAR: ParticleFormat(
        read_star, write_star, _first_star_stack, _refuse_dark_particles, lost=left_out_of_star
    ),
    CRYOSPARC: ParticleFormat(read_cryosparc, write_cryosparc, _first_cryosparc_stack, lost=lost_in_records),
}
_OTHER_SUFFIXES = {
    ".csg": "a cryoSPARC result group; give the .cs file that it names",
    ".npy": "a NumPy array; give the .cs file that cryoSPARC wrote",
    ".mrc": "images or a map; give the .star or .cs file that lists the particles",
    ".mrcs": "images; give the .star or .cs file that lists the particles",
}


def read_particle_file(path: Path) -> ParticleTable:
    """The tables of the particle file at ``path``, in RELION's terms whatever program wrote it."""
    return _format(path).read(path)


def root_for_images(written: Path, folder: Path, root: Path | None = None) -> Path | None:
    """What --root a written file needs, whose images were found from ``folder`` or ``root``.

    None where its first image is found without it, or not at all.
    """
    stack = _format(written).first_stack(written)
    if stack is None or found_file(stack, Path(written).absolute().parent) is not None:
        return None
    found = found_file(stack, folder, root)
    if found is None:
        return None
    return root if Path(stack).is_absolute() else found.parents[len(Path(stack).parts) - 1]


def load_particle_set(
    paths: Sequence[Path],
    root: Path | None = None,
    grid: ImageGrid | None = None,
    keep_ramp: bool = False,
) -> ParticleSet:
    """The particles of one or several files as one set; images are located now and read on demand.

    Parameters
    ----------
    paths
        .star or .cs files; a .cs file that completes the one before it is merged with it.
    root
        Folder that image names are looked for in first.
    grid
        Box and pixel size to bring all images to; None for that of most images.
    keep_ramp
        Leave the images as they are; else the ramp of each is removed, see `dataset.levelling`.

    Raises
    ------
    InputError
        Where a file cannot be read, an image is missing, or half of the CTF parameters are.
    """
    return particle_set_of(joined(read_files(paths), root), root, grid, keep_ramp)


def read_files(paths: Sequence[Path], drop_unusable: bool = False) -> list[ParticleTable]:
    """The table of each particle file; a .cs file that completes the one before it is merged with it.

    Which files were merged is logged, and so are the particles that ``drop_unusable`` leaves out, as their
    numbers are none or cannot be.
    """
    if not paths:
        raise InputError("expected a particle file, found none")
    groups: list[list[Path]] = []
    for path in paths:
        _format(path)
        if groups and _complete_each_other(groups[-1][0], path):
            groups[-1].append(path)
        else:
            groups.append([path])
    tables = [_read_group(group, drop_unusable) for group in groups]
    for companion in (path for table in tables for path in table.companions):
        logger.info(f"merged with {companion}")
    return tables


def _read_group(paths: Sequence[Path], drop_unusable: bool) -> ParticleTable:
    """The table of a file and of those that complete it."""
    first, *others = paths
    if Path(first).suffix == CRYOSPARC:
        return read_cryosparc(first, others, drop_unusable)
    table = read_particle_file(first)
    return without_unusable_rows(table) if drop_unusable else table


def particle_set_of(
    table: ParticleTable,
    root: Path | None = None,
    grid: ImageGrid | None = None,
    keep_ramp: bool = False,
) -> ParticleSet:
    """The particles of a table that has all of the CTF parameters or none: half of them is an oversight."""
    missing = missing_columns(table, CTF_COLUMNS)
    if missing and not missing_columns(table, [CTF_COLUMNS[0]]):
        raise InputError(
            f"{table.path}: expected {missing[0]} for the CTF, found none; {where_to_add(table, missing[0])}"
        )
    particles = particles_from_table(table, root, grid)
    return ParticleSet(table, particles if keep_ramp else levelled(particles))


def checked_poses(particle_set: ParticleSet, purpose: str) -> Poses:
    """The poses; InputError where there are none, or all orientations are one, as before a refinement."""
    poses, path = particle_set.particles.poses, particle_set.path
    if poses is None:
        flat = has_only_2d_alignments(particle_set.table)
        found = "2D alignments only; run a 3D refinement" if flat else "none"
        raise InputError(
            f"{path}: expected rlnAngleRot, rlnAngleTilt and rlnAnglePsi {purpose}, found {found}"
        )
    if len(poses) > 1 and bool((poses.quaternions == poses.quaternions[0]).all()):
        raise InputError(
            f"{path}: expected the orientations of a refinement {purpose}, found the same one in all "
            f"{len(poses)} rows; predict them first"
        )
    return poses


def _complete_each_other(first: Path, second: Path) -> bool:
    suffixes = {Path(first).suffix, Path(second).suffix}
    return suffixes == {CRYOSPARC} and is_passthrough_of(first, second)


def write_particle_file(table: ParticleTable, path: Path) -> None:
    """Write a ``table`` in the format that the suffix of ``path`` names, atomically."""
    refuse_unwritable(table, path)
    _format(path).write(table, path)


def refuse_unwritable(table: ParticleTable, path: Path) -> None:
    """InputError where the format of ``path`` cannot hold the particles."""
    _format(path).refuse(table, path)


def check_writable(table: ParticleTable, path: Path) -> None:
    """InputError where the format of ``path`` cannot hold the particles; asked before long work.

    Columns that it leaves out are logged in one line.
    """
    refuse_unwritable(table, path)
    lost = _format(path).lost(table)
    if lost:
        logger.warning(
            f"left out of the {Path(path).suffix} file: {', '.join(lost)}; keep {table.path.name}, too"
        )


def _format(path: Path) -> ParticleFormat:
    """That of the suffix; InputError lists the known ones."""
    suffix, known = Path(path).suffix, " or ".join(FORMATS)
    if os.path.isdir(path):  # unlike Path's, false for a name that is too long
        raise InputError(f"{path}: expected a particle file {known}, found a folder; give a file in it")
    if suffix not in FORMATS:
        kind = _OTHER_SUFFIXES.get(suffix, f"the suffix '{suffix}'")
        raise InputError(f"{path}: expected a particle file {known}, found {kind}")
    return FORMATS[suffix]
