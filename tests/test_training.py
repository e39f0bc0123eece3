"""Training: splits, seeds, resuming after a kill, and that it learns at all."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cryoforum import compute, training
from cryoforum.checkpoint import TrainedModel
from cryoforum.config import (
    Config,
    NetworkConfig,
    PreprocessingConfig,
    SimulationConfig,
    TrainingConfig,
    preset,
)
from cryoforum.inference import predict
from cryoforum.particles import Particles
from cryoforum.rotations import geodesic_distance
from cryoforum.simulation import simulate
from cryoforum.structures import load_structure
from cryoforum.training import Progress, Split, one_cycle, split_rows, train

QUICK = Config(
    PreprocessingConfig(box=32),
    NetworkConfig(widths=(8, 16), degree=2, dropout=0.1),
    TrainingConfig(image_passes=320, batch_size=16, grid_nside=2, grid_count=2),
)


@pytest.fixture(scope="module")
def particles() -> Particles:
    volume = load_structure("4v5d", 32, 11.2)
    lazy = simulate(volume, SimulationConfig(count=300, snr=20.0, max_shift_pixel=0.0))
    return replace(lazy, images=lazy.images[torch.arange(300)])


@pytest.fixture(scope="module")
def some(particles: Particles) -> Particles:
    return particles.select(torch.arange(60))


def weights(model: TrainedModel) -> dict[str, torch.Tensor]:
    return dict(model.network.state_dict())


def test_the_default_split_is_the_papers() -> None:
    split = split_rows(5000)
    assert (len(split.train), len(split.validation), len(split.test)) == (2512, 838, 1650)
    rows = torch.cat([split.train, split.validation, split.test])
    assert torch.equal(rows.sort().values, torch.arange(5000))
    assert torch.equal(split.test, split_rows(5000).test)
    assert not torch.equal(split.test, split_rows(5000, seed=1).test)


@pytest.mark.parametrize(
    ("count", "validation", "test"), [(2, 0.1675, 0.33), (100, 0.0, 0.3), (100, 0.5, 0.5), (100, 0.2, -0.1)]
)
def test_splits_that_leave_nothing_are_refused(count: int, validation: float, test: float) -> None:
    with pytest.raises(ValueError, match="expected"):
        split_rows(count, validation, test)


def test_the_learning_rate_makes_one_cycle() -> None:
    rates, momenta = zip(*(one_cycle(step / 1000, 1e-3) for step in range(1001)), strict=True)
    assert rates[0] == pytest.approx(4e-5) and max(rates) == rates[300] == pytest.approx(1e-3)
    assert rates[-1] == pytest.approx(4e-9)
    assert (momenta[0], momenta[300], momenta[-1]) == pytest.approx((0.95, 0.85, 0.95))
    assert list(rates[:301]) == sorted(rates[:301]) and list(rates[300:]) == sorted(rates[300:], reverse=True)


def test_choosing_a_number_format_moves_no_generator() -> None:
    compute._is_bfloat16_faster.cache_clear()
    torch.manual_seed(0)
    before = torch.get_rng_state()
    compute.mixed_precision(torch.device("cpu"))
    assert torch.equal(torch.get_rng_state(), before)


def test_one_seed_one_model(some: Particles) -> None:
    split = split_rows(60, seed=3)
    first, again, other = (train(some, QUICK, split, seed=seed) for seed in (3, 3, 4))
    for name, tensor in weights(first).items():
        torch.testing.assert_close(weights(again)[name], tensor)
    assert first.validation_median_rad == again.validation_median_rad
    assert not torch.allclose(weights(other)["dense.weight"], weights(first)["dense.weight"])
    assert sorted(first.parts) == sorted(some.names)
    assert {first.parts[some.names[row]] for row in split.test.tolist()} == {"test"}


@pytest.mark.parametrize("kill_at_step", [1, 7, 12])
def test_resuming_gives_the_model_of_an_undisturbed_training(
    some: Particles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kill_at_step: int
) -> None:
    monkeypatch.setattr(training, "STATE_INTERVAL_SECONDS", 0.0)
    split, state = split_rows(60), tmp_path / "state.pt"
    undisturbed = train(some, QUICK, split)
    steps = 0

    def kill(progress: Progress) -> None:
        nonlocal steps
        steps += 1
        if steps == kill_at_step + 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(some, QUICK, split, state_path=state, on_step=kill)
    assert [path.name for path in tmp_path.iterdir()] == ["state.pt"]
    resumed = train(some, QUICK, split, state_path=state, resume=True)
    for name, tensor in weights(undisturbed).items():
        torch.testing.assert_close(weights(resumed)[name], tensor)
    assert [line["step"] for line in resumed.log] == [line["step"] for line in undisturbed.log]
    assert resumed.log[-1]["images"] == 320


def test_resuming_needs_the_state_of_such_a_training(
    some: Particles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "STATE_INTERVAL_SECONDS", 0.0)
    state, split = tmp_path / "state.pt", split_rows(60)
    with pytest.raises(ValueError, match="state_path"):
        train(some, QUICK, split, resume=True)
    state.write_bytes(b"not a state")
    with pytest.raises(ValueError, match="training state to resume"):
        train(some, QUICK, split, state_path=state, resume=True)
    train(some, QUICK, split, state_path=state)
    wider = replace(QUICK, network=replace(QUICK.network, widths=(8, 24)))
    with pytest.raises(ValueError, match="expected the settings, seed"):
        train(some, wider, split, state_path=state, resume=True)
    with pytest.raises(ValueError, match="expected the settings, seed"):
        train(some, QUICK, split, seed=1, state_path=state, resume=True)


def test_it_learns(particles: Particles) -> None:
    """Far below the 2.2 rad of chance on particles it has never seen."""
    network = NetworkConfig(widths=(16, 32, 64), degree=2)
    settings = TrainingConfig(image_passes=6_000, batch_size=32, grid_nside=3, grid_count=4)
    split = split_rows(300)
    model = train(particles, Config(PreprocessingConfig(box=32), network, settings), split)
    predictions = predict(model, particles.select(split.test))
    assert particles.poses is not None
    errors = geodesic_distance(predictions.belief.mode, particles.poses.quaternions[split.test])
    assert float(errors.median()) < 0.8
    assert model.validation_median_rad < 0.8
    sure = predictions.figure_of_merit > predictions.figure_of_merit.median()
    assert float(errors[sure].mean()) < float(errors[~sure].mean())


def test_the_papers_head_and_loss_learn_a_few_images_by_heart(some: Particles) -> None:
    network = NetworkConfig(widths=(16, 32), head="qcqp")
    settings = TrainingConfig(image_passes=3_200, batch_size=16, augment=False, weight_decay=0.0)
    rows = torch.arange(32)
    split = Split(rows, rows, torch.empty(0, dtype=torch.long))
    model = train(some, Config(PreprocessingConfig(box=32), network, settings), split)
    assert model.validation_median_rad < 0.8


def test_the_papers_preset_trains() -> None:
    paper = preset("paper")
    config = replace(paper, training=replace(paper.training, image_passes=8, batch_size=4))
    lazy = simulate(load_structure("4v5d", 128, 2.8), SimulationConfig(count=8))
    losses = []
    model = train(lazy, config, split_rows(8, 0.25, 0.0), on_step=lambda p: losses.append(p.loss))
    assert len([line for line in model.log if "validation_median_rad" in line]) == 2
    assert all(loss > 0 for loss in losses[1:]) and 0 <= model.validation_median_rad <= 3.1416


def test_time_can_be_the_limit(some: Particles) -> None:
    fractions: list[float] = []
    train(some, QUICK, split_rows(60), max_minutes=0.5 / 60, on_step=lambda p: fractions.append(p.fraction))
    assert fractions[-1] == 1 and fractions == sorted(fractions)


def test_particles_without_poses_and_diverging_trainings_are_refused(some: Particles) -> None:
    with pytest.raises(ValueError, match="rlnAngleRot"):
        train(replace(some, poses=None), QUICK, split_rows(60))
    settings = replace(QUICK.training, max_learning_rate=1e30)
    with pytest.raises(ValueError, match="lower max_learning_rate"):
        train(some, replace(QUICK, training=settings), split_rows(60))


def test_training_changes_no_particle(some: Particles) -> None:
    rows = torch.arange(60)
    before = some.images[rows].clone()
    train(some, QUICK, split_rows(60))
    assert torch.equal(some.images[rows], before)
