"""The particles that studies learn from: simulated, or those of a file."""

from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cryoforum.dataset.particles import Particles
from cryoforum.dataset.split import PAPER_SHARES, split_rows
from cryoforum.dataset.volumes import Volume
from cryoforum.errors import InputError
from cryoforum.geometry.point_groups import symmetry_group
from cryoforum.geometry.rotations import random_unitquat, unitquat_to_rotmat
from cryoforum.io.particle_files import checked_poses, load_particle_set
from cryoforum.molecules.potential import Atoms, atoms_to_volume, load_molecule
from cryoforum.molecules.structures import load_structure
from cryoforum.simulation.config import SimulationConfig
from cryoforum.simulation.ideal import simulate
from cryoforum.study.variants import Dataset

_SUBUNITS = 24  # of apoferritin
_SUBUNIT_CENTRE_ANGSTROM = (22.0, 16.0, 19.0)  # of the D2 complex: neighbours touch, none overlap
_JUNK = "6z6u"


def molecule(dataset: Dataset) -> Volume:
    """The map of the molecule of a simulated data set."""
    if dataset.molecule == "d2":
        return atoms_to_volume(d2_complex(), dataset.box, dataset.pixel_size_angstrom)
    return load_structure(dataset.molecule, dataset.box, dataset.pixel_size_angstrom)


def d2_complex() -> Atoms:
    """Four copies of one apoferritin subunit about two-fold axes along x, y and z."""
    cage = load_molecule("6z6u")
    count = len(cage) // _SUBUNITS
    subunit = cage.positions_angstrom[:count]
    placed = subunit - subunit.mean(0) + np.array(_SUBUNIT_CENTRE_ANGSTROM, np.float32)
    turns = unitquat_to_rotmat(symmetry_group("D2", torch.float64)).numpy()
    return Atoms(
        np.concatenate([placed @ turn.T for turn in turns]).astype(np.float32),
        np.tile(cage.elements[:count], len(turns)),
        np.tile(cage.b_factors[:count], len(turns)),
    )


@lru_cache(maxsize=1)
def particles_of(dataset: Dataset) -> Particles:
    """The particles of a data set; simulated ones in memory, and always the same."""
    if dataset.particle_file:
        particle_set = load_particle_set([Path(dataset.particle_file)])
        checked_poses(particle_set, "to learn from")
        return particle_set.particles
    config = SimulationConfig(count=dataset.count, snr=dataset.snr)
    particles = simulate(molecule(dataset), config)
    images = torch.cat([particles.images[rows] for rows in torch.arange(dataset.count).split(256)])
    particles = replace(particles, images=images)
    return _with_junk(particles, dataset, config) if dataset.junk else particles


def junk_rows(dataset: Dataset) -> Tensor:
    """Rows of `particles_of` that are junk, ascending: all in the test part."""
    test = split_rows(dataset.count, *PAPER_SHARES).test
    order = torch.randperm(len(test), generator=torch.Generator().manual_seed(1))
    return test[order[: round(dataset.junk * len(test))]].sort().values


def _with_junk(particles: Particles, dataset: Dataset, config: SimulationConfig) -> Particles:
    """Some images show another molecule, as strong and noisy, under meaningless orientations."""
    rows = junk_rows(dataset)
    other = simulate(load_structure(_JUNK, dataset.box, dataset.pixel_size_angstrom), replace(config, seed=1))
    images, junk = particles.images[torch.arange(len(particles))], other.images[rows]
    images[rows] = junk * (images.square().mean() / junk.square().mean()).sqrt()
    if particles.poses is None:
        raise InputError("expected simulated particles to have poses")
    quaternions = particles.poses.quaternions.clone()
    quaternions[rows] = random_unitquat(len(rows), generator=torch.Generator().manual_seed(2))
    return replace(particles, images=images).with_orientations(quaternions)
