"""A table and its particles stay in step, row by row."""

from pathlib import Path

import pytest
import torch

from cryoforum.dataset.particle_set import ParticleSet
from cryoforum.dataset.particle_table import select_rows
from cryoforum.dataset.particles import Particles
from cryoforum.dataset.poses import Poses
from cryoforum.errors import InputError
from cryoforum.geometry.rotations import geodesic_distance, random_unitquat
from cryoforum.io.mrc.stacks import write_stack
from cryoforum.io.particle_files import load_particle_set, write_particle_file
from cryoforum.io.relion.particles import half_sets_from_table, poses_from_table, table_from_particles

COUNT = 7


@pytest.fixture
def particle_set(tmp_path: Path) -> ParticleSet:
    """Read from a file: images filled with their row, half sets, and poses of their own."""
    images = torch.arange(float(COUNT))[:, None, None].expand(COUNT, 8, 8)
    write_stack(tmp_path / "a.mrcs", [images], COUNT, 8, 2.0)
    names = tuple(f"{row + 1:06d}@a.mrcs" for row in range(COUNT))
    generator = torch.Generator().manual_seed(0)
    shifts = torch.randn(COUNT, 2, generator=generator)
    poses = Poses(random_unitquat(COUNT, generator=generator), shifts)
    half_sets = torch.arange(COUNT) % 2 + 1
    particles = Particles(images, 2.0, names, poses, half_sets=half_sets)
    write_particle_file(table_from_particles(particles, names), tmp_path / "a.star")
    return load_particle_set([tmp_path / "a.star"])


def assert_in_step(found: ParticleSet, rows: list[int]) -> None:
    """Names, images, poses and half sets of table and particles are those of the same rows."""
    table, particles = found.table, found.particles
    assert len(found) == len(table) == len(particles) == len(rows)
    names = tuple(f"{row + 1:06d}@a.mrcs" for row in rows)
    assert particles.names == names == tuple(table.particles["rlnImageName"])
    assert particles.images[torch.arange(len(rows))].mean(dim=(1, 2)).tolist() == rows
    poses, half_sets = poses_from_table(table), half_sets_from_table(table)
    assert poses is not None and particles.poses is not None
    assert float(geodesic_distance(poses.quaternions, particles.poses.quaternions).max()) < 1e-5
    assert torch.equal(poses.shifts_angstrom, particles.poses.shifts_angstrom)
    assert half_sets is not None and particles.half_sets is not None
    assert torch.equal(half_sets, particles.half_sets)


def test_rows_that_are_selected_are_the_same_in_both(particle_set: ParticleSet) -> None:
    assert_in_step(particle_set, list(range(COUNT)))
    some = particle_set.select(torch.tensor([5, 0, 3, 4]))
    assert_in_step(some, [5, 0, 3, 4])
    assert_in_step(some.select(torch.tensor([2, 1])), [3, 0])
    assert some.path == particle_set.path and len(particle_set) == COUNT


def test_new_half_sets_are_in_both_and_the_old_set_keeps_its_own(particle_set: ParticleSet) -> None:
    before = particle_set.particles.half_sets
    assert before is not None
    turned = particle_set.with_half_sets(3 - before)
    assert_in_step(turned, list(range(COUNT)))
    assert torch.equal(half_sets_from_table(turned.table), 3 - before)
    assert_in_step(turned.select(torch.tensor([6, 1])), [6, 1])
    assert_in_step(particle_set, list(range(COUNT)))
    assert torch.equal(half_sets_from_table(particle_set.table), before)


def test_what_differs_in_length_is_no_set(particle_set: ParticleSet) -> None:
    table, particles = particle_set.table, particle_set.particles
    with pytest.raises(InputError, match="as many particles as rows, found 7 and 6"):
        ParticleSet(select_rows(table, range(6)), particles)
    with pytest.raises(InputError, match="found 2 and 7"):
        ParticleSet(table, particles.select(torch.arange(2)))
    with pytest.raises(InputError, match="expected 7 values of rlnRandomSubset, found 3"):
        particle_set.with_half_sets(torch.tensor([1, 2, 1]))
