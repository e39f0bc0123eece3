"""Imperfect particles: each imperfection is there as asked, alone, and the truth is the truth."""

import math
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch

from cryoforum.choices import JUNK_KINDS
from cryoforum.dataset.particles import Particles
from cryoforum.dataset.poses import Poses
from cryoforum.dataset.volumes import Volume
from cryoforum.errors import InputError
from cryoforum.geometry.rotations import (
    compose,
    geodesic_distance,
    inverse,
    unitquat_to_rotmat,
    unitquat_to_rotvec,
)
from cryoforum.molecules.structures import load_structure
from cryoforum.simulation.config import REALISTIC, Imperfections, SimulationConfig
from cryoforum.simulation.ideal import SimulatedImages, simulate
from cryoforum.simulation.realistic import GENUINE, SimulatedSet, simulate_realistic
from cryoforum.simulation.realistic_images import RealisticImages

BOX, PIXEL_SIZE = 32, 11.2
ALL = torch.arange(150)


@pytest.fixture(scope="module")
def molecule() -> Volume:
    return load_structure("4v5d", BOX, PIXEL_SIZE)


@pytest.fixture(scope="module")
def other() -> Volume:
    return load_structure("6z6u", BOX, PIXEL_SIZE)


def made(
    molecule: Volume, other: Volume | None = None, count: int = 150, **imperfections: Any
) -> SimulatedSet:
    return simulate_realistic(molecule, SimulationConfig(count=count), Imperfections(**imperfections), other)


def images_of(particles: Particles) -> RealisticImages:
    assert isinstance(particles.images, RealisticImages)
    return particles.images


def noise_free(particles: Particles, rows: torch.Tensor = ALL) -> torch.Tensor:
    return replace(images_of(particles), seed=None)[rows]


def noise_of(particles: Particles, rows: torch.Tensor = ALL) -> torch.Tensor:
    return particles.images[rows] - noise_free(particles, rows)


def poses_of(particles: Particles) -> Poses:
    assert particles.poses is not None
    return particles.poses


def test_without_imperfections_it_is_the_ideal_set(molecule: Volume) -> None:
    ideal, found = simulate(molecule, SimulationConfig(count=150)), made(molecule)
    for particles in (found.particles, found.truth):
        assert torch.equal(poses_of(particles).quaternions, poses_of(ideal).quaternions)
        torch.testing.assert_close(particles.images[ALL], ideal.images[ALL], atol=1e-4, rtol=1e-4)
    assert set(found.junk_kinds) == {GENUINE} and set(found.conformation_numbers.tolist()) == {1}


@pytest.mark.parametrize(
    "imperfection",
    [
        {"neighbours": 1.0},
        {"ramp": 1.0},
        {"noise_colour": 3.0},
        {"strength_spread": 0.2},
        {"junk_share": 0.3},
    ],
)
def test_one_imperfection_leaves_the_draws_of_the_others_alone(
    molecule: Volume, other: Volume, imperfection: dict[str, float]
) -> None:
    rest = {"conformation_shares": (0.5, 0.5), "pose_error_deg": 2.0, "preferred_views": 1.0}
    plain, found = made(molecule, **rest), made(molecule, other, **rest, **imperfection)
    genuine = torch.tensor([kind == GENUINE for kind in found.junk_kinds])
    for first, second in ((plain.particles, found.particles), (plain.truth, found.truth)):
        for name in ("quaternions", "shifts_angstrom"):
            values = [getattr(poses_of(particles), name)[genuine] for particles in (first, second)]
            assert torch.equal(*values)
    assert torch.equal(plain.conformation_numbers[genuine], found.conformation_numbers[genuine])
    assert not torch.equal(plain.particles.images[ALL], found.particles.images[ALL])


def test_a_row_gives_one_image_however_it_is_read(molecule: Volume, other: Volume) -> None:
    found = simulate_realistic(
        molecule, SimulationConfig(count=40), replace(REALISTIC, junk_share=0.4, neighbours=2.0), other
    )
    whole = found.particles.images[torch.arange(40)]
    assert found.particles.images.shape == whole.shape == (40, BOX, BOX)
    mixed = torch.tensor([7, 3, 39, 3, 0])
    torch.testing.assert_close(found.particles.images[mixed], whole[mixed], atol=1e-4, rtol=1e-4)


def test_signal_and_noise_are_as_asked_whatever_else_is_wrong(molecule: Volume, other: Volume) -> None:
    imperfections = replace(REALISTIC, junk_share=0.2, strength_spread=0.0)
    found = simulate_realistic(molecule, SimulationConfig(count=150, snr=0.3), imperfections, other)
    images, genuine = images_of(found.particles), found.conformation_numbers > 0
    signal = images.strengths[:, None, None] * images.signal[ALL]
    assert float(signal[genuine].var((1, 2)).mean()) == pytest.approx(0.3, rel=0.03)
    noise = noise_of(found.particles)
    assert float(noise.var()) == pytest.approx(1, rel=0.02)
    assert float(noise.mean()) == pytest.approx(0, abs=0.01)


