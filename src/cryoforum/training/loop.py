"""Train a network on particles whose poses are known."""

import hashlib
import logging
import math
import time
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cryoforum.choices import SCHEDULES
from cryoforum.config import Config
from cryoforum.dataset.particles import Particles
from cryoforum.dataset.split import Split, part_of_each, refuse_images_in_two_parts
from cryoforum.errors import InputError, require
from cryoforum.network.model import TrainedModel
from cryoforum.network.training_record import TrainingRecord
from cryoforum.reconstruction.reference_map import Reference
from cryoforum.runtime.devices import Compute, compute_for
from cryoforum.runtime.distributed import from_first, is_first, process_rank_and_count, refuse_different
from cryoforum.runtime.progress import progress_here
from cryoforum.runtime.reporter import SILENT, Reporter, TrainingProgress
from cryoforum.storage.state import load_state, save_state
from cryoforum.training.data import training_data
from cryoforum.training.options import DEFAULT_OPTIONS, OnStep, TrainingOptions
from cryoforum.training.trainer import Trainer

logger = logging.getLogger(__name__)

WARM_UP_STEPS = 200  # at least, before the largest rate, where a clock drives the schedule
STATE_INTERVAL_SECONDS = 30.0


def train(
    particles: Particles,
    config: Config,
    split: Split,
    options: TrainingOptions = DEFAULT_OPTIONS,
    *,
    reference: Reference | None = None,
    reporter: Reporter = SILENT,
) -> TrainedModel:
    """Train a network and keep the weights with the smallest median validation error.

    Several processes (see `runtime.distributed`) train as one: all call this with the same arguments, the
    first one's clock counts and it keeps the state, and all return the model. A KeyboardInterrupt ends a
    training that keeps no state as ``on_step`` does: with what was best until then, if there is anything.

    Parameters
    ----------
    particles : Particles
        With poses.
    config : Config
    split : Split
        Which of the particles to learn from and to validate on.
    options : TrainingOptions
    reference : Reference, optional
        A map made from the training particles with their noise: what simulated images show.
    reporter : Reporter
        Shows how many images are prepared, and the training after each step.

    Returns
    -------
    TrainedModel
        On the CPU.

    Raises
    ------
    InputError
        For particles without poses or an image in two parts of the split, nothing to simulate from, a state
        of another training, or a training that diverges.
    """
    if options.progress and reporter is SILENT:
        with closing(progress_here()) as shown:
            return train(particles, config, split, options, reference=reference, reporter=shown)
    refuse_images_in_two_parts(particles, split)
    compute = compute_for(options.device, options.precision)
    made_with = _fingerprint(particles, config, split, options, compute)
    refuse_different((made_with, str(options.state_path)))
    data = training_data(particles, config, split, compute, reference=reference, reporter=reporter)
    trainer = Trainer(config, data, compute, options)
    if options.start is not None:
        _load_weights(options.start, config, trainer)
    if options.resume:
        trainer.load_state_dict(_resumable_state(options.state_path, made_with))
    begun = _Clocks()
    try:
        _train_to_end(trainer, options, reporter, made_with)
    except KeyboardInterrupt:
        if options.state_path is not None or not trainer.history.best_weights:
            raise
        logger.warning("interrupted: the weights that were best until now are kept")
    return _best_model(trainer, particles, split, begun.core_share(compute))


def _train_to_end(
    trainer: Trainer, options: TrainingOptions, reporter: Reporter, made_with: dict[str, Any]
) -> None:
    """Step by step, until the schedule ends or the caller says so."""
    history, settings = trainer.history, trainer.config.training
    schedule = SCHEDULES.chosen(settings.schedule)
    start = time.monotonic() - history.seconds
    saved = time.monotonic()
    while True:
        history.seconds = from_first(lambda: time.monotonic() - start)
        progress = history.images / settings.image_passes
        if options.max_minutes is not None:
            progress = history.seconds / (60 * options.max_minutes)
        if history.validation_is_due(progress):
            trainer.validate(progress)
            reporter.training(history.progress(progress))
        if progress >= 1:
            break
        rate, momentum = schedule(progress, settings.max_learning_rate)
        if options.max_minutes is not None:  # on a busy machine time may pass the warm-up before the network
            rate = min(rate, settings.max_learning_rate * (history.steps + 1) / WARM_UP_STEPS)
        trainer.step(trainer.batches.next(), rate, momentum, progress)
        reporter.training(history.progress(progress))
        if _is_stopped(options.on_step, history.progress(progress)):
            trainer.validate(1.0)
            break
        if options.state_path is not None and time.monotonic() - saved > STATE_INTERVAL_SECONDS:
            if is_first():
                save_state({**trainer.state_dict(), "made_with": made_with}, options.state_path)
            saved = time.monotonic()


