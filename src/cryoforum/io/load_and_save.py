"""Files in and nouns out, one call each, for those who call from Python."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

import torch

from cryoforum.dataset.particle_set import ParticleSet
from cryoforum.dataset.particle_table import ParticleTable
from cryoforum.dataset.particles import Particles, all_rows
from cryoforum.dataset.predictions import Predictions
from cryoforum.dataset.volumes import Volume
from cryoforum.errors import require
from cryoforum.io.mrc.maps import read_volume, write_volume
from cryoforum.io.mrc.stacks import write_stack
from cryoforum.io.particle_files import (
    check_writable,
    load_particle_set,
    read_particle_file,
    root_for_images,
    write_particle_file,
)
from cryoforum.io.predictions import prediction_columns, predictions_from_table, with_predictions
from cryoforum.io.relion.particles import poses_from_table, table_from_particles, with_poses

logger = logging.getLogger(__name__)

AnyPath: TypeAlias = str | Path
_IMAGES_AT_ONCE = 128


def load_particles(path_or_paths: AnyPath | Sequence[AnyPath], root: AnyPath | None = None) -> Particles:
    """The particles of one or several .star or .cs files; images are read on demand.

    Parameters
    ----------
    path_or_paths
        A file, or several that become one set; a .cs file that completes the one before it is merged with it.
    root
        Folder that image names are looked for in first.

    Returns
    -------
    Particles
        Without the ramp of each image (see `dataset.levelling`). What else the file says of them, as their
        micrographs, is in `load_particle_set`.

    Raises
    ------
    InputError
        Where a file cannot be read, an image is missing, or half of the CTF parameters are.
    """
    paths = [path_or_paths] if isinstance(path_or_paths, str | Path) else path_or_paths
    return load_particle_set([Path(p) for p in paths], None if root is None else Path(root)).particles


def save_particles(
    particles: Particles | ParticleSet, path: AnyPath, predictions: Predictions | None = None
) -> None:
    """Write a .star or .cs file; one that is there is replaced once the new one is complete.

    Parameters
    ----------
    particles
        Of `Particles` the images are written, too, to a stack of the same name that ends with .mrcs. Of a
        `ParticleSet` they stay where they are, and all of its columns are kept; its particles' poses count.
    path
        Where to write, in the format of its suffix.
    predictions
        Of the same particles, in order: their poses and errors become columns.

    Raises
    ------
    InputError
        Where the numbers of particles and predictions differ, or the suffix is of no known format.
    """
    path = Path(path)
    if predictions is not None:
        require(len(predictions) == len(particles), f"{len(particles)} predictions", len(predictions))
    table = _table(particles, path)
    if predictions is not None:
        table = with_predictions(table, prediction_columns(predictions))
    check_writable(table, path)
    if isinstance(particles, Particles):
        rows = all_rows(len(particles), _IMAGES_AT_ONCE)
        batches = (particles.images[part] for part in rows)
        shape = len(particles), particles.box, particles.pixel_size_angstrom
        write_stack(path.with_suffix(".mrcs"), batches, *shape)
    write_particle_file(table, path)
    if isinstance(particles, ParticleSet):
        root = root_for_images(path, particles.path.absolute().parent)
        if root is not None:
            logger.warning(f"{path}: to find its images, load it with root={str(root)!r}")


def load_map(path: AnyPath, pixel_size_angstrom: float | None = None) -> Volume:
    """A map of an MRC or CCP4 file.

    Parameters
    ----------
    path
        A box that is not an even cube is padded to one with the mean of its border, its centre kept.
    pixel_size_angstrom
        To use whatever the header says; None for that of the header.

    Raises
    ------
    InputError
        Where the file is no map, or has no pixel size.
    """
    return read_volume(Path(path), pixel_size_angstrom)


def save_map(volume: Volume, path: AnyPath) -> None:
    """Write a ``volume`` as float32 MRC; one at ``path`` is replaced once the new one is complete."""
    write_volume(volume, Path(path))


def predictions_from_file(path: AnyPath) -> Predictions:
    """The predictions that a particle file holds, as `cryoforum predict` or `save_particles` wrote them.

    Parameters
    ----------
    path
        A .star or .cs file.

    Returns
    -------
    Predictions
        Row by row. Shifts are those of the file, None where it has no origins. Evidence is None where the
        file lacks a part of it: cryoSPARC's have no place for the probability of a mode. Of the covariance of
        an origin a file keeps the trace alone: it comes back as a circle.

    Raises
    ------
    InputError
        Where the file holds no predictions.
    """
    return predictions_from_table(read_particle_file(Path(path)))


def _table(particles: Particles | ParticleSet, path: Path) -> ParticleTable:
    """The table to write, without predictions."""
    if isinstance(particles, ParticleSet):
        return _with_own_poses(particles)
    stack = path.with_suffix(".mrcs").name
    names = [f"{row + 1:06d}@{stack}" for row in range(len(particles))]
    return replace(table_from_particles(particles, names), path=path)


def _with_own_poses(particle_set: ParticleSet) -> ParticleTable:
    """The table under the poses of its particles; where they are those of the table its text stays."""
    table, poses = particle_set.table, particle_set.particles.poses
    known = poses_from_table(table)
    if poses is None or (
        known is not None
        and torch.equal(known.quaternions, poses.quaternions)
        and torch.equal(known.shifts_angstrom, poses.shifts_angstrom)
    ):
        return table
    return with_poses(table, poses)
