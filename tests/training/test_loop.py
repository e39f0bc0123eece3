"""Training: splits, seeds, resuming after a kill, and that it learns at all."""

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from cryoforum.config import (
    AugmentationConfig,
    Config,
    NetworkConfig,
    PreprocessingConfig,
    TrainingConfig,
    preset,
)
from cryoforum.dataset.levelling import levelled
from cryoforum.dataset.particles import Particles
from cryoforum.dataset.split import PAPER_SHARES, PAPER_SPLIT, Split, chosen_split, split_rows
from cryoforum.errors import InputError
from cryoforum.geometry.point_groups import in_fundamental_domain, symmetric_distance, symmetry_group
from cryoforum.geometry.rotations import geodesic_distance, random_unitquat
from cryoforum.imaging.noise_model import NoiseModel
from cryoforum.molecules.structures import load_structure
from cryoforum.network.heads import head_of
from cryoforum.network.model import TrainedModel
from cryoforum.network.model_folder import load_model, save_model
from cryoforum.network.predict import predict
from cryoforum.network.training_record import TrainingRecord
from cryoforum.reconstruction.reference_map import Reference
from cryoforum.runtime.devices import Compute
from cryoforum.runtime.reporter import Reporter, TrainingProgress
from cryoforum.simulation.config import SimulationConfig
from cryoforum.simulation.ideal import SimulatedImages, simulate
from cryoforum.training import loop as training
from cryoforum.training.data import training_data
from cryoforum.training.loop import train
from cryoforum.training.lr_finder import RangeTestOptions, learning_rate_range, suggested_rate
from cryoforum.training.options import TrainingOptions
from cryoforum.training.trainer import Trainer

QUICK = Config(
    PreprocessingConfig(box=32),
    network=NetworkConfig(widths=(8, 16), degree=2, dropout=0.1),
    training=TrainingConfig(image_passes=320, batch_size=16, grid_nside=2, grid_count=2),
)


@pytest.fixture(scope="module")
def particles() -> Particles:
    volume = load_structure("4v5d", 32, 11.2)
    lazy = simulate(volume, SimulationConfig(count=300, snr=20.0, max_shift_pixel=0.0))
    return replace(lazy, images=lazy.images[torch.arange(300)])


@pytest.fixture(scope="module")
def some(particles: Particles) -> Particles:
    return particles.select(torch.arange(60))


@pytest.fixture(scope="module")
def reference() -> Reference:
    """The map itself, with the noise and the scale of the particles."""
    volume = load_structure("4v5d", 32, 11.2)
    images = simulate(volume, SimulationConfig(count=300, snr=20.0, max_shift_pixel=0.0)).images
    assert isinstance(images, SimulatedImages)
    flat = torch.ones(1, 17)
    return Reference(volume, None, 15, noise=NoiseModel((), 32**2 * flat, flat, images.signal_scale * flat))


class Recorder(Reporter):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.steps: list[TrainingProgress] = []
        self.totals: dict[str, int] = {}
        self.done: dict[str, int] = {}

    def progress(self, description: str, total: int) -> Callable[[int], None]:
        self.totals[description], self.done[description] = total, 0

        def advance(count: int) -> None:
            self.done[description] += count

        return advance

    def training(self, progress: TrainingProgress) -> None:
        self.steps.append(progress)


class Clock:
    """Some times, and then always the last one."""

    def __init__(self, times: list[float], then: float) -> None:
        self.times, self.then = times, then

    def __call__(self) -> float:
        return self.times.pop(0) if self.times else self.then


def weights(model: TrainedModel) -> dict[str, torch.Tensor]:
    return dict(model.network.state_dict())


