"""Doing the runs: each leaves two files, and is not done again where these files are found.

runs/NAME.json   its row of the table
runs/NAME.npz    for the figures: true orientation, mode and statistics of each test particle
"""

import hashlib
import json
import logging
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from cryoforum.curation.selection import quantile_threshold
from cryoforum.dataset.particles import Particles
from cryoforum.dataset.pose_errors import summarise_errors
from cryoforum.dataset.split import PAPER_SHARES, Split, split_rows
from cryoforum.errors import InputError
from cryoforum.network.model import TrainedModel
from cryoforum.network.predict import predict
from cryoforum.reconstruction.reference_map import reference_from_particles
from cryoforum.runtime.reporter import SILENT, Reporter, TrainingProgress
from cryoforum.storage.files import is_leftover, replacing
from cryoforum.storage.locks import taken
from cryoforum.study import evaluation
from cryoforum.study.datasets import particles_of
from cryoforum.study.evaluation import Evaluation
from cryoforum.study.variants import Run
from cryoforum.training.loop import train
from cryoforum.training.options import TrainingOptions

KEPT_SHARE = 0.75  # of the validation part: its threshold on tr Λ filters the test part
_PROGRESS_STEPS = 1000  # of a training
logger = logging.getLogger(__name__)


def run_all(
    runs: Sequence[Run], out: Path, shard: tuple[int, int] = (1, 1), reporter: Reporter = SILENT
) -> None:
    """Do the runs of one shard that are not done yet.

    Parameters
    ----------
    runs
        Of all shards.
    out
        Folder of the results, which several processes may share.
    shard
        Number of this shard, from 1, and number of all shards.
    reporter
        Shows how far each training is.

    Raises
    ------
    InputError
        Where the folder holds results of other settings under the name of a run.
    """
    folder = Path(out) / "runs"
    folder.mkdir(parents=True, exist_ok=True)
    number, count = shard
    own = runs[number - 1 :: count]
    missing = [run for run in own if not _is_done(run, folder)]
    if len(missing) < len(own):
        logger.info("%d of %d runs are done already", len(own) - len(missing), len(own))
    for run in missing:
        advance = reporter.progress(f"{run.block}: {run.label}, seed {run.seed}", _PROGRESS_STEPS)
        with taken(folder / f".{run.name}"):  # other runs of the folder may be another process's
            if _is_done(run, folder):
                continue
            record, arrays = _done(run, advance)
            with replacing(folder / f"{run.name}.npz") as temporary, open(temporary, "wb") as file:
                np.savez_compressed(file, allow_pickle=False, **arrays)
            with replacing(folder / f"{run.name}.json") as temporary:
                temporary.write_text(json.dumps(record, indent=2) + "\n")


def _is_done(run: Run, folder: Path) -> bool:
    """Whether the results of ``run`` are there; InputError where they have other settings."""
    path = folder / f"{run.name}.json"
    if not path.exists():
        return False
    found, wanted = json.loads(path.read_text()), _identity(run)
    if {key: found.get(key) for key in wanted} != wanted:
        raise InputError(
            f"{path}: expected results of {wanted}, found others; move the file away or change --out"
        )
    return True


def _identity(run: Run) -> dict[str, Any]:
    """Settings and data that the results of ``run`` depend on.

    "views" is the name that results have always had for `Run.tta_copies`.
    """
    settings = " ".join((run.preset, *run.settings))
    identity = {"settings": settings, "dataset": run.dataset.name, "views": run.tta_copies}
    if run.dataset.particle_file:  # its name does not identify it: most are called run_data.star
        with open(run.dataset.particle_file, "rb") as file:
            identity["particles"] = hashlib.file_digest(file, "sha256").hexdigest()
    return identity


def _processor() -> str:
    """Name of the processor that trains."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def read_records(out: Path) -> pd.DataFrame:
    """The results of all runs in a folder as a table with one row a run; InputError where there is none."""
    found = (Path(out) / "runs").glob("*.json")
    paths = sorted(path for path in found if not is_leftover(path))
    if not paths:
        raise InputError(f"{out}: expected results of runs, found none; run a study first")
    return pd.DataFrame([json.loads(path.read_text()) for path in paths])


def _done(run: Run, advance: Callable[[int], None]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    particles = particles_of(run.dataset)
    split = split_rows(len(particles), *PAPER_SHARES)
    start = time.monotonic()
    model = _trained(run, particles, split, advance)
    seconds = time.monotonic() - start
    found = evaluation.evaluate(run, model, particles, split)
    genuine = found.genuine
    record: dict[str, Any] = {
        "study": run.study,
        "block": run.block,
        "variant": run.label,
        "scale": run.scale,
        "seed": run.seed,
        **_identity(run),
        "training_images": len(split.train),
        "image_passes": int(model.log[-1]["images"]),
        "training_seconds": round(seconds, 1),
        **asdict(summarise_errors(found.errors[genuine])),
        "single_view_median_rad": evaluation.median_without_tta(run, model, found),
        "validation_median_rad": model.validation_median_rad,
        "log_likelihood": evaluation.log_likelihood(run, model, found),
        "rms_error_rad": evaluation.root_mean_square(found.errors[genuine]),
        "rms_expected_error_rad": evaluation.root_mean_square(found.predictions.expected_error_rad[genuine]),
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "cryo-forum": version("cryo-forum"),
    }
    if run.study == "symmetry":
        record |= evaluation.near_border(run, found)
    curves: dict[str, np.ndarray] = {}
    if run.study == "real":
        record["extent_angstrom"] = particles.box * particles.pixel_size_angstrom
        validation = predict(model, particles.select(split.validation), tta=run.tta_copies)
        threshold = quantile_threshold(validation.posterior.trace, KEPT_SHARE)
        resolutions, curves = evaluation.resolutions(run, found, threshold)
        record |= resolutions
    return record, _arrays(model, found) | curves


def _arrays(model: TrainedModel, found: Evaluation) -> dict[str, np.ndarray]:
    posterior, log = found.predictions.posterior, pd.DataFrame(model.log)
    return {
        "truth": found.truth.numpy(),
        "mode": posterior.mode.numpy(),
        "error_rad": found.errors.numpy(),
        "trace": posterior.trace.numpy(),
        "lambda_max": posterior.lambda_max.numpy(),
        "genuine": found.genuine.numpy(),
        "log": log.to_numpy(),
        "log_columns": np.array(list(log.columns)),
    }


def _trained(run: Run, particles: Particles, split: Split, advance: Callable[[int], None]) -> TrainedModel:
    config = run.config
    training = particles.select(split.train)
    reference = None
    if config.augmentation.simulated_share and training.poses is not None:
        reference = reference_from_particles(training, config.symmetry)
    options = TrainingOptions(seed=run.seed)
    return train(particles, config, split, options, reference=reference, reporter=_Thousandths(advance))


class _Thousandths(Reporter):
    """Tells a bar of a thousand steps how far a training is."""

    def __init__(self, advance: Callable[[int], None]) -> None:
        self.advance, self.shown = advance, 0

    def training(self, progress: TrainingProgress) -> None:
        now = int(_PROGRESS_STEPS * progress.fraction)
        self.advance(now - self.shown)
        self.shown = now
