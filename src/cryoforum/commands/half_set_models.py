"""Half sets kept apart from training to map: a model of each half, and which of the two poses a particle."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from cryoforum.commands.train import STATE, train_to_folder
from cryoforum.commands.workflow import Bar, read_joined
from cryoforum.config import Config
from cryoforum.dataset.particle_table import ParticleTable, with_columns
from cryoforum.dataset.particles import Particles
from cryoforum.dataset.predictions import Predictions, joined_predictions
from cryoforum.dataset.split import parts_of
from cryoforum.errors import InputError
from cryoforum.io.relion.particles import half_sets_from_table
from cryoforum.io.scratch import NO_SCRATCH, Scratch
from cryoforum.network.model import TrainedModel
from cryoforum.network.model_folder import DESCRIPTION, HALF_FOLDERS, load_model
from cryoforum.reconstruction.half_sets import drawn_half_sets
from cryoforum.runtime.reporter import TrainingProgress

Predictor = Callable[[Particles], Predictions]


def train_halves_to_folder(
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
) -> tuple[TrainedModel, TrainedModel]:
    """Train a model on each half set (rlnRandomSubset), into ``out``/half1 and ``out``/half2.

    Each has half of ``max_minutes``. ``resume`` leaves a half that is done as it is.
    """
    out = Path(out)
    folders = [out / name for name in HALF_FOLDERS]
    if (out / DESCRIPTION).exists():
        raise InputError(f"{out} holds a model of all particles; choose another --out for models of halves")
    if resume and not is_unfinished(out):
        raise InputError(f"expected an unfinished training at {out} to resume, found none")
    if not (resume or overwrite) and any(folder.exists() and any(folder.iterdir()) for folder in folders):
        raise InputError(f"{out} exists and is not empty; choose another --out or add --overwrite")
    if half_sets_from_table(read_joined(paths, root)) is None:
        tell("no rlnRandomSubset: half sets are drawn; what poses refined together share, they keep")
    if not resume:
        for folder in folders:  # an old model of one half must not be taken for a mate of a new one
            (folder / DESCRIPTION).unlink(missing_ok=True)
    models = []
    for half, folder in enumerate(folders, 1):
        unfinished = resume and is_unfinished(folder)
        if resume and not unfinished and (folder / DESCRIPTION).exists():
            models.append(load_model(folder))
            continue
        tell(f"half {half} of 2")
        model = train_to_folder(
            paths,
            root,
            folder,
            config,
            split_choice=split_choice,
            seed=seed,
            max_minutes=None if max_minutes is None else max_minutes / 2,
            resume=unfinished,
            overwrite=overwrite or resume,
            bar=bar,
            on_step=on_step,
            tell=tell,
            scratch=scratch,
            half=half,
        )
        models.append(model)
    return models[0], models[1]


def is_unfinished(folder: Path) -> bool:
    """Whether a training into ``folder``, of one model or of two half models, can be resumed."""
    folders = [Path(folder) / name for name in HALF_FOLDERS]
    if any((each / STATE).exists() for each in (Path(folder), *folders)):
        return True
    return (folders[0] / DESCRIPTION).exists() and not (folders[1] / DESCRIPTION).exists()


def with_own_halves(
    table: ParticleTable, particles: Particles, models: Sequence[TrainedModel], tell: Callable[[str], None]
) -> tuple[ParticleTable, Particles]:
    """Table and particles with half sets that are those of the training, as far as they took part in it.

    InputError where rlnRandomSubset says otherwise of one: the noise of its image would be in both maps.
    """
    learned = half_of_training(particles, models)
    if particles.half_sets is None:
        tell("no rlnRandomSubset: half sets are those of the training, else drawn, and written")
        half_sets = torch.where(learned > 0, learned, drawn_half_sets(len(particles)))
        table = with_columns(table, {"rlnRandomSubset": half_sets})
        return table, replace(particles, half_sets=half_sets)
    wrong = ((learned > 0) & (learned != particles.half_sets)).nonzero()[:, 0]
    if len(wrong):
        row = int(wrong[0])
        raise InputError(
            f"{table.path}: expected the half sets of the training, found {len(wrong)} particles in "
            f"the other, first {particles.names[row]}; remove rlnRandomSubset, or give up independence with "
            "--cross-fit"
        )
    return table, particles


def half_of_training(particles: Particles, models: Sequence[TrainedModel]) -> Tensor:
    """The half model, 1 or 2, that knows each particle from its training (n,); 0: neither."""
    first, second = (parts_of(particles, model.parts, model.sources) for model in models)
    return torch.tensor([1 if own else 2 if other else 0 for own, other in zip(first, second, strict=True)])


def model_of_each(particles: Particles, models: Sequence[TrainedModel], cross_fit: bool) -> Tensor:
    """The half model, 1 or 2, that poses each particle (n,): its own half's.

    ``cross_fit``: that which never saw it.
    """
    learned = half_of_training(particles, models)
    own = drawn_half_sets(len(particles)) if particles.half_sets is None else particles.half_sets
    return torch.where(learned > 0, 3 - learned, own) if cross_fit else own


def by_halves(
    predictors: Sequence[Predictor | None], model_of_name: dict[str, int], own_references: bool
) -> Predictor:
    """Of two predictors, that of its half for each particle of a batch; the order stays.

    A predictor is None where no particle needs it. ``own_references``: whether each compares images with
    nothing but its own half's map.
    """

    def predict(batch: Particles) -> Predictions:
        which = torch.tensor([model_of_name[name] for name in batch.names])
        parts, order = [], []
        for half, predictor in enumerate(predictors, 1):
            rows = (which == half).nonzero()[:, 0]
            if predictor is not None and len(rows):
                predictions = predictor(replace(batch.select(rows), images=batch.images[rows]))
                parts.append(_of_half(predictions, half if own_references else 0))
                order.append(rows)
        return joined_predictions(parts)[torch.argsort(torch.cat(order))]

    return predict


def _of_half(predictions: Predictions, half: int) -> Predictions:
    """The same predictions, as those of the model and reference of one half."""
    used, evidence = torch.full((len(predictions),), half), predictions.evidence
    if evidence is not None:
        evidence = replace(evidence, reference_half=used)
    return replace(predictions, model_half=used, evidence=evidence)