def test_an_image_is_never_learned_from_and_judged_by(some: Particles) -> None:
    """Two rows of one stack and slice, whatever their names: row 1 is learned from, row 60 validates."""
    split = Split(torch.arange(30), torch.arange(30, 60), torch.arange(0))
    sources = torch.arange(60)
    sources[59] = sources[0]
    doubled = replace(some, sources=sources)
    with pytest.raises(ValueError, match=r"in train \(row 1\) and validation \(row 60\); remove the dup"):
        train(doubled, QUICK, split)
    with pytest.raises(ValueError, match="each image in one part"):
        train(replace(some, names=(*some.names[:59], some.names[0])), QUICK, split)


def test_by_default_nine_tenths_are_learned_from_and_none_kept_for_tests() -> None:
    split = split_rows(5000)
    assert (len(split.train), len(split.validation), len(split.test)) == (4500, 500, 0)


def test_a_network_that_learned_nothing_is_known(some: Particles, monkeypatch: pytest.MonkeyPatch) -> None:
    shuffled = some.with_orientations(random_unitquat(len(some), generator=torch.Generator().manual_seed(5)))
    model = train(shuffled, QUICK, split_rows(60, 0.4, 0.0))
    chance = model.record.chance_median_rad
    assert chance is not None and 1.8 < chance < 2.7 and not model.has_learned
    assert "the network has learned next to nothing" in model.doubts[0]
    assert f"guessing gives {math.degrees(chance):.1f}°" in model.doubts[0]
    better = replace(model, validation_median_rad=chance / 2)
    assert better.has_learned
    assert replace(better, record=TrainingRecord()).doubts == []


def test_a_training_beside_another_program_is_known(some: Particles, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 30.0])
    monkeypatch.setattr(training.time, "thread_time", lambda: next(clock))
    monkeypatch.setattr(training.time, "monotonic", Clock([0.0, 0.0, 0.0], then=60.0))
    model = train(some, QUICK, split_rows(60, 0.4, 0.0), TrainingOptions(max_minutes=0.5))
    assert model.record.core_share == 0.5 and model.record.images_per_second is not None
    assert any("another program was using the cores" in doubt for doubt in model.doubts)
    alone = replace(model.record, core_share=0.95)
    assert not any("another program" in doubt for doubt in replace(model, record=alone).doubts)


def test_the_papers_split() -> None:
    split = split_rows(5000, *PAPER_SHARES)
    assert (len(split.train), len(split.validation), len(split.test)) == (2512, 838, 1650)
    rows = torch.cat([split.train, split.validation, split.test])
    assert torch.equal(rows.sort().values, torch.arange(5000))
    assert torch.equal(split.test, split_rows(5000, *PAPER_SHARES).test)
    assert not torch.equal(split.test, split_rows(5000, *PAPER_SHARES, seed=1).test)


def test_the_papers_percentages_are_its_shares(some: Particles) -> None:
    by_text, by_shares = chosen_split(some, PAPER_SPLIT, 3), split_rows(len(some), *PAPER_SHARES, seed=3)
    for part in ("train", "validation", "test"):
        assert torch.equal(getattr(by_text, part), getattr(by_shares, part))


@pytest.mark.parametrize(
    ("count", "validation", "test"), [(2, 0.1675, 0.33), (100, 0.0, 0.3), (100, 0.5, 0.5), (100, 0.2, -0.1)]
)
def test_splits_that_leave_nothing_are_refused(count: int, validation: float, test: float) -> None:
    with pytest.raises(ValueError, match="expected"):
        split_rows(count, validation, test)


def test_one_seed_one_model(some: Particles) -> None:
    split = split_rows(60, *PAPER_SHARES, seed=3)
    first, again, other = (train(some, QUICK, split, TrainingOptions(seed)) for seed in (3, 3, 4))
    for name, tensor in weights(first).items():
        torch.testing.assert_close(weights(again)[name], tensor)
    assert first.validation_median_rad == again.validation_median_rad
    assert not torch.allclose(weights(other)["dense.weight"], weights(first)["dense.weight"])
    assert sorted(first.parts) == sorted(some.names)
    assert {first.parts[some.names[row]] for row in split.test.tolist()} == {"test"}


