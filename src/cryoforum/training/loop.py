"""Learn orientations from particles whose poses are known."""

import hashlib
import math
import time
from collections.abc import Callable
from pathlib import Path

import torch

from cryoforum.config import Config, as_plain_dict
from cryoforum.dataset.particles import Particles
from cryoforum.dataset.split import Split, part_of_each
from cryoforum.errors import InputError
from cryoforum.network.model import TrainedModel
from cryoforum.reconstruction.reference_map import Reference
from cryoforum.runtime.distributed import from_first, process_rank_and_count, refuse_different
from cryoforum.training.schedule import learning_rate_and_momentum
from cryoforum.training.state import Course, Progress, load_state, restored_course, save_state
from cryoforum.training.trainer import lesson_from

WARM_UP_STEPS = 200  # at least, before the largest rate, where a clock drives the schedule
VALIDATIONS = 20  # times in a training that the validation error is taken
STATE_INTERVAL_SECONDS = 30.0


def train(
    particles: Particles,
    config: Config,
    split: Split,
    *,
    reference: Reference | None = None,
    seed: int = 0,
    max_minutes: float | None = None,
    state_path: Path | None = None,
    resume: bool = False,
    on_prepare: Callable[[int], None] = lambda count: None,
    on_step: Callable[[Progress], None] = lambda progress: None,
) -> TrainedModel:
    """The model with the smallest validation error of one training.

    The schedule spans ``config.training.image_passes``, or ``max_minutes`` where given. ``reference``, made
    from the training particles, is what simulated images show. A state is kept at ``state_path`` so that
    ``resume`` goes on after a kill. Several processes (see `processes`) train as one: all call this with the
    same arguments, the first one's clock counts and it keeps the state, and all return the model.
    InputError: particles without poses, or nothing to simulate from.
    """
    refuse_different((as_plain_dict(config), seed, max_minutes, len(particles), str(state_path)))
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    lesson = lesson_from(particles, config, split.train, split.validation, reference, generator, on_prepare)
    network, settings = lesson.network, config.training
    course = Course()
    made_with = {
        "config": as_plain_dict(config),
        "seed": seed,
        "max_minutes": max_minutes,
        "particles": _fingerprint(particles, split),
    }
    if resume:
        state = load_state(_needed(state_path))
        if state.get("made_with") != made_with:
            raise InputError(
                "expected the settings, seed and particles of the training to be resumed, found others; "
                "give the same STAR file, --preset, --config, --set, --split, --seed and --max-minutes"
            )
        course = restored_course(state, network, lesson.optimizer, generator)
    rank, _ = process_rank_and_count()
    if rank > 0:  # dropout of its own
        torch.manual_seed(seed + 1_000_003 * rank + course.step)
    start = time.monotonic() - course.seconds
    saved = time.monotonic()
    while True:
        course.seconds = from_first(lambda: time.monotonic() - start)
        fraction = (
            course.images / settings.image_passes
            if max_minutes is None
            else course.seconds / (60 * max_minutes)
        )
        done = fraction >= 1
        if done or fraction >= course.validations / VALIDATIONS and course.step > 0:
            course.validations = int(fraction * VALIDATIONS) + 1
            course.validated(*lesson.validate(), network)
            on_step(Progress(min(fraction, 1), course.images, course.mean_loss, course.best_median))
        if done:
            break
        rate, momentum = learning_rate_and_momentum(settings.schedule, fraction, settings.max_learning_rate)
        if max_minutes is not None:  # on a busy machine time may pass the warm-up before the network can
            rate = min(rate, settings.max_learning_rate * (course.step + 1) / WARM_UP_STEPS)
        batch = lesson.source.next(course)
        loss = lesson.learn(batch, rate, momentum, fraction, course.step)
        course.stepped(loss, len(batch.orientations), rate, momentum)
        on_step(Progress(fraction, course.images, course.mean_loss, course.best_median))
        if rank == 0 and state_path is not None and time.monotonic() - saved > STATE_INTERVAL_SECONDS:
            state = course.state(network, lesson.optimizer, generator)
            save_state({**state, "made_with": made_with}, state_path)
            saved = time.monotonic()

    if not course.best_weights:
        raise InputError("training found no finite validation error; lower the learning rate")
    network.load_state_dict(course.best_weights)
    return TrainedModel(
        network=network.cpu().eval(),
        config=config,
        box=particles.box,
        pixel_size_angstrom=particles.pixel_size_angstrom,
        validation_median_rad=course.best_median or math.inf,
        log=course.log,
        parts=part_of_each(particles.names, split),
        sources={} if particles.sources is None else part_of_each(particles.sources.tolist(), split),
        intensity=lesson.intensity,
    )


def _needed(state_path: Path | None) -> Path:
    if state_path is None:
        raise InputError("expected state_path, the file to resume from")
    return state_path


def _fingerprint(particles: Particles, split: Split) -> str:
    """Tells one training set from another: names, orientations and what each particle is used for."""
    digest = hashlib.sha256("\n".join(particles.names).encode())
    poses = particles.poses.quaternions if particles.poses is not None else torch.empty(0)
    for values in (poses, split.train, split.validation, split.test):
        digest.update(values.numpy().tobytes())
    return digest.hexdigest()
