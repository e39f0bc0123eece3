"""Train on particles in files: a model folder with its reference, or one for each half set."""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from cryoforum.choices import Precision
from cryoforum.commands.class_references import class_references, classes_to_tell_apart
from cryoforum.commands.held_folder import taken_by_first
from cryoforum.config import Config
from cryoforum.dataset.particle_set import ParticleSet
from cryoforum.dataset.particles import Particles
from cryoforum.dataset.repeats import WITH_SYMMETRY, refuse_repeats
from cryoforum.dataset.split import Split, chosen_split
from cryoforum.dataset.volumes import Volume
from cryoforum.errors import InputError, require
from cryoforum.imaging.noise_model import NoiseModel
from cryoforum.io.particle_files import checked_poses, load_particle_set
from cryoforum.io.scratch import NO_SCRATCH, Scratch, on_scratch
from cryoforum.network.model import TrainedModel
from cryoforum.network.model_folder import DESCRIPTION, HALF_FOLDERS, load_model, save_model
from cryoforum.reconstruction.half_sets import checked_half_sets, drawn_half_sets
from cryoforum.reconstruction.reference_files import (
    forget_references,
    save_class_references,
    save_reference,
)
from cryoforum.reconstruction.reference_map import Reference, reference_from_particles
from cryoforum.runtime.devices import compute_for
from cryoforum.runtime.distributed import from_first, is_first, wait_for_all
from cryoforum.runtime.reporter import SILENT, Reporter
from cryoforum.storage.files import contents, remove_leftovers_in
from cryoforum.storage.locks import Hold
from cryoforum.training import loop
from cryoforum.training.calibration import calibrated
from cryoforum.training.options import TrainingOptions

logger = logging.getLogger(__name__)

CALIBRATED_BY = 1000  # validation particles
STATE = "state.pt"
WITHIN_A_HALF = 1_000_003  # added to the seed of halves of a half set


@dataclass(frozen=True)
class TrainRequest:
    """What `cryoforum train` is asked for.

    Parameters
    ----------
    particles
        Files of particles with poses, joined where there are several, and resampled to the box and pixel size
        that most have.
    out
        The model folder.
    config
        Everything that makes a model.
    root
        Folder that image names are looked for in first.
    split
        Percentages "train,validation,test", or a split.csv of an earlier model; None: 90,10,0.
    seed
        Of all that is random.
    max_minutes
        Let the schedule span this time; None for ``config.training.image_passes``.
    half_set_models
        A model of each half set (rlnRandomSubset), in out/half1 and out/half2; each has half of the time.
    resume, overwrite
        Go on after an interruption; replace what is there.
    scratch
        Fast disk that the stacks are copied to first.
    device, precision
        As in `runtime.devices.compute_for`.
    keep_ramp
        Leave in each image the ramp that a gradient of the ice left; else it is removed first of all.
    by_class
        A reference of each class (rlnClassNumber), so that the model finds the class of a particle, too;
        None: where `refine` has found the classes.
    """

    particles: Sequence[Path]
    out: Path
    config: Config
    root: Path | None = None
    split: str | None = None
    seed: int = 0
    max_minutes: float | None = None
    half_set_models: bool = False
    resume: bool = False
    overwrite: bool = False
    scratch: Scratch = NO_SCRATCH
    device: str = "auto"
    precision: Precision = "auto"
    keep_ramp: bool = False
    by_class: bool | None = None

    def __post_init__(self) -> None:
        minutes = self.max_minutes
        require(minutes is None or minutes > 0, "--max-minutes above 0", minutes)


def train(request: TrainRequest, reporter: Reporter = SILENT) -> tuple[TrainedModel, ...]:
    """Train one model, or one of each half set, and write the folder; the models.

    Of several processes, which all read the folder, the first one makes the reference and writes.
    """
    logger.info(f"training on {compute_for(request.device, request.precision)}")
    particle_set = load_particle_set(request.particles, request.root, keep_ramp=request.keep_ramp)
    refuse_repeats(particle_set, "to learn from", WITH_SYMMETRY)
    if request.half_set_models:
        with taken_by_first(Path(request.out)):
            return _train_half_set_models(particle_set, request, reporter)
    return (_train_into(Path(request.out), particle_set, request, reporter),)


def _train_half_set_models(
    particle_set: ParticleSet, request: TrainRequest, reporter: Reporter
) -> tuple[TrainedModel, ...]:
    """``request.resume`` leaves a half that is done as it is."""
    out, resume = Path(request.out), request.resume
    folders = [out / name for name in HALF_FOLDERS]
    if (out / DESCRIPTION).exists():
        raise InputError(f"{out} holds a model of all particles; choose another --out for half-set models")
    require(not resume or is_unfinished(out), f"an unfinished training at {out} to resume", "none")
    if not (resume or request.overwrite) and any(map(_is_filled, folders)):
        raise InputError(f"{out} exists and is not empty; choose another --out or add --overwrite")
    if particle_set.particles.half_sets is None:
        logger.info("no rlnRandomSubset: half sets are drawn; what poses refined together share, they keep")
    if not resume:
        for folder in folders:  # an old model of one half must not be taken for a mate of a new one
            (folder / DESCRIPTION).unlink(missing_ok=True)
    minutes = None if request.max_minutes is None else request.max_minutes / 2
    models = []
    for half, folder in enumerate(folders, 1):
        unfinished = resume and is_unfinished(folder)
        if resume and not unfinished and (folder / DESCRIPTION).exists():
            models.append(load_model(folder))
            continue
        logger.info(f"half set {half} of 2")
        own = replace(request, max_minutes=minutes, resume=unfinished, overwrite=request.overwrite or resume)
        models.append(_train_into(folder, _half_of(particle_set, half, request.seed), own, reporter))
    return tuple(models)


