"""Particle files of any program, told apart by their suffix: the door that every command goes through."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from cryoforum.dataset.particle_table import ParticleTable, split_image_name
from cryoforum.errors import InputError
from cryoforum.io.cryosparc.reading import is_passthrough_of, read_cryosparc
from cryoforum.io.cryosparc.records import read_records, texts
from cryoforum.io.cryosparc.writing import lost_in_records, write_cryosparc
from cryoforum.io.image_paths import find_file
from cryoforum.io.relion.particles import contrast_signs
from cryoforum.io.relion.star_files import read_star, write_star
from cryoforum.io.relion.star_text import first_value

STAR, CRYOSPARC = ".star", ".cs"
_OTHER_SUFFIXES = {
    ".csg": "a cryoSPARC result group; give the .cs file that it names",
    ".npy": "a NumPy array; give the .cs file that cryoSPARC wrote",
    ".mrc": "images or a map; give the .star or .cs file that lists the particles",
    ".mrcs": "images; give the .star or .cs file that lists the particles",
}


def read_particle_file(path: Path) -> ParticleTable:
    """The tables of a particle file, in RELION's terms whatever program wrote it."""
    _check_suffix(path)
    return read_cryosparc(path) if Path(path).suffix == CRYOSPARC else read_star(path)


def root_for_images(written: Path, folder: Path, root: Path | None = None) -> Path | None:
    """What --root a written file needs, whose images were found from ``folder`` or ``root``.

    None where its first image is found without it, or not at all.
    """
    stack = _first_stack_name(written)
    if stack is None or _found(stack, Path(written).absolute().parent) is not None:
        return None
    found = _found(stack, folder, root)
    if found is None:
        return None
    return root if Path(stack).is_absolute() else found.parents[len(Path(stack).parts) - 1]


def read_each(paths: Sequence[Path]) -> list[ParticleTable]:
    """The same of several files; a .cs file that completes the one before it is merged with it."""
    groups: list[list[Path]] = []
    for path in paths:
        _check_suffix(path)
        if groups and _complete_each_other(groups[-1][0], path):
            groups[-1].append(path)
        else:
            groups.append([path])
    return [
        read_cryosparc(first, others) if others else read_particle_file(first) for first, *others in groups
    ]


def _complete_each_other(first: Path, second: Path) -> bool:
    suffixes = {Path(first).suffix, Path(second).suffix}
    return suffixes == {CRYOSPARC} and is_passthrough_of(first, second)


def write_particle_file(table: ParticleTable, path: Path) -> None:
    """Write the tables in the format that the suffix of ``path`` names, atomically."""
    check_writable(table, path)
    if Path(path).suffix == CRYOSPARC:
        write_cryosparc(table, path)
    else:
        write_star(table, path)


def check_writable(table: ParticleTable, path: Path, tell: Callable[[str], None] = lambda line: None) -> None:
    """InputError where the format of ``path`` cannot hold the particles; asked before long work.

    ``tell`` is told, in one line, what it leaves out of them.
    """
    _check_suffix(path)
    if Path(path).suffix == STAR and contrast_signs(table) is not None:
        raise InputError(
            f"{table.path}: its particles are dark on light (blob/sign 1), which a STAR file cannot say; "
            f"write {Path(path).with_suffix(CRYOSPARC).name} instead, or invert the stacks first"
        )
    lost = lost_in_records(table) if Path(path).suffix == CRYOSPARC else []
    if lost:
        tell(f"left out of the .cs file: {', '.join(lost)}; keep {table.path.name}, too")


def _first_stack_name(path: Path) -> str | None:
    """The stack of the first image of a particle file, of which no more is read than needed."""
    _check_suffix(path)
    if Path(path).suffix == CRYOSPARC:
        return texts(read_records(path)["blob/path"][:1])[0]
    name = first_value(path, "rlnImageName")
    return None if name is None else split_image_name(name)[1]


def _found(name: str, folder: Path, root: Path | None = None) -> Path | None:
    try:
        return find_file(name, folder, root)
    except InputError:
        return None


def _check_suffix(path: Path) -> None:
    suffix = Path(path).suffix
    if os.path.isdir(path):  # unlike Path's, false for a name that is too long
        raise InputError(f"{path}: expected a particle file .star or .cs, found a folder; give a file in it")
    if suffix not in (STAR, CRYOSPARC):
        kind = _OTHER_SUFFIXES.get(suffix, f"the suffix '{suffix}'")
        raise InputError(f"{path}: expected a particle file .star or .cs, found {kind}")