def test_the_callers_random_numbers_stay_where_they_are(some: Particles) -> None:
    """And do not matter: dropout and first weights have a stream of their own."""
    config = replace(QUICK, training=replace(QUICK.training, image_passes=32))
    models = []
    for seed in (5, 6):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        models.append(train(some, config, split_rows(60, *PAPER_SHARES)))
        learning_rate_range(some, config, split_rows(60, *PAPER_SHARES), RangeTestOptions(steps=2))
        assert torch.equal(torch.get_rng_state(), before)
    for name, tensor in weights(models[0]).items():
        torch.testing.assert_close(weights(models[1])[name], tensor)


def test_device_and_precision_are_kept_with_the_model(some: Particles, tmp_path: Path) -> None:
    config = replace(QUICK, training=replace(QUICK.training, image_passes=32))
    options = TrainingOptions(device="cpu", precision="bfloat16")
    model = train(some, config, split_rows(60, *PAPER_SHARES), options)
    assert model.compute == Compute(torch.device("cpu"), "bfloat16")
    save_model(model, tmp_path / "model")
    loaded = load_model(tmp_path / "model")
    assert loaded.compute == model.compute
    # What it was trained in does not decide what it is used in.
    found = predict(loaded, some, tta=1, compute=Compute()).posterior.concentration
    rounded = predict(loaded, some, tta=1, compute=loaded.compute).posterior.concentration
    assert not torch.equal(rounded, found)
    expected = predict(replace(loaded, compute=Compute()), some, tta=1, compute=Compute())
    assert torch.equal(expected.posterior.concentration, found)


def test_a_reporter_hears_of_every_image_and_every_step(some: Particles) -> None:
    recorder, split = Recorder(), split_rows(60, *PAPER_SHARES)
    model = train(some, QUICK, split, reporter=recorder)
    count = len(split.train) + len(split.validation)
    assert recorder.totals == recorder.done == {"reading particles": count}
    validations = [line for line in model.log if "validation_median_rad" in line]
    assert len(recorder.steps) == 20 + len(validations)
    assert recorder.steps[-1].fraction == 1 and recorder.steps[-1].images == 320
    assert recorder.steps[0].validation_median_rad is None


EVERYTHING = replace(
    QUICK,
    preprocessing=replace(QUICK.preprocessing, standardise="set"),
    augmentation=AugmentationConfig(noise=0.3, defocus_angstrom=500.0, contrast=0.1, simulated_share=0.5),
    training=replace(QUICK.training, loss="pairs", pairs="stratified", l2=1e-4),
)


@pytest.mark.parametrize(("config", "kill_at_step"), [(QUICK, 1), (QUICK, 7), (QUICK, 12), (EVERYTHING, 7)])
def test_resuming_gives_the_model_of_an_undisturbed_training(
    some: Particles,
    reference: Reference,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    config: Config,
    kill_at_step: int,
) -> None:
    monkeypatch.setattr(training, "STATE_INTERVAL_SECONDS", 0.0)
    split, state = split_rows(60, *PAPER_SHARES), tmp_path / "state.pt"
    undisturbed = train(some, config, split, reference=reference)

    class Kill(Reporter):
        calls = 0

        def training(self, progress: TrainingProgress) -> None:
            self.calls += 1
            if self.calls == kill_at_step + 1:
                raise KeyboardInterrupt

    options = TrainingOptions(state_path=state)
    with pytest.raises(KeyboardInterrupt):
        train(some, config, split, options, reference=reference, reporter=Kill())
    assert [path.name for path in tmp_path.iterdir()] == ["state.pt"]
    resumed = train(some, config, split, replace(options, resume=True), reference=reference)
    for name, tensor in weights(undisturbed).items():
        torch.testing.assert_close(weights(resumed)[name], tensor)
    assert [line["step"] for line in resumed.log] == [line["step"] for line in undisturbed.log]
    assert resumed.log[-1]["images"] == 320


