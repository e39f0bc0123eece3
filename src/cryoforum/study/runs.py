"""Doing the runs: each leaves two files, and one whose files are there is not done again.

runs/NAME.json   its row of the table
runs/NAME.npz    of each test particle: truth, belief, statistics; for the figures
"""

import hashlib
import json
import logging
import math
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from cryoforum.curation.selection import quantile_threshold
from cryoforum.dataset.particles import Particles, loaded_batches
from cryoforum.dataset.pose_errors import orientation_errors, summarise_errors
from cryoforum.dataset.poses import Poses
from cryoforum.dataset.predictions import Predictions
from cryoforum.dataset.split import Split, split_rows
from cryoforum.dataset.volumes import HalfMaps, Volume
from cryoforum.errors import InputError
from cryoforum.geometry.point_groups import distance_to_domain_border, in_fundamental_domain, symmetry_group
from cryoforum.geometry.rotations import compose
from cryoforum.imaging.masks import soft_mask
from cryoforum.network.model import TrainedModel
from cryoforum.network.predict import network_numbers, predict
from cryoforum.reconstruction.fsc import fourier_shell_correlation, fsc_curve, resolution_angstrom
from cryoforum.reconstruction.half_sets import drawn_half_sets
from cryoforum.reconstruction.inversion import ReconstructionConfig, reconstruct
from cryoforum.reconstruction.reference_map import reference_from_particles
from cryoforum.runtime.reporter import SILENT, Reporter, TrainingProgress
from cryoforum.storage.files import is_leftover, replacing
from cryoforum.study.datasets import junk_rows, molecule, particles_of
from cryoforum.study.variants import Run
from cryoforum.training.loop import TrainingOptions, train

logger = logging.getLogger(__name__)

KEPT_SHARE = 0.75  # of the validation part, whose threshold the test part is filtered by
COARSE_ANGSTROM = 30.0  # down to which maps show the shape of a molecule
TRUE_MAP_FSC = 0.5  # with a map without noise: as good as 0.143 between two half maps
BORDER_RAD = 0.1  # nearer to its domain's border than this an orientation counts as near


def run_all(runs: Sequence[Run], out: Path, shard: tuple[int, int], reporter: Reporter = SILENT) -> None:
    """Do those of ``runs`` that are this ``shard``'s (number from 1, of how many) and not done yet."""
    folder = Path(out) / "runs"
    folder.mkdir(parents=True, exist_ok=True)
    number, count = shard
    own = runs[number - 1 :: count]
    missing = [run for run in own if not _is_done(run, folder)]
    if len(missing) < len(own):
        logger.info(f"{len(own) - len(missing)} of {len(own)} runs are done already")
    for run in missing:
        advance = reporter.progress(f"{run.block}: {run.label}, seed {run.seed}", 1000)
        record, arrays = _done(run, advance)
        with replacing(folder / f"{run.name}.npz") as temporary, open(temporary, "wb") as file:
            np.savez_compressed(file, allow_pickle=False, **arrays)
        with replacing(folder / f"{run.name}.json") as temporary:
            temporary.write_text(json.dumps(record, indent=2) + "\n")


def _is_done(run: Run, folder: Path) -> bool:
    """Whether its results are there; InputError where they are those of other settings."""
    path = folder / f"{run.name}.json"
    if not path.exists():
        return False
    found, wanted = json.loads(path.read_text()), _identity(run)
    if {key: found.get(key) for key in wanted} != wanted:
        raise InputError(
            f"{path}: expected results of {wanted}, found others; move them away or change --out"
        )
    return True


def _identity(run: Run) -> dict[str, Any]:
    """What makes results those of ``run``, besides its name."""
    settings = " ".join((run.preset, *run.settings))
    identity = {"settings": settings, "dataset": run.dataset.name, "views": run.views}
    if run.dataset.table:  # many a refinement is called run_data.star
        with open(run.dataset.table, "rb") as file:
            identity["particles"] = hashlib.file_digest(file, "sha256").hexdigest()
    return identity


