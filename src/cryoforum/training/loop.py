"""Learn orientations from particles whose poses are known."""

import hashlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from cryoforum.config import Config, as_plain_dict
from cryoforum.dataset.particles import Particles
from cryoforum.network.model_folder import PARTS, TrainedModel, load_state, save_state
from cryoforum.reconstruction.reference_map import Reference
from cryoforum.runtime.distributed import from_first, process_rank_and_count, refuse_different
from cryoforum.training.state import (
    FIXED_MOMENTUM,
    Course,
    Progress,
    learning_rate_and_momentum,
    restored_course,
)
from cryoforum.training.trainer import Diverged, lesson_from

WARM_UP_STEPS = 200  # at least, before the largest rate, where a clock drives the schedule
VALIDATIONS = 20  # times in a training that the validation error is taken
STATE_INTERVAL_SECONDS = 30.0
SMOOTHED_RATES = 9  # steps of a range test whose median loss counts
FEWEST_RATES = 2 * SMOOTHED_RATES


@dataclass(frozen=True)
class Split:
    """Disjoint rows: to learn from, to choose the best weights by, to report on."""

    train: Tensor
    validation: Tensor
    test: Tensor


def split_rows(
    count: int, validation_share: float = 0.1675, test_share: float = 0.33, *, seed: int = 0
) -> Split:
    """A random split; the defaults give 2512/838/1650 of 5000, as Cryo-forum has it."""
    if not (validation_share > 0 and test_share >= 0 and validation_share + test_share < 1):
        raise ValueError(
            "expected shares for validation above 0 and test of 0 or more with room left to train, "
            f"found {validation_share} and {test_share}"
        )
    test = round(count * test_share)
    validation = math.ceil(count * validation_share)
    if count - test - validation < 2:
        raise ValueError(f"expected more particles to split, found {count}; add some or change --split")
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    held_out = test + validation
    return Split(order[held_out:], order[test:held_out], order[:test])


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
    ValueError: particles without poses, or nothing to simulate from.
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
            raise ValueError(
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
        raise ValueError("training found no finite validation error; lower the learning rate")
    network.load_state_dict(course.best_weights)
    return TrainedModel(
        network=network.cpu().eval(),
        config=config,
        box=particles.box,
        pixel_size_angstrom=particles.pixel_size_angstrom,
        validation_median_rad=course.best_median or math.inf,
        log=course.log,
        parts=_part_of_each(particles.names, split),
        sources={} if particles.sources is None else _part_of_each(particles.sources.tolist(), split),
        intensity=lesson.intensity,
    )


def learning_rate_range(
    particles: Particles,
    config: Config,
    split: Split,
    *,
    reference: Reference | None = None,
    steps: int = 200,
    lowest: float = 1e-6,
    highest: float = 1.0,
    seed: int = 0,
    on_step: Callable[[int], None] = lambda count: None,
) -> list[tuple[float, float]]:
    """Rates that grow from ``lowest`` to ``highest``, a step each, and the loss at them (Smith 2017).

    `suggested_rate` reads the largest rate of a schedule from it. It ends where the loss is not finite.
    """
    if steps < 2:
        raise ValueError(f"expected 2 steps or more, found {steps}")
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    lesson = lesson_from(particles, config, split.train, split.validation, reference, generator)
    course = Course()
    found = []
    for step in range(steps):
        rate = lowest * (highest / lowest) ** (step / (steps - 1))
        batch = lesson.source.next(course)
        try:
            loss = lesson.learn(batch, rate, FIXED_MOMENTUM, 0.5, step)
        except Diverged:  # where such a test is meant to end
            break
        if not math.isfinite(loss):
            break
        course.stepped(loss, len(batch.orientations), rate, FIXED_MOMENTUM)
        found.append((rate, loss))
        on_step(1)
    return found


def suggested_rate(found: list[tuple[float, float]]) -> float:
    """A tenth of the rate at which the smoothed loss of `learning_rate_range` is smallest."""
    if len(found) < FEWEST_RATES:
        raise ValueError(
            f"expected {FEWEST_RATES} steps or more to choose a rate from, found {len(found)} before "
            "training diverged; start at a lower rate"
        )
    losses = torch.tensor([loss for _, loss in found])
    smooth = losses.unfold(0, SMOOTHED_RATES, 1).median(dim=-1).values
    return found[int(smooth.argmin()) + SMOOTHED_RATES // 2][0] / 10


def _needed(state_path: Path | None) -> Path:
    if state_path is None:
        raise ValueError("expected state_path, the file to resume from")
    return state_path


def _fingerprint(particles: Particles, split: Split) -> str:
    """Tells one training set from another: names, orientations and what each particle is used for."""
    digest = hashlib.sha256("\n".join(particles.names).encode())
    poses = particles.poses.quaternions if particles.poses is not None else torch.empty(0)
    for values in (poses, split.train, split.validation, split.test):
        digest.update(values.numpy().tobytes())
    return digest.hexdigest()


Key = TypeVar("Key")


def _part_of_each(keys: Sequence[Key], split: Split) -> dict[Key, str]:
    """Part of the split by what each particle is known by."""
    return {keys[row]: part for part in PARTS for row in getattr(split, part).tolist()}