def test_resuming_needs_the_state_of_such_a_training(
    some: Particles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "STATE_INTERVAL_SECONDS", 0.0)
    state, split = tmp_path / "state.pt", split_rows(60, *PAPER_SHARES)
    resumed = TrainingOptions(state_path=state, resume=True)
    with pytest.raises(ValueError, match="state_path"):
        train(some, QUICK, split, TrainingOptions(resume=True))
    state.write_bytes(b"not a state")
    with pytest.raises(ValueError, match="state of a run to resume"):
        train(some, QUICK, split, resumed)
    train(some, QUICK, split, TrainingOptions(state_path=state, device="cpu"))
    wider = replace(QUICK, network=replace(QUICK.network, widths=(8, 24)))
    for config, options in (
        (wider, resumed),
        (QUICK, replace(resumed, seed=1)),
        (QUICK, replace(resumed, device="cpu", precision="bfloat16")),
    ):
        with pytest.raises(ValueError, match="expected the settings, seed, particles and device"):
            train(some, config, split, options)
    with pytest.raises(ValueError, match="expected the settings, seed, particles and device"):
        train(levelled(some), QUICK, split, resumed)  # the same images, but for their ramps


def test_a_callback_ends_a_training_which_keeps_the_best(some: Particles) -> None:
    told: list[TrainingProgress] = []

    def on_step(progress: TrainingProgress) -> bool:
        told.append(progress)
        return progress.step == 3

    split = split_rows(60, *PAPER_SHARES)
    model = train(some, QUICK, split, TrainingOptions(on_step=on_step))
    assert [progress.step for progress in told] == [1, 2, 3]
    assert told[-1].images == 3 * QUICK.training.batch_size and told[-1].seconds > 0
    assert math.isfinite(model.validation_median_rad) and model.log[-1]["step"] == 3


def test_a_training_goes_on_from_the_weights_of_another(some: Particles) -> None:
    split = split_rows(60, *PAPER_SHARES)
    stopped = TrainingOptions(on_step=lambda progress: True)
    first = train(some, QUICK, split, stopped)
    rate = replace(QUICK.training, max_learning_rate=1e-12, weight_decay=0.0)
    still = replace(QUICK, training=rate)
    again = train(some, still, split, replace(stopped, start=first))
    for name, tensor in first.network.named_parameters():
        torch.testing.assert_close(dict(again.network.named_parameters())[name], tensor, atol=1e-6, rtol=0)
    wider = replace(QUICK, network=replace(QUICK.network, widths=(8, 24)))
    with pytest.raises(ValueError, match="a start of the same network and preprocessing"):
        train(some, wider, split, replace(stopped, start=first))


def test_an_interrupt_keeps_the_best_where_no_state_is_kept(some: Particles, tmp_path: Path) -> None:
    def interrupted(progress: TrainingProgress) -> bool:
        if progress.step == 4:
            raise KeyboardInterrupt
        return False

    split = split_rows(60, *PAPER_SHARES)
    model = train(some, QUICK, split, TrainingOptions(on_step=interrupted))
    assert math.isfinite(model.validation_median_rad)
    with pytest.raises(KeyboardInterrupt):  # on the command line a state goes on later
        train(some, QUICK, split, TrainingOptions(on_step=interrupted, state_path=tmp_path / "state.pt"))