def test_strengths_spread_as_asked(molecule: Volume) -> None:
    strengths = images_of(made(molecule, count=2000, strength_spread=0.25).particles).strengths.log()
    assert float(strengths.std()) == pytest.approx(0.25, rel=0.05)


def test_coloured_noise_has_its_power_at_low_frequencies_and_differs_by_micrograph(molecule: Volume) -> None:
    found = made(molecule, count=600, noise_colour=8.0, particles_per_micrograph=200)
    assert [name for name, _ in Counter(found.micrographs).most_common()] == [
        f"micrographs/mic0000{number}.mrc" for number in (1, 2, 3)
    ]
    colours = images_of(found.particles).noise_colours.view(3, 200)
    assert torch.equal(colours, colours[:, :1].expand(3, 200)) and len(colours[:, 0].unique()) == 3
    noise = noise_of(found.particles, torch.arange(600)).view(3, 200, BOX, BOX)
    power = torch.fft.rfft2(noise).abs().square().mean(1)
    for of_micrograph, colour in zip(power, colours[:, 0].tolist(), strict=True):
        # Frequency zero has 1 + colour; at 11 cycles per box of 358 A a 50 A corner has left 1 + 0.30 colour.
        ratio = float(of_micrograph[0, 0] / of_micrograph[0, 11])
        expected = (1 + colour) / (1 + colour / (1 + (11 * 50 / (BOX * PIXEL_SIZE)) ** 2))
        assert ratio == pytest.approx(expected, rel=0.35)


