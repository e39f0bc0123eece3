"""Particle files of any program, told apart by their suffix: the door that every command goes through."""

from pathlib import Path

from cryoforum.io.particlestar import ParticleStar, read_star, write_star


def read_particle_file(path: Path) -> ParticleStar:
    """The tables of a particle file, in RELION's terms whatever program wrote it."""
    return read_star(path)


def write_particle_file(star: ParticleStar, path: Path) -> None:
    """Write the tables in the format that the suffix of ``path`` names, atomically."""
    write_star(star, path)