def test_loss_network_and_optimizer_may_be_the_callers(some: Particles, tmp_path: Path) -> None:
    split, size = split_rows(60, *PAPER_SHARES), head_of(QUICK.network).size
    box = QUICK.preprocessing.box
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(box * box, size))
    before = network[1].weight.detach().clone()
    made: list[torch.optim.Optimizer] = []

    def optimizer(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        made.append(torch.optim.SGD(groups, lr=0.1))
        return made[-1]

    def loss(numbers: torch.Tensor, *given: object) -> torch.Tensor:
        return numbers.square().mean()

    own = TrainingOptions(
        loss=loss, network=network, optimizer=optimizer, on_step=lambda progress: progress.step == 3
    )
    model = train(some, QUICK, split, own)
    assert model.network is network and not torch.equal(network[1].weight, before)
    assert made[0].param_groups[0]["lr"] < 0.1  # that of the schedule
    assert len(predict(model, some.select(split.test))) == len(split.test)
    with pytest.raises(InputError, match="registered parts to save; register yours first"):
        save_model(model, tmp_path / "model")
    small = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(box * box, 3))
    with pytest.raises(InputError, match=rf"to numbers \(b, {size}\), which the head reads, found \(2, 3\)"):
        train(some, QUICK, split, replace(own, network=small))


def test_progress_is_shown_where_it_is_asked_for(some: Particles, capsys: pytest.CaptureFixture[str]) -> None:
    split = split_rows(60, *PAPER_SHARES)
    train(some, QUICK, split, TrainingOptions(progress=True))
    shown = capsys.readouterr()
    assert "training: 100 %" in shown.err and "images/s" in shown.err and not shown.out


def test_it_learns(particles: Particles) -> None:
    """Far below the 2.2 rad of chance on particles it has never seen."""
    network = NetworkConfig(widths=(16, 32, 64), degree=2)
    settings = TrainingConfig(image_passes=6_000, batch_size=32, grid_nside=3, grid_count=4)
    split = split_rows(300, *PAPER_SHARES)
    config = Config(PreprocessingConfig(box=32), network=network, training=settings)
    model = train(particles, config, split)
    predictions = predict(model, particles.select(split.test))
    assert particles.poses is not None
    errors = geodesic_distance(predictions.posterior.mode, particles.poses.quaternions[split.test])
    assert float(errors.median()) < 0.8
    assert model.validation_median_rad < 0.8
    sure = predictions.figure_of_merit > predictions.figure_of_merit.median()
    assert float(errors[sure].mean()) < float(errors[~sure].mean())


def test_the_papers_head_and_loss_learn_a_few_images_by_heart(some: Particles) -> None:
    network = NetworkConfig(widths=(16, 32), head="qcqp")
    settings = TrainingConfig(image_passes=3_200, batch_size=16, loss="pairs", weight_decay=0.0)
    still = AugmentationConfig(rotate=False, mirror=False, max_shift_pixel=0.0)
    rows = torch.arange(32)
    split = Split(rows, rows, torch.empty(0, dtype=torch.long))
    model = train(some, Config(PreprocessingConfig(box=32), still, network, settings), split)
    assert model.validation_median_rad < 0.8


def test_the_papers_preset_trains() -> None:
    paper = preset("paper")
    config = replace(paper, training=replace(paper.training, image_passes=8, batch_size=4))
    lazy = simulate(load_structure("4v5d", 128, 2.8), SimulationConfig(count=8))
    recorder = Recorder()
    model = train(lazy, config, split_rows(8, 0.25, 0.0), reporter=recorder)
    assert len([line for line in model.log if "validation_median_rad" in line]) == 2
    assert (
        all(progress.loss > 0 for progress in recorder.steps[1:])
        and 0 <= model.validation_median_rad <= 3.1416
    )


def test_time_can_be_the_limit(some: Particles) -> None:
    recorder = Recorder()
    train(
        some, QUICK, split_rows(60, *PAPER_SHARES), TrainingOptions(max_minutes=0.5 / 60), reporter=recorder
    )
    fractions = [progress.fraction for progress in recorder.steps]
    assert fractions[-1] == 1 and fractions == sorted(fractions)


