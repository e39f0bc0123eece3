"""Learning on files: from a STAR file to a model folder with its reference, and the learning rate to use."""

import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch

from cryoforum.commands.workflow import Bar, checked_particles, checked_poses, read_joined
from cryoforum.config import Config
from cryoforum.dataset.particles import Particles
from cryoforum.dataset.poses import Poses
from cryoforum.dataset.split import PARTS, Split, parts_of, read_split, split_rows
from cryoforum.errors import InputError
from cryoforum.io.scratch import NO_SCRATCH, Scratch, on_scratch
from cryoforum.network.model import TrainedModel
from cryoforum.network.model_folder import save_model
from cryoforum.reconstruction.half_sets import drawn_half_sets
from cryoforum.reconstruction.reference_map import (
    Reference,
    forget_reference,
    reference_from_particles,
    save_reference,
)
from cryoforum.runtime.devices import compute_for
from cryoforum.runtime.distributed import from_first, is_first, wait_for_all
from cryoforum.runtime.reporter import Reporter, TrainingProgress
from cryoforum.storage.files import is_leftover
from cryoforum.training.calibration import calibrated
from cryoforum.training.loop import TrainingOptions, train

CALIBRATED_BY = 1000  # validation particles
STATE = "state.pt"


class CallbackReporter(Reporter):
    """Passes what it is told on to a maker of progress bars and to a function called after each step."""

    def __init__(self, bar: Bar, on_step: Callable[[TrainingProgress], None] = lambda state: None) -> None:
        self.bar, self.on_step = bar, on_step

    def progress(self, description: str, total: int) -> Callable[[int], None]:
        return self.bar(description, total)

    def training(self, progress: TrainingProgress) -> None:
        self.on_step(progress)


def train_to_folder(
    paths: Sequence[Path],
    root: Path | None,
    out: Path,
    config: Config,
    *,
    split_choice: str | None,
    seed: int,
    max_minutes: float | None,
    resume: bool,
    overwrite: bool,
    bar: Bar,
    on_step: Callable[[TrainingProgress], None],
    tell: Callable[[str], None] = lambda line: None,
    scratch: Scratch = NO_SCRATCH,
    half: int | None = None,
) -> TrainedModel:
    """Train on the particles of one or several files and write the model folder with its reference.

    They are resampled to the box and pixel size that most have. ``tell`` is told, a line each, of that, of
    what joining changed, of odd stacks, and where no reference could be made.
    ``half``: 1 or 2, to learn from that half set alone; drawn by ``seed`` where the file has none. Of several
    processes, which all read ``out``, the first one makes the reference and writes the folder.
    """
    table = read_joined(paths, root, tell)
    particles = checked_particles(table, root, tell)
    if half is not None:
        particles = _half_of(particles, half, seed)
    poses = checked_poses(table, particles, "to learn from")
    split = chosen_split(particles, split_choice, seed)
    out = Path(out)
    if not resume:
        # What is there stays until the new model replaces it; only a stale state must not be resumed.
        if out.is_file():
            raise InputError(f"expected a folder at --out {out}, found a file; choose another")
        if out.exists() and any(out.iterdir()) and not overwrite:
            raise InputError(f"{out} exists and is not empty; choose another --out or add --overwrite")
    elif not (out / STATE).exists():
        raise InputError(
            f"expected {out / STATE} to resume from, found none: the training is finished or never "
            "began; train without --resume"
        )
    wait_for_all()  # nobody writes before everyone has seen that nothing is in the way
    if is_first() and not resume:
        out.mkdir(parents=True, exist_ok=True)
        (out / STATE).unlink(missing_ok=True)
    try:
        used = torch.cat([split.train, split.validation])
        with on_scratch(particles, used, scratch, bar) as near:
            reference = from_first(lambda: reference_or_none(near, poses, split, config.symmetry, bar, tell))
            config = possible_config(config, reference, tell)
            logging.getLogger(__name__).info("training on %s", compute_for())
            model = train(
                near,
                config,
                split,
                TrainingOptions(seed, max_minutes, out / STATE, resume),
                reference=reference,
                reporter=CallbackReporter(bar, on_step),
            )
            held_out = near.select(split.validation[:CALIBRATED_BY])
            sharpness = from_first(lambda: calibrated(model, held_out).sharpness)
            model = replace(model, sharpness=sharpness)
    except BaseException:
        with suppress(OSError):
            if is_first():
                out.rmdir()  # only where it is still empty: there is nothing to resume from
        raise
    if is_first():
        _write_folder(model, reference, out)
    wait_for_all()
    return model


def _write_folder(model: TrainedModel, reference: Reference | None, out: Path) -> None:
    save_model(model, out)
    forget_reference(out)  # one of an earlier model must not outlive it
    if reference is not None:
        save_reference(reference, out)
    (out / STATE).unlink(missing_ok=True)
    for leftover in filter(is_leftover, out.iterdir()):
        leftover.unlink()


def _half_of(particles: Particles, half: int, seed: int) -> Particles:
    """The particles of one half set, which know of no halves: those of the reference are drawn among them."""
    half_sets = drawn_half_sets(len(particles), seed) if particles.half_sets is None else particles.half_sets
    rows = (half_sets == half).nonzero()[:, 0]
    if not len(rows):
        raise InputError(f"expected particles with rlnRandomSubset {half} for --halves, found none")
    return replace(particles.select(rows), half_sets=None)


def possible_config(config: Config, reference: Reference | None, tell: Callable[[str], None]) -> Config:
    """``config``, without simulated images where there is no reference to make them of."""
    if reference is not None or not config.augmentation.simulated_share:
        return config
    tell("no images can be simulated without a reference: learning from the particles alone")
    return replace(config, augmentation=replace(config.augmentation, simulated_share=0.0))


def reference_or_none(
    particles: Particles,
    poses: Poses,
    split: Split,
    symmetry: str,
    bar: Bar,
    tell: Callable[[str], None],
) -> Reference | None:
    training = particles.select(split.train)
    progress = bar("reference", len(training))
    try:
        return reference_from_particles(training, poses[split.train], symmetry, progress=progress)
    except InputError as error:
        tell(f"no reference to refine poses against: {error}")
        return None


def chosen_split(particles: Particles, choice: str | None, seed: int) -> Split:
    """Percentages "train,validation,test", a split.csv of an earlier model, or the default."""
    if choice is None:
        return split_rows(len(particles), seed=seed)
    if Path(choice).is_file():
        parts = parts_of(particles, *read_split(Path(choice)))
        rows = {p: torch.tensor([r for r, part in enumerate(parts) if part == p]) for p in PARTS}
        if min(len(rows["train"]), len(rows["validation"])) < 2:
            raise InputError(f"{choice}: expected particles to train and to validate, found none of this set")
        return Split(**{part: rows[part].long() for part in PARTS})
    try:
        percents = [float(word) for word in choice.split(",")]
        _, validation_share, test_share = (percent / 100 for percent in percents)
    except ValueError:
        raise InputError(
            f"expected --split with three percentages such as 50,17,33 or a split.csv, found '{choice}'"
        ) from None
    if not abs(sum(percents) - 100) < 0.5:  # room for thirds
        raise InputError(
            f"expected percentages at --split that add up to 100, found '{choice}', {sum(percents):g} in all"
        )
    return split_rows(len(particles), validation_share, test_share, seed=seed)
