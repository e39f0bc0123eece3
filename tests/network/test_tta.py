"""Several views of one image: turned answers are turned back exactly, and their mean moves with the image."""

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from cryoforum.alignment.config import AlignmentConfig
from cryoforum.commands.pose_files import PoseOutput
from cryoforum.commands.predict_request import PredictRequest
from cryoforum.config import Config, NetworkConfig, PreprocessingConfig, preset
from cryoforum.dataset.particles import Particles
from cryoforum.dataset.poses import Poses
from cryoforum.distributions.exponential_family import rotation_polynomials
from cryoforum.geometry.point_groups import symmetric_distance, symmetry_group
from cryoforum.geometry.rotations import compose, left_matrix, random_unitquat, right_matrix
from cryoforum.imaging.masks import circular_mask
from cryoforum.network.augmentation import turn_and_shift, turn_orientations
from cryoforum.network.heads import head_of
from cryoforum.network.model import OrientationNetwork, TrainedModel
from cryoforum.network.predict import best_tta, predict
from cryoforum.network.preprocessing import prepare
from cryoforum.training.calibration import calibrated

BOX = 16


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def model_with(head: str, symmetry: str, generator: torch.Generator) -> TrainedModel:
    """A network that learned nothing, but answers differently to different images."""
    network = NetworkConfig(widths=(4, 8), head=head, degree=4, head_nside=2)
    config = Config(PreprocessingConfig(box=BOX), network=network, symmetry=symmetry)
    torch.manual_seed(0)
    layers = OrientationNetwork(network, BOX, symmetry).eval()
    nn.init.normal_(layers.dense.weight, std=0.3)
    return TrainedModel(layers, config, BOX, 1.0, 1.0, log=[], parts={})


def particles(images: torch.Tensor) -> Particles:
    return Particles(images, 1.0, tuple(f"{row + 1}@x.mrcs" for row in range(len(images))))


def test_matrices_multiply_as_rotations_do(generator: torch.Generator) -> None:
    some, other = random_unitquat(5, generator=generator), random_unitquat(5, generator=generator)
    for product in (left_matrix(some) @ other[..., None], right_matrix(other) @ some[..., None]):
        torch.testing.assert_close(product[..., 0], compose(some, other))


@pytest.mark.parametrize(("degree", "symmetry"), [(1, "C1"), (4, "C1"), (4, "D2"), (6, "O")])
def test_turned_coefficients_are_the_density_of_turned_rotations(
    degree: int, symmetry: str, generator: torch.Generator
) -> None:
    polynomials = rotation_polynomials(degree, symmetry)
    coefficients = torch.randn(3, polynomials.size, generator=generator)
    somewhere = random_unitquat(50, generator=generator)
    turn = random_unitquat(1, generator=generator)[0]
    moved = polynomials.turned(coefficients, turn) @ polynomials.features(somewhere).T
    expected = coefficients @ polynomials.features(compose(somewhere, turn)).T
    torch.testing.assert_close(moved, expected, atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("copies", [4, 8])
@pytest.mark.parametrize(
    ("head", "symmetry"),  # under symmetry an untrained matrix has no mode that views could agree on
    [
        ("qcqp", "C1"),
        ("svd", "C1"),
        ("softmax_grid", "C1"),
        ("exponential_family", "C1"),
        ("exponential_family", "D2"),
    ],
)
def test_a_quarter_turn_of_the_image_turns_the_mean_of_its_copies(
    head: str, symmetry: str, copies: int, generator: torch.Generator
) -> None:
    model = model_with(head, symmetry, generator)
    # Nothing beyond the mask, so that a quarter turn loses nothing at the edges.
    images = torch.randn(6, BOX, BOX, generator=generator) * circular_mask(BOX, 0.6, 0.8)
    angle, straight, nowhere = (
        torch.full((6,), math.pi / 2),
        torch.zeros(6, dtype=torch.bool),
        torch.zeros(6, 2),
    )
    turned = turn_and_shift(images, angle, straight, nowhere)
    before = predict(model, particles(images), tta=copies).posterior.mode
    after = predict(model, particles(turned), tta=copies).posterior.mode
    group = symmetry_group(symmetry)
    errors = symmetric_distance(after, turn_orientations(before, angle, straight), group)
    assert float(errors.max()) < 2e-2


def test_one_view_is_what_the_network_says_and_other_numbers_are_refused(generator: torch.Generator) -> None:
    model = model_with("exponential_family", "C1", generator)
    images = torch.randn(3, BOX, BOX, generator=generator)
    with torch.no_grad():
        numbers = model.network(prepare(images, None, 1.0, model.config.preprocessing))
    expected = head_of(model.config.network).posterior(numbers).mode
    found = predict(model, particles(images), tta=1).posterior.mode
    assert float(symmetric_distance(found, expected, symmetry_group("C1")).max()) < 2e-2
    with pytest.raises(ValueError, match="expected 1, 4, 8 copies of each image, found 2"):
        predict(model, particles(images), tta=2)


def test_calibration_changes_how_sure_a_model_is_and_nothing_else(generator: torch.Generator) -> None:
    """Of true orientations that are all as far from the mode, it ends with errors that it expects."""
    model = model_with("qcqp", "C1", generator)
    images = torch.randn(60, BOX, BOX, generator=generator)
    before = predict(model, particles(images)).posterior
    turn = torch.tensor([0.0, 0.0, math.sin(0.05), math.cos(0.05)])  # by 0.1 rad
    truth = Poses(compose(before.mode, turn.expand(60, 4)), torch.zeros(60, 2))
    found = calibrated(model, particles(images).with_poses(truth))
    after = predict(found, particles(images))
    assert found.sharpness > 1
    torch.testing.assert_close(after.posterior.concentration, found.sharpness * before.concentration)
    again = calibrated(found, particles(images).with_poses(truth))
    assert again.sharpness == pytest.approx(found.sharpness, rel=1e-6)
    with pytest.raises(ValueError, match="with poses to calibrate by"):
        calibrated(model, particles(images))


def test_copies_are_for_the_network_alone(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--tta with --no-refine"):
        PredictRequest(tmp_path, [], PoseOutput(tmp_path), refine=True, alignment=AlignmentConfig(tta=8))
    assert [best_tta(preset(name)) for name in ("small", "paper")] == [8, 1]
