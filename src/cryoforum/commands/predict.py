"""Find the poses of particles in files by a trained model, and refine them against its reference."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from cryoforum.commands.aligners import chosen_aligner
from cryoforum.commands.pose_files import PoseSummary, hash_of_files, write_poses
from cryoforum.commands.predict_request import PredictRequest
from cryoforum.dataset.particle_set import ParticleSet
from cryoforum.dataset.particle_table import ParticleTable
from cryoforum.dataset.repeats import BEFORE_EXPANSION, refuse_expansion
from cryoforum.dataset.split import parts_of
from cryoforum.errors import InputError
from cryoforum.io.particle_files import check_writable, load_particle_set
from cryoforum.io.scratch import on_scratch
from cryoforum.network.model import TrainedModel
from cryoforum.network.model_folder import DESCRIPTION, SPLIT, WEIGHTS, load_models, model_folders
from cryoforum.network.predict import grid_of
from cryoforum.reconstruction.reference_files import reference_files
from cryoforum.runtime.reporter import SILENT, Reporter

logger = logging.getLogger(__name__)


def predict(request: PredictRequest, reporter: Reporter = SILENT) -> PoseSummary:
    """Write a particle file with predicted poses and their uncertainty; all other columns are kept.

    Goes on where an earlier run of the same command was killed. Of several processes each does its share of
    the rows, and the first one shows progress and writes the file.
    """
    request.output.check(request.particles)
    models = load_models(request.model)
    grid = grid_of(models[0])
    particle_set = load_particle_set(request.particles, request.root, grid, request.keep_ramp)
    return predict_set(models, particle_set, request, reporter)


def predict_set(
    models: Sequence[TrainedModel],
    particle_set: ParticleSet,
    request: PredictRequest,
    reporter: Reporter = SILENT,
    finished: Callable[[ParticleTable], ParticleTable] = lambda table: table,
) -> PoseSummary:
    """The same for models and particles that were read already. ``finished``: last change to the table."""
    output = request.output
    for model in models:
        if not model.has_learned:
            logger.warning(model.doubts[0])
    output.check(particle_set.table.companions)
    check_writable(particle_set.table, output.path)
    refuse_expansion(particle_set, "to predict", BEFORE_EXPANSION)
    if request.part is not None:
        particle_set = particle_set.select(_rows_of_part(models, particle_set, request.part))
    files = [*request.particles, *particle_set.table.companions, *_model_files(request.model)]
    files += [path for given in request.references for path in given.files]
    files += [Path(request.mask)] if request.mask is not None else []
    made_with = f"{hash_of_files(files)} {request.settings}"
    particles, rows = particle_set.particles, output.rows(len(particle_set))
    with on_scratch(particles, rows, output.scratch, reporter) as near:
        particle_set, aligner = chosen_aligner(models, ParticleSet(particle_set.table, near), request)
        logger.info(f"the network runs on {request.alignment.compute}")
        return write_poses(aligner, particle_set, output, made_with, reporter, finished)


def _rows_of_part(models: Sequence[TrainedModel], particle_set: ParticleSet, part: str) -> Tensor:
    found = [parts_of(particle_set.particles, model.parts, model.sources) for model in models]
    rows = [row for row, parts in enumerate(zip(*found, strict=True)) if part in parts]
    if not rows and all(part not in model.parts.values() for model in models):
        raise InputError(
            f"expected --part of the model's split, found none kept for {part}; train with --split, such as "
            "50,17,33 (default: 90,10,0, which learns from all but a tenth)"
        )
    if not rows:
        raise InputError(
            f"{particle_set.path}: none of its particles is in the {part} part of the model's split"
        )
    return torch.tensor(rows)


def hash_of_model(model_folder: Path) -> str:
    """Hash of all files of one model or two that predictions depend on."""
    return hash_of_files(_model_files(model_folder))


def _model_files(model_folder: Path) -> list[Path]:
    folders, names = model_folders(model_folder), (WEIGHTS, DESCRIPTION, SPLIT)
    files = [folder / name for folder in folders for name in names if (folder / name).is_file()]
    return files + [path for folder in folders for path in reference_files(folder)]
