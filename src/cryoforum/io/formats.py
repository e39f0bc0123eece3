"""Particle files of any program, told apart by their suffix: the door that every command goes through."""

from collections.abc import Sequence
from pathlib import Path

from cryoforum.io.cryosparc import read_cryosparc
from cryoforum.io.csexport import write_cryosparc
from cryoforum.io.particlestar import ParticleStar, read_star, write_star
from cryoforum.io.star import contrast_signs

STAR, CRYOSPARC = ".star", ".cs"
_OTHER_SUFFIXES = {
    ".csg": "a cryoSPARC result group; give the .cs file that it names",
    ".npy": "a NumPy array; give the .cs file that cryoSPARC wrote",
    ".mrc": "images or a map; give the .star or .cs file that lists the particles",
    ".mrcs": "images; give the .star or .cs file that lists the particles",
}


def read_particle_file(path: Path) -> ParticleStar:
    """The tables of a particle file, in RELION's terms whatever program wrote it."""
    _check_suffix(path)
    return read_cryosparc(path) if Path(path).suffix == CRYOSPARC else read_star(path)


def read_particle_files(paths: Sequence[Path]) -> ParticleStar:
    """The same of a .cs file and its passthrough files, or of any one file."""
    if len(paths) == 1:
        return read_particle_file(paths[0])
    for path in paths:
        if Path(path).suffix != CRYOSPARC:
            raise ValueError(f"expected one particle file, or .cs files to merge, found {path} among several")
    return read_cryosparc(paths[0], paths[1:])


def write_particle_file(star: ParticleStar, path: Path) -> None:
    """Write the tables in the format that the suffix of ``path`` names, atomically."""
    check_writable(star, path)
    if Path(path).suffix == CRYOSPARC:
        write_cryosparc(star, path)
    else:
        write_star(star, path)


def check_writable(star: ParticleStar, path: Path) -> None:
    """ValueError where the format of ``path`` cannot hold the particles; asked before long work."""
    _check_suffix(path)
    if Path(path).suffix == STAR and contrast_signs(star) is not None:
        raise ValueError(
            f"{star.path}: its particles are dark on light (blob/sign 1), which a STAR file cannot say; "
            f"write {Path(path).with_suffix(CRYOSPARC).name} instead, or invert the stacks first"
        )


def _check_suffix(path: Path) -> None:
    suffix = Path(path).suffix
    if suffix not in (STAR, CRYOSPARC):
        kind = _OTHER_SUFFIXES.get(suffix, f"the suffix '{suffix}'")
        raise ValueError(f"{path}: expected a particle file .star or .cs, found {kind}")