def _train_into(
    out: Path, particle_set: ParticleSet, request: TrainRequest, reporter: Reporter
) -> TrainedModel:
    """Train on a set and write the model folder with its reference."""
    checked_poses(particle_set, "to learn from")
    split = chosen_split(particle_set.particles, request.split, request.seed)
    _refuse_folder(out, request)
    with taken_by_first(out) as hold:
        _refuse_folder(out, request)  # again: another training may have ended just before
        return _train_into_held(out, hold, particle_set, split, request, reporter)


def _train_into_held(
    out: Path,
    hold: Hold | None,
    particle_set: ParticleSet,
    split: Split,
    request: TrainRequest,
    reporter: Reporter,
) -> TrainedModel:
    wait_for_all()  # nobody writes before everyone has seen that nothing is in the way
    classes = classes_to_tell_apart(particle_set, request.by_class)
    if is_first() and not request.resume:
        (out / STATE).unlink(missing_ok=True)
    used = torch.cat([split.train, split.validation])
    with on_scratch(particle_set.particles, used, request.scratch, reporter) as particles:
        reference, config = reference_and_config(particles, split, request.config, reporter)
        references: tuple[Reference, ...] = () if reference is None else (reference,)
        if reference is not None and classes is not None:
            training = particles.select(split.train)
            references += class_references(training, classes[split.train], config.symmetry, reporter)
        options = TrainingOptions(
            request.seed, request.max_minutes, out / STATE, request.resume, request.device, request.precision
        )
        model = loop.train(particles, config, split, options, reference=reference, reporter=reporter)
        held_out = particles.select(split.validation[:CALIBRATED_BY])
        model = replace(model, sharpness=from_first(lambda: calibrated(model, held_out).sharpness))
    for doubt in model.doubts:
        logger.warning(doubt)
    if hold is not None:
        _write_if_held(model, references, out, hold)
    wait_for_all()
    return model


def _refuse_folder(out: Path, request: TrainRequest) -> None:
    """What is there stays until the new model replaces it; only a stale state must not be resumed."""
    if request.resume and not (out / STATE).exists():
        raise InputError(
            f"expected {out / STATE} to resume from, found none: the training is finished or never "
            "began; train without --resume"
        )
    require(not out.is_file(), f"a folder at --out {out}", "a file; choose another")
    if not (request.resume or request.overwrite) and _is_filled(out):
        raise InputError(f"{out} exists and is not empty; choose another --out or add --overwrite")


def _is_filled(folder: Path) -> bool:
    return bool(contents(folder))


def _write_if_held(model: TrainedModel, references: tuple[Reference, ...], out: Path, hold: Hold) -> None:
    """Write the folder, with the reference of all particles and those of classes.

    Or another, where somebody has taken it meanwhile: neither model is lost.
    """
    try:
        hold.check()
    except InputError as error:
        aside = out.with_name(f"{out.name}-of-process-{os.getpid()}")
        _write_folder(model, references, aside)
        raise InputError(f"{error}; the model of this training is in {aside}") from error
    _write_folder(model, references, out)


def _write_folder(model: TrainedModel, references: tuple[Reference, ...], out: Path) -> None:
    save_model(model, out)
    forget_references(out)  # one of an earlier model must not outlive it
    if references:
        save_reference(references[0], out)
    save_class_references(references[1:], out)
    (out / STATE).unlink(missing_ok=True)
    remove_leftovers_in(out)


def is_unfinished(folder: Path) -> bool:
    """Whether a training into ``folder``, of one model or of two half-set models, can be resumed."""
    folders = [Path(folder) / name for name in HALF_FOLDERS]
    if any((each / STATE).exists() for each in (Path(folder), *folders)):
        return True
    return (folders[0] / DESCRIPTION).exists() and not (folders[1] / DESCRIPTION).exists()


def _half_of(particle_set: ParticleSet, half: int, seed: int) -> ParticleSet:
    """One half set, with halves of its own for the half maps of its reference."""
    rows = (checked_half_sets(particle_set.particles, seed) == half).nonzero()[:, 0]
    own = particle_set.select(rows)
    # Another seed: that of the half sets themselves would put all of one into one half.
    return own.with_half_sets(drawn_half_sets(own.particles.names, seed + WITHIN_A_HALF))


def reference_and_config(
    particles: Particles, split: Split, config: Config, reporter: Reporter
) -> tuple[Reference | None, Config]:
    """The map of the training particles, where their half maps agree; and what can be learned with it."""
    reference = from_first(
        lambda: _reference_or_none(particles.select(split.train), config.symmetry, reporter),
        *(Reference, Volume, NoiseModel),
    )
    if reference is not None or not config.augmentation.simulated_share:
        return reference, config
    logger.info("no images can be simulated without a reference: learning from the particles alone")
    return None, replace(config, augmentation=replace(config.augmentation, simulated_share=0.0))


def _reference_or_none(training: Particles, symmetry: str, reporter: Reporter) -> Reference | None:
    progress = reporter.progress("reference", len(training))
    try:
        return reference_from_particles(training, symmetry, progress=progress)
    except InputError as error:
        logger.warning(f"no reference to refine poses against: {error}")
        return None
