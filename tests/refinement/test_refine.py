"""From particles without poses to half maps: poses up to a common turn and hand, and no more than is there."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from cryoforum.dataset.particles import Particles
from cryoforum.dataset.poses import Poses
from cryoforum.dataset.volumes import Volume
from cryoforum.errors import InputError
from cryoforum.geometry.rotations import compose, geodesic_distance, inverse
from cryoforum.molecules.structures import load_structure
from cryoforum.refinement.initial_model import InitialModelConfig, initial_model
from cryoforum.refinement.refine import RefinementConfig, Round, refine
from cryoforum.simulation.config import SimulationConfig
from cryoforum.simulation.ideal import simulate

BOX, PIXEL_SIZE, COUNT = 32, 11.2, 200
REACH = 1.0  # pixels that particles are off-centre, and that searches go
QUICK = InitialModelConfig(steps=50, images_per_step=120, starts=1, max_shift_pixel=REACH)


@pytest.fixture(scope="module")
def molecule() -> Volume:
    return load_structure("4v5d", BOX, PIXEL_SIZE)


@pytest.fixture(scope="module")
def particles(molecule: Volume) -> Particles:
    simulated = simulate(molecule, SimulationConfig(count=COUNT, snr=0.5, max_shift_pixel=REACH))
    return replace(simulated, images=simulated.images[torch.arange(COUNT)])


def truth_of(particles: Particles) -> Tensor:
    assert particles.poses is not None
    return particles.poses.quaternions


def errors_after_common_turn(found: Tensor, truth: Tensor) -> Tensor:
    """Distances (n,) after the best of many common turns, of either hand."""
    half_turn = torch.tensor([0.0, 0.0, 1.0, 0.0])
    best = torch.full((len(found),), torch.pi)
    for hand in (found, compose(found, half_turn)):
        for row in range(40):
            turn = compose(hand[row], inverse(truth[row]))
            error = geodesic_distance(hand, compose(turn, truth))
            best = error if error.median() < best.median() else best
    return best


@pytest.fixture(scope="module")
def rounds(particles: Particles, molecule: Volume) -> list[Round]:
    (start,) = initial_model(replace(particles, poses=None), QUICK)
    return list(
        refine(particles, [start], RefinementConfig(initial_resolution_angstrom=60.0, max_shift_pixel=REACH))
    )


def test_from_no_poses_to_those_of_the_truth(rounds: list[Round], particles: Particles) -> None:
    errors = errors_after_common_turn(rounds[-1].predictions.posterior.mode, truth_of(particles))
    assert float((errors < 0.3).float().mean()) > 0.97
    assert float(errors.median()) < 0.1


def test_it_ends_where_nothing_changes(rounds: list[Round]) -> None:
    assert rounds[0].change_rad == torch.inf and 3 <= len(rounds) < 12
    assert rounds[-1].change_rad < 0.15 * float(rounds[-1].predictions.expected_error_rad.median())
    assert [found.number for found in rounds] == list(range(1, len(rounds) + 1))


def test_images_become_likelier_from_round_to_round(rounds: list[Round]) -> None:
    """Beyond the rounds of the search, in which references are still those of wrong poses."""
    totals = [
        float(r.predictions.evidence.log_likelihood_gain.sum()) for r in rounds if r.predictions.evidence
    ]
    assert all(later >= 0.995 * earlier for earlier, later in zip(totals[1:], totals[2:], strict=False))
    assert totals[-1] > totals[0]


def test_after_the_first_round_each_half_is_compared_with_its_own_map(rounds: list[Round]) -> None:
    first, *others = (found.predictions.evidence for found in rounds)
    assert first is not None and not first.reference_half.any()
    half_sets = others[0].reference_half if others[0] is not None else None
    assert half_sets is not None and set(half_sets.tolist()) == {1, 2}
    for evidence in others:
        assert evidence is not None and torch.equal(evidence.reference_half, half_sets)


def test_a_turned_start_gives_the_turned_result(particles: Particles, molecule: Volume) -> None:
    quarter = torch.tensor([0.0, 0.0, 0.5**0.5, 0.5**0.5])  # about z: voxels move onto voxels
    turned = Volume(torch.rot90(molecule.voxels, 1, (2, 1)).roll(1, 2), PIXEL_SIZE)
    config = RefinementConfig(initial_resolution_angstrom=40.0, most_rounds=1, max_shift_pixel=REACH)
    plain, found = (list(refine(particles, [start], config))[-1] for start in (molecule, turned))
    truth = truth_of(particles)
    assert float(geodesic_distance(plain.predictions.posterior.mode, truth).median()) < 0.12
    both = [
        float(geodesic_distance(compose(turn, found.predictions.posterior.mode), truth).median())
        for turn in (quarter, inverse(quarter))
    ]
    assert min(both) < 0.12


def test_poses_that_the_particles_have_are_not_used(particles: Particles, molecule: Volume) -> None:
    config = RefinementConfig(initial_resolution_angstrom=60.0, most_rounds=1, max_shift_pixel=REACH)
    none = next(refine(replace(particles, poses=None), [molecule], config))
    wrong = Poses(truth_of(particles).flip(0), torch.full((COUNT, 2), 30.0))
    other = next(refine(particles.with_poses(wrong), [molecule], config))
    assert torch.equal(none.predictions.posterior.mode, other.predictions.posterior.mode)


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(InputError, match="one round or more"):
        RefinementConfig(most_rounds=0)
    with pytest.raises(InputError, match="an even box of 16 or more, found 15"):
        InitialModelConfig(box=15)