def _processor() -> str:
    """What the trainings ran on."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def read_records(out: Path) -> pd.DataFrame:
    """The tidy table of all runs in a folder, one row a run; InputError where there is none."""
    found = (Path(out) / "runs").glob("*.json")
    paths = sorted(path for path in found if not is_leftover(path))
    if not paths:
        raise InputError(f"{out}: expected results of runs, found none; run a study first")
    return pd.DataFrame([json.loads(path.read_text()) for path in paths])


@dataclass(frozen=True)
class _Posed:
    """The test part of a data set under its found orientations."""

    test: Particles
    truth: Tensor
    predictions: Predictions
    errors: Tensor
    genuine: Tensor


def _done(run: Run, advance: Callable[[int], None]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    particles = particles_of(run.dataset)
    split = split_rows(len(particles))
    start = time.monotonic()
    model = _trained(run, particles, split, advance)
    seconds = time.monotonic() - start
    posed = _posed(run, model, particles, split)
    summary = summarise_errors(posed.errors[posed.genuine])
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
        **asdict(summary),
        "single_view_median_rad": _single_view_median(run, model, posed),
        "validation_median_rad": model.validation_median_rad,
        "log_likelihood": _log_likelihood(run, model, posed),
        "rms_error_rad": _root_mean_square(posed.errors[posed.genuine]),
        "rms_expected_error_rad": _root_mean_square(posed.predictions.expected_error_rad[posed.genuine]),
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "cryo-forum": version("cryo-forum"),
    }
    if run.study == "symmetry":
        record |= _near_border(run, posed)
    curves: dict[str, np.ndarray] = {}
    if run.study == "real":
        record["extent_angstrom"] = particles.box * particles.pixel_size_angstrom
        validation = predict(model, particles.select(split.validation), tta=run.views)
        threshold = quantile_threshold(validation.posterior.trace, KEPT_SHARE)
        resolutions, curves = _resolutions(run, posed, threshold)
        record |= resolutions
    posterior = posed.predictions.posterior
    arrays = {
        "truth": posed.truth.numpy(),
        "mode": posterior.mode.numpy(),
        "error_rad": posed.errors.numpy(),
        "trace": posterior.trace.numpy(),
        "lambda_max": posterior.lambda_max.numpy(),
        "genuine": posed.genuine.numpy(),
        "log": pd.DataFrame(model.log).to_numpy(),
        "log_columns": np.array(list(pd.DataFrame(model.log).columns)),
        **curves,
    }
    return record, arrays


def _trained(run: Run, particles: Particles, split: Split, advance: Callable[[int], None]) -> TrainedModel:
    config = run.config
    training = particles.select(split.train)
    reference = None
    if config.augmentation.simulated_share and training.poses is not None:
        reference = reference_from_particles(training, config.symmetry)
    options = TrainingOptions(seed=run.seed)
    return train(particles, config, split, options, reference=reference, reporter=_Thousandths(advance))


class _Thousandths(Reporter):
    """Tells a bar of 1000 how far a training is."""

    def __init__(self, advance: Callable[[int], None]) -> None:
        self.advance, self.shown = advance, 0

    def training(self, progress: TrainingProgress) -> None:
        now = int(1000 * progress.fraction)
        self.advance(now - self.shown)
        self.shown = now


def _posed(run: Run, model: TrainedModel, particles: Particles, split: Split) -> _Posed:
    test = particles.select(split.test)
    if test.poses is None:
        raise InputError("expected particles with poses to test on")
    predictions = predict(model, test, tta=run.views)
    truth = test.poses.quaternions
    errors = orientation_errors(predictions.posterior.mode, truth, run.config.symmetry)
    is_junk = torch.zeros(len(particles), dtype=torch.bool)
    is_junk[junk_rows(run.dataset)] = True
    return _Posed(test, truth, predictions, errors, ~is_junk[split.test])


def _single_view_median(run: Run, model: TrainedModel, posed: _Posed) -> float:
    """The median error where the network reads each image once."""
    if run.views == 1:
        return float(posed.errors[posed.genuine].quantile(0.5))
    mode = predict(model, posed.test, tta=1).posterior.mode
    errors = orientation_errors(mode, posed.truth, run.config.symmetry)
    return float(errors[posed.genuine].quantile(0.5))


def _root_mean_square(values: Tensor) -> float:
    return float(values.square().mean().sqrt())


def _log_likelihood(run: Run, model: TrainedModel, posed: _Posed) -> float:
    """Mean log density of the true orientations relative to a uniform one, of single views; 0 knows nothing.

    A density that does not know the symmetry is taken as its mean over the group: what one of g equivalent
    modes holds is 1/g as likely at each.
    """
    group = symmetry_group(run.config.symmetry)
    rows = posed.genuine.nonzero()[:, 0]
    equivalents = compose(group, posed.truth[rows][:, None])
    found = []
    with torch.no_grad():
        for batch, own in zip(
            loaded_batches(posed.test.select(rows), 256), equivalents.split(256), strict=True
        ):
            found.append(model.head.normalised_log_density(network_numbers(model, batch), own))
    return float((torch.cat(found).logsumexp(-1) - math.log(len(group))).mean())


def _near_border(run: Run, posed: _Posed) -> dict[str, float]:
    """Errors of particles near the border of the fundamental domain, and away from it."""
    group = symmetry_group(run.config.symmetry)
    distance = distance_to_domain_border(in_fundamental_domain(posed.truth, group), group)
    near = distance < BORDER_RAD
    return {
        "share_near_border": float(near.float().mean()),
        "median_near_border_rad": float(posed.errors[near].median()),
        "mean_near_border_rad": float(posed.errors[near].mean()),
        "median_inside_rad": float(posed.errors[~near].median()),
        "mean_inside_rad": float(posed.errors[~near].mean()),
    }


def _resolutions(run: Run, posed: _Posed, threshold: float) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Masked resolution in Å from the test part under true, predicted and filtered orientations (Fig. 4).

    Origins are the given ones, as the network finds none. Filtered: those whose trace (eq. 7) is below
    ``threshold``. Half maps also agree on what junk they share, so of simulated particles the FSC of the
    full map with the true one is there, too: where it falls to 0.5, and its mean down to 30 Å. The second
    value holds the masked FSC of each.
    """
    known = None if run.dataset.table else molecule(run.dataset)
    everything = torch.arange(len(posed.test))
    surest = (posed.predictions.posterior.trace <= threshold).nonzero()[:, 0]
    mode = posed.predictions.posterior.mode
    ways = {
        "true": (everything, posed.truth),
        "predicted": (everything, mode),
        "filtered": (surest, mode),
        "genuine": (posed.genuine.nonzero()[:, 0], mode),
    }
    found, curves = {}, {}
    for name, (rows, quaternions) in ways.items():
        maps = _maps(posed.test, rows, quaternions, run.config.symmetry)
        curve = fsc_curve(maps)
        found[f"resolution_{name}_angstrom"] = curve.masked_resolution_angstrom
        curves[f"fsc_{name}"] = curve.masked.numpy()
        if known is not None:
            beside = _fsc_with(known, maps.full)
            found[f"true_resolution_{name}_angstrom"] = resolution_angstrom(
                beside, len(known.voxels), known.pixel_size_angstrom, TRUE_MAP_FSC
            )
            coarse = slice(1, int(len(known.voxels) * known.pixel_size_angstrom / COARSE_ANGSTROM) + 1)
            found[f"coarse_fsc_{name}"] = float(beside[coarse].mean())
            curves[f"fsc_with_true_map_{name}"] = beside.numpy()
    found["kept_share"] = len(surest) / len(posed.test)
    found["junk_share"] = float((~posed.genuine).float().mean())
    found["junk_share_of_kept"] = float((~posed.genuine[surest]).float().mean())
    found["share_above_0_3_rad_of_kept"] = float((posed.errors[surest] > 0.3).float().mean())
    return found, curves


def _maps(test: Particles, rows: Tensor, quaternions: Tensor, symmetry: str) -> HalfMaps:
    chosen = test.select(rows)
    if chosen.poses is None:
        raise InputError("expected particles with origins")
    posed = chosen.with_poses(Poses(quaternions[rows], chosen.poses.shifts_angstrom))
    posed = replace(posed, half_sets=drawn_half_sets(posed.names))
    return reconstruct(posed, ReconstructionConfig(symmetry=symmetry), independent=False)


def _fsc_with(known: Volume, found: Volume) -> Tensor:
    """FSC of a map with the true one, both under the true one's mask."""
    mask = soft_mask(known)
    first, second = (Volume(each.voxels * mask, each.pixel_size_angstrom) for each in (known, found))
    return fourier_shell_correlation(first, second)