def test_particles_without_poses_and_diverging_trainings_are_refused(some: Particles) -> None:
    with pytest.raises(ValueError, match="rlnAngleRot"):
        train(replace(some, poses=None), QUICK, split_rows(60, *PAPER_SHARES))
    settings = replace(QUICK.training, max_learning_rate=1e30)
    with pytest.raises(ValueError, match="lower max_learning_rate"):
        train(some, replace(QUICK, training=settings), split_rows(60, *PAPER_SHARES))


def test_the_fixed_schedule_keeps_the_rate_through_a_training(some: Particles) -> None:
    settings = replace(QUICK.training, schedule="fixed", image_passes=640, max_learning_rate=1e-4)
    model = train(some, replace(QUICK, training=settings), split_rows(60, *PAPER_SHARES))
    logged = [line["learning_rate"] for line in model.log if "learning_rate" in line]
    assert logged == [1e-4, 1e-4]


def test_l2_adds_the_sum_of_squares_of_all_kernels_to_the_loss(some: Particles) -> None:
    rows, losses = torch.arange(30), {}
    for l2 in (0.0, 0.5):
        config = replace(QUICK, training=replace(QUICK.training, l2=l2))
        data = training_data(some, config, Split(rows, rows, rows[:0]), Compute())
        trainer = Trainer(config, data, Compute(), TrainingOptions(seed=0))
        kernels = [
            w for name, w in trainer.network.named_parameters() if name.endswith("weight") and w.ndim > 1
        ]
        squares = sum(float(weight.detach().square().sum()) for weight in kernels)
        losses[l2] = trainer.step(trainer.batches.next(), 1e-3, 0.9, 0.0)
    assert losses[0.5] - losses[0.0] == pytest.approx(0.5 * squares, rel=1e-4)


def test_a_model_of_a_set_takes_its_intensity_along(some: Particles, tmp_path: Path) -> None:
    config = replace(QUICK, preprocessing=replace(QUICK.preprocessing, standardise="set"))
    model = train(some, config, split_rows(60, *PAPER_SHARES))
    assert model.intensity is not None
    save_model(model, tmp_path / "model")
    loaded = load_model(tmp_path / "model")
    assert loaded.intensity == model.intensity
    before, after = (predict(each, some).posterior.concentration for each in (model, loaded))
    assert torch.equal(before, after)
    # Unlike of a model that looks at each image for itself, contrast matters.
    stronger = replace(some, images=3 * some.images[torch.arange(60)])
    assert not torch.allclose(predict(loaded, stronger).posterior.concentration, before, rtol=1e-2)


def test_a_network_that_never_saw_a_turned_image_is_not_asked_to_read_one(some: Particles) -> None:
    network = NetworkConfig(widths=(16, 32), head="svd")
    settings = TrainingConfig(image_passes=960, batch_size=16, loss="regression", max_learning_rate=1e-2)
    still = AugmentationConfig(rotate=False, mirror=False, max_shift_pixel=0.0)
    rows = torch.arange(16)
    model = train(
        some, Config(PreprocessingConfig(box=16), still, network, settings), Split(rows, rows, rows[:0])
    )
    assert some.poses is not None
    found = predict(model, some.select(rows)).posterior.mode
    error = float(geodesic_distance(found, some.poses.quaternions[rows]).median())
    assert error == pytest.approx(model.validation_median_rad, abs=0.1)


@pytest.mark.parametrize("handling", ["group", "domain"])
def test_orientations_are_learned_where_they_are_or_in_one_domain(some: Particles, handling: str) -> None:
    network = NetworkConfig(widths=(16, 32), head="svd")
    settings = TrainingConfig(image_passes=960, batch_size=16, loss="regression", max_learning_rate=1e-2)
    still = AugmentationConfig(rotate=False, mirror=False, max_shift_pixel=0.0)
    config = Config(PreprocessingConfig(box=16), still, network, settings, "D2", handling)
    rows = torch.arange(16)
    model = train(some, config, Split(rows, rows, rows[:0]))
    assert model.validation_median_rad < 0.3 and some.poses is not None
    group, truth = symmetry_group("D2"), some.poses.quaternions[rows]
    found = predict(model, some.select(rows), tta=1).posterior.mode
    assert float(symmetric_distance(found, truth, group).median()) < 0.3
    inside = geodesic_distance(found, in_fundamental_domain(truth, group))
    assert (float(inside.median()) < 0.3) is (handling == "domain")