def _is_stopped(on_step: OnStep | None, progress: TrainingProgress) -> bool:
    """What the caller says to a step; of several processes the first is asked."""
    return on_step is not None and from_first(lambda: bool(on_step(progress)))


def _load_weights(start: TrainedModel, config: Config, trainer: Trainer) -> None:
    """InputError where the start is of another network."""
    same = start.config.network == config.network and start.config.preprocessing == config.preprocessing
    expected = "a start of the same network and preprocessing"
    require(same, expected, f"{start.config.network} and {start.config.preprocessing}")
    trainer.network.load_state_dict(start.network.state_dict())


class _Clocks:
    """When the training thread began, in time that passed and in processor time of its own."""

    def __init__(self) -> None:
        self._passed, self._own = time.monotonic(), time.thread_time()

    def core_share(self, compute: Compute) -> float | None:
        """How much of a core the thread has had since; None where it waits for a GPU or other processes."""
        if compute.device.type != "cpu" or process_rank_and_count()[1] > 1:
            return None
        return (time.thread_time() - self._own) / max(time.monotonic() - self._passed, 1e-9)


def _best_model(
    trainer: Trainer, particles: Particles, split: Split, core_share: float | None
) -> TrainedModel:
    history, network = trainer.history, trainer.network
    if not history.best_weights:
        raise InputError("training found no finite validation error; lower the learning rate")
    network.load_state_dict(history.best_weights)
    return TrainedModel(
        network=network.cpu().eval(),
        config=trainer.config,
        box=particles.box,
        pixel_size_angstrom=particles.pixel_size_angstrom,
        validation_median_rad=history.best_median_rad or math.inf,
        log=history.log,
        parts=part_of_each(particles.names, split),
        sources={} if particles.sources is None else part_of_each(particles.sources.tolist(), split),
        intensity=trainer.data.intensity,
        compute=trainer.compute,
        record=TrainingRecord(
            history.chance_median_rad, history.images / max(history.seconds, 1e-9), core_share
        ),
    )


def _resumable_state(path: Path | None, made_with: dict[str, Any]) -> dict[str, Any]:
    if path is None:
        raise InputError("expected state_path, the file to resume from")
    state = load_state(path)
    if state.get("made_with") != made_with:
        raise InputError(
            "expected the settings, seed, particles and device of the training to be resumed, found others; "
            "give the same STAR file, --preset, --config, --set, --split, --seed, --max-minutes, --device "
            "and --precision"
        )
    return state


def _fingerprint(
    particles: Particles, config: Config, split: Split, options: TrainingOptions, compute: Compute
) -> dict[str, Any]:
    """All that makes two trainings the same; images are known by their names and their files."""
    grid = f"{particles.box} {particles.pixel_size_angstrom}"
    identity = str(getattr(particles.images, "identity", ""))
    digest = hashlib.sha256("\n".join([*particles.names, grid, identity]).encode())
    known = [split.train, split.validation, split.test]
    known += [] if particles.half_sets is None else [particles.half_sets]
    known += [] if particles.poses is None else list(vars(particles.poses).values())
    known += [] if particles.ctf is None else list(vars(particles.ctf).values())
    for values in known:
        digest.update(values.numpy().tobytes())
    return {
        "config": asdict(config),
        "seed": options.seed,
        "max_minutes": options.max_minutes,
        "device": compute.device.type,
        "precision": compute.precision,
        "particles": digest.hexdigest(),
    }
