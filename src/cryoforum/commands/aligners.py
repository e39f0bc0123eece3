"""What poses particles: made of one model or two half models, their references and the user's options."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import Tensor

from cryoforum.alignment.aligner import AlignmentConfig, align_batch, predict_with_shifts
from cryoforum.alignment.fitting import make_aligner
from cryoforum.commands.half_set_models import (
    Predictor,
    by_halves,
    half_of_training,
    model_of_each,
    with_own_halves,
)
from cryoforum.commands.structures import load_structure
from cryoforum.commands.workflow import notices_to
from cryoforum.dataset.particle_table import ParticleTable, with_columns
from cryoforum.dataset.particles import Particles
from cryoforum.dataset.split import parts_of
from cryoforum.dataset.volumes import Volume
from cryoforum.errors import InputError
from cryoforum.io.mrc.maps import read_volume
from cryoforum.network.model import TrainedModel
from cryoforum.network.model_folder import model_folders
from cryoforum.network.predict import check_compatible, predict_batch
from cryoforum.reconstruction.half_sets import drawn_half_sets
from cryoforum.reconstruction.reference_map import (
    Reference,
    load_reference,
    masked_reference,
    reference_from_map,
)

MASK_TOLERANCE = 1e-2  # of values beyond 0 and 1, as resampled masks have them


@dataclass(frozen=True)
class PredictionOptions:
    """How poses are found.

    refine: compare with a reference; None: wherever there is one. reference: a map or structure to use
    instead of the model's own, up to ``resolution_angstrom``, of voxels of
    ``reference_pixel_size_angstrom`` whatever its header says. halves: each half set against its own half's
    reference; None: where the particles have half sets and the reference has halves. cross_fit: of two half
    models, that which never saw the particle instead of its own half's. mask: a map of values from 0 to 1
    that the reference is multiplied by.
    """

    refine: bool | None = None
    reference: str | None = None
    resolution_angstrom: float | None = None
    halves: bool | None = None
    cross_fit: bool = False
    mask: str | None = None
    posing: AlignmentConfig = field(default_factory=AlignmentConfig)
    reference_pixel_size_angstrom: float | None = None

    def __post_init__(self) -> None:
        if self.refine is False and (self.posing.refine_defocus or self.posing.refine_scale):
            raise InputError(
                "expected --refine-defocus or --refine-scale with local refinement, found --no-refine"
            )
        if self.refine and self.posing.views is not None:
            raise InputError(
                "expected --views with --no-refine, found --refine: local refinement has the last word"
            )
        if self.resolution_angstrom is not None and self.reference is None:
            raise InputError(
                "expected --resolution with --reference; the model's own knows how far it is right"
            )
        if self.reference_pixel_size_angstrom is not None and self.reference is None:
            raise InputError("expected --map-pixel-size with --reference, found no map")


def predictor_of(
    model_folder: Path,
    models: Sequence[TrainedModel],
    table: ParticleTable,
    particles: Particles,
    options: PredictionOptions,
    tell: Callable[[str], None],
) -> tuple[ParticleTable, Particles, Predictor]:
    """What poses a batch of the particles; and table and particles, with half sets where they are wanted.

    ``models``: the one of ``model_folder`` or its two half models.
    """
    for model in models:
        check_compatible(model, particles)
    references = _references(model_folder, models, particles, options, tell)
    if None in references:
        references = [None] * len(models)
        _refuse_without_reference(model_folder, options)
        tell("the model has no reference: orientations of the network alone, origins stay as they are")
    if len(models) == 2:
        return _of_two_models(table, particles, models, references, options, tell)
    if options.cross_fit:
        raise InputError(f"expected two half models for --cross-fit, found one in {model_folder}")
    if options.halves and particles.half_sets is None:
        tell("no rlnRandomSubset: half sets are drawn and written")
    table, particles, halves = _with_half_sets(table, particles, models[0], references[0], options.halves)
    return table, particles, _predictor(models[0], references[0], particles, options, halves, tell)


def _references(
    model_folder: Path,
    models: Sequence[TrainedModel],
    particles: Particles,
    options: PredictionOptions,
    tell: Callable[[str], None],
) -> list[Reference | None]:
    """What each model's images are compared with: its own reference, or the one map from elsewhere."""
    if options.reference is None:
        references = [load_reference(folder) for folder in model_folders(model_folder)]
    else:
        references = [loaded_reference(options, particles, models[0].config.symmetry, tell)] * len(models)
    if options.mask is None:
        return references
    mask = _loaded_mask(options.mask, particles, tell)
    return [reference and masked_reference(reference, mask) for reference in references]