def test_simulated_images_need_a_reference(some: Particles) -> None:
    config = replace(QUICK, augmentation=AugmentationConfig(simulated_share=0.5))
    with pytest.raises(ValueError, match="expected a reference, as simulated_share is above 0"):
        train(some, config, split_rows(60, *PAPER_SHARES))


def test_what_was_learned_from_simulated_images_alone_holds_for_particles(
    particles: Particles, reference: Reference
) -> None:
    network = NetworkConfig(widths=(16, 32, 64), degree=2)
    settings = TrainingConfig(image_passes=4_000, batch_size=32, grid_nside=3, grid_count=4)
    augmentation = AugmentationConfig(simulated_share=1.0)
    config = Config(PreprocessingConfig(box=16), augmentation, network, settings)
    model = train(particles, config, split_rows(300, *PAPER_SHARES), reference=reference)
    assert model.validation_median_rad < 0.8


def test_the_rate_grows_until_learning_fails(some: Particles) -> None:
    recorder, options = Recorder(), RangeTestOptions(steps=24, lowest=1e-5, highest=1e-1)
    found = learning_rate_range(some, QUICK, split_rows(60, *PAPER_SHARES), options, reporter=recorder)
    rates, losses = zip(*found, strict=True)
    assert len(rates) == 24 == recorder.done["raising the rate"]
    assert (rates[0], rates[-1]) == pytest.approx((1e-5, 1e-1))
    steps = [after / before for before, after in pairwise(rates)]
    assert steps == pytest.approx([steps[0]] * 23) and steps[0] > 1
    assert torch.isfinite(torch.tensor(losses)).all()
    assert rates[0] / 10 <= suggested_rate(found) <= rates[-1] / 10
    again = learning_rate_range(some, QUICK, split_rows(60, *PAPER_SHARES), options)
    torch.testing.assert_close(torch.tensor(again), torch.tensor(found), atol=1e-3, rtol=1e-3)


def test_a_rate_far_too_high_ends_the_search(some: Particles) -> None:
    found = learning_rate_range(some, QUICK, split_rows(60, *PAPER_SHARES), RangeTestOptions(40, 1e-4, 1e30))
    assert 2 < len(found) < 40
    assert torch.isfinite(torch.tensor(found)).all() and found[-1][0] < 1e25


def test_the_suggestion_is_a_tenth_of_where_the_loss_is_smallest() -> None:
    rates = torch.logspace(-6, 0, 121)
    valley = (rates.log10() + 2).square()  # smallest at 0.01
    noisy = valley + 0.02 * torch.randn(121, generator=torch.Generator().manual_seed(0))
    noisy[20] = -100  # one lucky batch
    found = list(zip(rates.tolist(), noisy.tolist(), strict=True))
    assert suggested_rate(found) == pytest.approx(1e-3, rel=0.6)
    with pytest.raises(ValueError, match="expected 18 steps or more to choose a rate from, found 17"):
        suggested_rate(found[:17])


@pytest.mark.parametrize("steps", [0, 1])
def test_a_range_has_two_ends(some: Particles, steps: int) -> None:
    with pytest.raises(ValueError, match="expected"):
        suggested_rate(
            learning_rate_range(some, QUICK, split_rows(60, *PAPER_SHARES), RangeTestOptions(steps))
        )


def test_training_changes_no_particle(some: Particles) -> None:
    rows = torch.arange(60)
    before = some.images[rows].clone()
    train(some, QUICK, split_rows(60, *PAPER_SHARES))
    assert torch.equal(some.images[rows], before)