def test_ramps_rise_as_asked(molecule: Volume) -> None:
    found = made(molecule, ramp=3.0, count=400)
    plain = made(molecule, count=400)
    rows = torch.arange(400)
    plane = (noise_free(found.particles, rows) - noise_free(plain.particles, rows)) * BOX / (BOX - 1)
    rises = torch.stack([plane[:, 5, -1] - plane[:, 5, 0], plane[:, -1, 5] - plane[:, 0, 5]])
    assert float(rises.std()) == pytest.approx(3.0, rel=0.1)
    assert float((plane[:, 5, -1] - 2 * plane[:, 5, BOX // 2] + plane[:, 5, 1]).abs().max()) < 1e-3, (
        "straight"
    )


def test_neighbours_reach_in_beside_the_particle(molecule: Volume) -> None:
    found, plain = made(molecule, neighbours=1.5), made(molecule)
    added = noise_free(found.particles) - noise_free(plain.particles)
    per_image = torch.bincount(images_of(found.particles).neighbours.image_rows, minlength=150)
    assert float(per_image.float().mean()) == pytest.approx(1.5, abs=0.35)
    assert not added[per_image == 0].any()
    power = added.square().mean(0)
    middle = power[BOX // 2 - 3 : BOX // 2 + 3, BOX // 2 - 3 : BOX // 2 + 3].mean()
    assert float(power.mean()) > 3 * float(middle) > 0


def test_preferred_views_have_the_stated_density(molecule: Volume) -> None:
    poses = poses_of(made(molecule, count=20_000, preferred_views=3.0).truth)
    views = unitquat_to_rotmat(poses.quaternions)[:, :, 2]
    moment = torch.linalg.eigvalsh(views.T @ views / len(views))
    # The mean of cos^2 under exp(3 cos^2) on the sphere, by quadrature.
    cosine = torch.linspace(-1, 1, 20_001).double()
    density = torch.exp(3 * cosine**2)
    expected = float((cosine**2 * density).sum() / density.sum())
    assert float(moment[2]) == pytest.approx(expected, abs=0.01)
    assert float(moment[0]) == pytest.approx((1 - expected) / 2, abs=0.01)
    torch.testing.assert_close(poses.quaternions.norm(dim=-1), torch.ones(20_000))


def test_labels_are_off_as_asked(molecule: Volume) -> None:
    found = made(
        molecule,
        count=4000,
        pose_error_deg=2.0,
        shift_error_angstrom=3.0,
        wrong_pose_share=0.1,
        defocus_error_angstrom=400.0,
    )
    stated, true = poses_of(found.particles), poses_of(found.truth)
    distance = geodesic_distance(stated.quaternions, true.quaternions)
    is_wrong = distance > math.radians(15)
    assert float(is_wrong.float().mean()) == pytest.approx(0.1, abs=0.02)
    assert float(distance[is_wrong].mean()) == pytest.approx(math.pi / 2 + 2 / math.pi, abs=0.1), (
        "of random ones"
    )
    turn = unitquat_to_rotvec(compose(inverse(true.quaternions), stated.quaternions))[~is_wrong]
    assert turn.std(0).rad2deg().tolist() == pytest.approx([2.0] * 3, rel=0.06)
    assert (stated.shifts_angstrom - true.shifts_angstrom).std(0).tolist() == pytest.approx(
        [3.0] * 2, rel=0.06
    )
    assert found.particles.ctf is not None and found.truth.ctf is not None
    for name in ("defocus_u_angstrom", "defocus_v_angstrom"):
        change = getattr(found.particles.ctf, name) - getattr(found.truth.ctf, name)
        assert float(change.std()) == pytest.approx(400, rel=0.06)


def test_conformations_have_their_shares_and_images_their_maps(molecule: Volume) -> None:
    found = made(molecule, count=1000, conformation_shares=(0.7, 0.3), hinge_angle_deg=20.0)
    assert float((found.conformation_numbers == 2).float().mean()) == pytest.approx(0.3, abs=0.04)
    rows = (found.conformation_numbers == 2).nonzero().flatten()[:20]
    config = SimulationConfig(count=1000)
    of_map = []
    for volume in found.maps:
        ideal = simulate(volume, config).images
        assert isinstance(ideal, SimulatedImages)
        of_map.append(replace(ideal, seed=None)[rows])
    images = noise_free(found.particles, rows).flatten(1)

    def correlation(expected: torch.Tensor) -> torch.Tensor:
        return torch.cosine_similarity(images - images.mean(1, True), expected - expected.mean(1, True))

    assert (correlation(of_map[1].flatten(1)) > 0.9999).all()
    assert (correlation(of_map[0].flatten(1)) < 0.99).all()


def test_junk_is_of_its_kind(molecule: Volume, other: Volume) -> None:
    kinds = JUNK_KINDS
    found = made(molecule, other, count=600, junk_share=0.5)
    assert Counter(found.junk_kinds) == {GENUINE: 300, **dict.fromkeys(kinds, 50)}
    is_junk = torch.tensor([kind != GENUINE for kind in found.junk_kinds])
    assert torch.equal(found.conformation_numbers == 0, is_junk)
    rows = {kind: torch.tensor([r for r, k in enumerate(found.junk_kinds) if k == kind]) for kind in kinds}
    power = {kind: noise_free(found.particles, rows[kind]).var((1, 2)).mean() for kind in kinds}
    genuine = noise_free(found.particles, (~is_junk).nonzero().flatten()).var((1, 2)).mean()
    assert power["noise"] == 0
    assert power["overlap"] > 1.4 * genuine
    assert power["half_molecule"] < 0.8 * genuine
    assert power["edge"] > 0.5
    labels, truth = poses_of(found.particles).quaternions, poses_of(found.truth).quaternions
    assert float(geodesic_distance(labels, truth)[is_junk].mean()) > 1.5


def test_the_truth_of_an_off_centre_particle_is_where_it_is(molecule: Volume, other: Volume) -> None:
    found = made(molecule, other, count=300, junk_share=0.4, junk_kinds=("off_centre",))
    rows = (found.conformation_numbers == 0).nonzero().flatten()
    images = noise_free(found.truth, rows)
    shifts = poses_of(found.truth).shifts_angstrom[rows] / PIXEL_SIZE
    assert float(shifts.norm(dim=-1).min()) > 0.25 * BOX - 5
    axis = (torch.arange(BOX) - BOX // 2).float()
    power = images.square()
    centre = torch.stack([(power.sum(1) * axis).sum(1), (power.sum(2) * axis).sum(1)], -1)
    centre = centre / power.sum((1, 2))[:, None]
    assert (torch.cosine_similarity(centre, -shifts) > 0.8).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"conformation_shares": (0.5, 0.4)}, "shares of conformations that add up to 1"),
        ({"junk_share": 1.0}, "junk_share from 0 to below 1, found 1.0"),
        ({"ramp": -1.0}, "ramp of 0 or more, found -1.0"),
        ({"neighbours": math.nan}, "finite number for neighbours, such as 0.0, found nan"),
        ({"junk_kinds": ("ice",)}, "junk kinds from noise, edge"),
        ({"particles_per_micrograph": 0}, "1 or more particles per micrograph, found 0"),
    ],
)
def test_what_cannot_be_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Imperfections(**settings)


def test_other_molecules_have_to_be_given(molecule: Volume) -> None:
    with pytest.raises(InputError, match="expected another molecule"):
        made(molecule, junk_share=0.5)
