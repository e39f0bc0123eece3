"""Ramps are gone before anything else is done to an image, and the particle stays."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.clean_images import seeded
from torch import Tensor

from cryoforum.alignment.aligner import align
from cryoforum.alignment.config import AlignmentConfig
from cryoforum.dataset.image_grid import ImageGrid
from cryoforum.dataset.images import JoinedImages
from cryoforum.dataset.levelling import LevelledImages, levelled, without_ramp
from cryoforum.dataset.particles import Particles
from cryoforum.dataset.resampling import resampled
from cryoforum.geometry.rotations import geodesic_distance
from cryoforum.io.mrc.stacks import write_stack
from cryoforum.io.particle_files import load_particle_set, write_particle_file
from cryoforum.io.relion.particles import table_from_particles
from cryoforum.molecules.structures import load_structure
from cryoforum.reconstruction.reference_map import reference_from_map, reference_from_particles
from cryoforum.simulation.config import SimulationConfig
from cryoforum.simulation.ideal import simulate

BOX, COUNT = 32, 60


def ramps(count: int, box: int, rise: float) -> Tensor:
    """Planes that rise by normal numbers of deviation ``rise`` from edge to edge along x and y."""
    x, y = rise * torch.randn(2, count, 1, 1, generator=seeded(3))
    axis = (torch.arange(box) - (box - 1) / 2) / box
    return x * axis + y * axis[:, None]


@pytest.fixture(scope="module")
def flat() -> Particles:
    volume = load_structure("4v5d", BOX, 11.2)
    lazy = simulate(volume, SimulationConfig(count=COUNT, snr=0.5, max_shift_pixel=1.0))
    return replace(lazy, images=lazy.images[torch.arange(COUNT)])


@pytest.fixture(scope="module")
def sloping(flat: Particles) -> Particles:
    """The same particles; ramps far stronger than most, so that few particles show what they do."""
    images = flat.images[torch.arange(COUNT)]
    return replace(flat, images=images + ramps(COUNT, BOX, 30 * float(images.std())))


def median_error(particles: Particles) -> float:
    volume = load_structure("4v5d", BOX, 11.2)
    found = align(reference_from_map(volume), particles, config=AlignmentConfig(max_shift_pixel=1.0))
    assert particles.poses is not None
    return float(geodesic_distance(found.posterior.mode, particles.poses.quaternions).median())


@pytest.mark.parametrize("box", [16, 30, 64])
def test_a_plane_goes_its_mean_stays_and_the_particle_is_left_alone(box: int) -> None:
    plane = 3.0 + ramps(5, box, 100.0)
    torch.testing.assert_close(without_ramp(plane), torch.full_like(plane, 3.0), atol=1e-3, rtol=0)
    axis = (torch.arange(box) - box // 2).float()
    inside = (torch.hypot(*torch.meshgrid(axis, axis, indexing="ij")) < 0.35 * box).float()
    particle = inside * torch.randn(5, box, box, generator=seeded(1))
    torch.testing.assert_close(without_ramp(particle), particle, atol=1e-5, rtol=0)
    torch.testing.assert_close(without_ramp(plane + particle), 3.0 + particle, atol=1e-3, rtol=0)


def test_noise_is_hardly_changed() -> None:
    noise = torch.randn(200, BOX, BOX, generator=seeded(2))
    assert float((without_ramp(noise) - noise).square().mean()) < 4 / BOX**2


def test_results_with_ramps_come_close_to_those_without(flat: Particles, sloping: Particles) -> None:
    without, with_ramps, removed = (median_error(each) for each in (flat, sloping, levelled(sloping)))
    assert with_ramps > 2 * without  # else there was nothing to remove
    assert removed < 1.1 * without


def test_the_map_of_particles_with_ramps_is_that_of_those_without(
    flat: Particles, sloping: Particles
) -> None:
    maps = [reference_from_particles(each).full.voxels for each in (flat, levelled(sloping), sloping)]
    apart = [float((each - maps[0]).norm() / maps[0].norm()) for each in maps[1:]]
    assert apart[0] < 0.05 and apart[1] > 0.5


def test_ramps_go_before_images_are_resampled() -> None:
    small, large = ramps(4, 16, 5.0), ramps(4, 24, 5.0)
    parts = [resampled(small, ImageGrid(16, 2.0), ImageGrid(24, 2.0)), large]
    rows = torch.arange(8)
    joined = Particles(JoinedImages(tuple(parts), rows // 4, rows % 4), 2.0, tuple("abcdefgh"))
    assert float(levelled(joined.select(rows.flip(0))).images[rows].abs().max()) < 1e-4
    roof = LevelledImages(parts[0])[torch.arange(4)]  # the mirror image outside turns the ramp round
    assert float(roof.abs().max()) > 0.1


def test_files_are_read_without_ramps_unless_these_are_to_be_kept(sloping: Particles, tmp_path: Path) -> None:
    images = sloping.images[torch.arange(COUNT)]
    write_stack(tmp_path / "stack.mrcs", [images], COUNT, BOX, 11.2)
    names = tuple(f"{row + 1:06d}@stack.mrcs" for row in range(COUNT))
    write_particle_file(table_from_particles(replace(sloping, names=names), names), tmp_path / "p.star")
    read, kept = (
        load_particle_set([tmp_path / "p.star"], keep_ramp=keep).particles for keep in (False, True)
    )
    rows = torch.arange(COUNT)
    torch.testing.assert_close(read.images[rows], without_ramp(images), atol=1e-4, rtol=0)
    assert torch.equal(kept.images[rows], images)
    assert read.images.identity != kept.images.identity  # poses of one are not gone on with in the other