def _predictor(
    model: TrainedModel,
    reference: Reference | None,
    particles: Particles,
    options: PredictionOptions,
    halves: bool,
    tell: Callable[[str], None],
) -> Predictor:
    """What poses a batch by one model."""
    posing, pose = options.posing, align_batch
    if reference is None:
        return lambda batch: predict_batch(model, batch, posing.views)
    if options.refine is None and posing.views is not None:
        raise InputError("expected --views with --no-refine, as local refinement has the last word; add it")
    if options.refine is False:
        posing, pose = replace(posing, source=posing.source or "network"), predict_with_shifts
    aligner = make_aligner(model, reference, particles, posing, halves=halves, tell=tell)
    return lambda batch: pose(aligner, batch)


def _of_two_models(
    table: ParticleTable,
    particles: Particles,
    models: Sequence[TrainedModel],
    references: Sequence[Reference | None],
    options: PredictionOptions,
    tell: Callable[[str], None],
) -> tuple[ParticleTable, Particles, Predictor]:
    """Table and particles with half sets, and what poses a batch by the models of both halves."""
    if options.halves is False:
        raise InputError("expected half sets for two half models, found --no-halves; give the folder of one")
    if not options.cross_fit:
        table, particles = with_own_halves(table, particles, models, tell)
    which = model_of_each(particles, models, options.cross_fit)
    seen = int((which == half_of_training(particles, models)).sum())
    if seen and (options.refine is False or references[0] is None):
        tell(
            f"{seen} particles are posed by the network that learned from them: it is surer of them "
            "than it should be; --cross-fit takes the other one"
        )
    predictors = [
        _predictor(model, reference, particles.select(rows), options, False, tell) if len(rows) else None
        for half, (model, reference) in enumerate(zip(models, references, strict=True), 1)
        for rows in [(which == half).nonzero()[:, 0]]
    ]
    model_of_name = dict(zip(particles.names, which.tolist(), strict=True))
    return table, particles, by_halves(predictors, model_of_name, options.reference is None)


def _refuse_without_reference(model_folder: Path, options: PredictionOptions) -> None:
    """InputError where something was asked for that only a comparison with a reference can give."""
    posing = options.posing
    refining = posing.refine_defocus or posing.refine_scale
    halves = options.halves and len(model_folders(model_folder)) == 1
    if options.refine or halves or refining or options.mask or posing.source in ("search", "both"):
        raise InputError(
            f"{model_folder} has no reference to compare images with; give a map with --reference"
        )


def loaded_reference(
    options: PredictionOptions, particles: Particles, symmetry: str, tell: Callable[[str], None]
) -> Reference:
    """A map from elsewhere at the particles' box and pixel size."""
    pixel_size = options.reference_pixel_size_angstrom
    volume = _loaded_map(options.reference or "", particles, tell, pixel_size)
    return reference_from_map(volume, symmetry, options.resolution_angstrom)


def _loaded_mask(path: str, particles: Particles, tell: Callable[[str], None]) -> Tensor:
    """A mask at the particles' box and pixel size, its values from 0 to 1."""
    voxels = read_volume(Path(path)).voxels
    low, high = float(voxels.min()), float(voxels.max())
    if low < -MASK_TOLERANCE or not 0.5 < high < 1 + MASK_TOLERANCE:
        raise InputError(f"{path}: expected a mask with values from 0 to 1, found {low:.3g} to {high:.3g}")
    return _loaded_map(path, particles, tell).voxels.clamp(0, 1)  # resampling overshoots at edges


def _loaded_map(
    path: str, particles: Particles, tell: Callable[[str], None], own_pixel_size: float | None = None
) -> Volume:
    """A map or structure at the particles' box and pixel size; resampling is said aloud."""
    with notices_to(tell):
        return load_structure(path, particles.box, particles.pixel_size_angstrom, own_pixel_size)


def _with_half_sets(
    table: ParticleTable,
    particles: Particles,
    model: TrainedModel,
    reference: Reference | None,
    wanted: bool | None,
) -> tuple[ParticleTable, Particles, bool]:
    """Table and particles with half sets where they are wanted, and whether they are kept apart."""
    possible = reference is not None and reference.halves is not None
    if wanted and not possible:
        raise InputError("expected a reference with half maps for --halves; leave out --reference")
    if not possible or wanted is False or (wanted is None and particles.half_sets is None):
        return table, particles, False
    if particles.half_sets is None:
        if "train" in parts_of(particles, model.parts, model.sources):
            raise InputError(
                f"{table.path}: expected rlnRandomSubset for --halves, as some of these particles are in the "
                "map of one half of the training"
            )
        half_sets = drawn_half_sets(len(table))
        table = with_columns(table, {"rlnRandomSubset": half_sets})
        particles = replace(particles, half_sets=half_sets)
    return table, particles, True
