"""The whole way on the package's 70S ribosome: from a structure to poses, a filtered set, maps and a page."""

import json
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from cryoforum.commands.compare import compare_files, matched_errors, matched_shift_errors_angstrom
from cryoforum.commands.filter import filter_file
from cryoforum.commands.predict import Output, PredictionOptions, predict_to_file
from cryoforum.commands.reconstruct import reconstruct_to_folder
from cryoforum.commands.simulate import simulate_to_folder
from cryoforum.commands.train import train_to_folder
from cryoforum.commands.workflow import Bar
from cryoforum.config import SimulationConfig, preset
from cryoforum.dataset.particle_table import number_column, select_rows
from cryoforum.dataset.pose_errors import ErrorSummary
from cryoforum.dataset.split import split_rows
from cryoforum.errors import InputError
from cryoforum.io.relion.lengths import pixel_size_from_table
from cryoforum.io.relion.star_files import read_star, write_star
from cryoforum.network.model import TrainedModel
from cryoforum.report.page import write_report
from cryoforum.runtime.reporter import TrainingProgress
from cryoforum.storage.files import new_folder, replacing

STRUCTURE, BOX, PIXEL_SIZE_ANGSTROM = "4v5d", 128, 2.8
KEPT_SHARE = 0.75
RESULTS = {
    *("particles.star", "particles.mrcs", "model", "network.star", "predictions.star", "kept.star"),
    *("truth.star", "reconstruction", "summary.json", "report.html"),
}
# Whose errors are measured and whose poses make maps, by the names that summary.json gives them.
COMPARED = {"network": "network.star", "all": "predictions.star", "kept": "kept.star"}
RECONSTRUCTED = {
    "true": "truth.star",
    "network": "network.star",
    "predicted": "predictions.star",
    "filtered": "kept.star",
}
Timings = list[dict[str, float | str]]


@dataclass(frozen=True)
class BoundSummary:
    """Medians over the refined particles: the Cramér-Rao bound (rms, degrees), and error / bound."""

    median_deg: float
    median_error_over_bound: float


@dataclass(frozen=True)
class DemoResult:
    """What the demonstration found.

    errors: of the network alone, of all refined particles and of those kept. shift_medians_pixel: median
    distance to the true origin of the same. bound: None, like no shifts, where there was no reference.
    resolutions: in Å by poses.
    """

    errors: dict[str, ErrorSummary]
    shift_medians_pixel: dict[str, float]
    bound: BoundSummary | None
    resolutions: dict[str, dict[str, float | bool]]
    report: Path


def run_demo(
    out: Path,
    count: int,
    preset_name: str,
    max_minutes: float,
    seed: int,
    overwrite: bool,
    bar: Bar,
    on_step: Callable[[TrainingProgress], None],
    tell: Callable[[str], None] = lambda line: None,
) -> DemoResult:
    """Simulate, train, predict the test part with and without local refinement, filter, make four maps, report.

    ``tell`` is told, in one line each, what the user should know.
    """
    preset(preset_name)
    if not max_minutes > 0:
        raise InputError(f"expected --max-minutes above 0, found {max_minutes}")
    split_rows(count)  # too few particles are refused before anything is made or replaced
    out = new_folder(out, overwrite, RESULTS)
    timings: Timings = []
    with _timed("simulate", count, timings):
        config = SimulationConfig(count=count, seed=seed)
        simulate_to_folder(STRUCTURE, BOX, PIXEL_SIZE_ANGSTROM, config, out, bar, overwrite=False)
    with _timed("train", 0, timings):
        trained = _train(out, preset_name, max_minutes, seed, bar, on_step, tell)
    shown = trained.log[-1]["images"]
    timings[-1]["images_per_second"] = round(shown / float(timings[-1]["seconds"]), 1)
    test_count = sum(part == "test" for part in trained.parts.values())
    for step, name, refine in (
        ("predict, network alone", "network.star", False),
        ("predict and refine", "predictions.star", None),
    ):
        with _timed(step, test_count, timings):
            _predict(out, name, refine, bar, tell)
    filter_file(out / "predictions.star", KEPT_SHARE, None, out / "kept.star", None, overwrite=False)
    _write_truth(out)
    resolutions = _reconstruct(out, bar, timings)
    result = _measured(out, resolutions)
    _write_summary(result, timings, shown, out / "summary.json")
    write_report(out, result.report)
    return result


def _train(
    out: Path,
    preset_name: str,
    max_minutes: float,
    seed: int,
    bar: Bar,
    on_step: Callable[[TrainingProgress], None],
    tell: Callable[[str], None],
) -> TrainedModel:
    return train_to_folder(
        [out / "particles.star"],
        None,
        out / "model",
        preset(preset_name),
        split_choice=None,
        seed=seed,
        max_minutes=max_minutes,
        resume=False,
        overwrite=False,
        bar=bar,
        on_step=on_step,
        tell=tell,
    )


def _predict(out: Path, name: str, refine: bool | None, bar: Bar, tell: Callable[[str], None]) -> None:
    output = Output(out / name, bar, part="test", tell=tell)
    predict_to_file(out / "model", [out / "particles.star"], None, PredictionOptions(refine=refine), output)


def _write_truth(out: Path) -> None:
    """The true poses of the particles that were predicted, in the same order."""
    table = read_star(out / "particles.star")
    row_of_name = {name: row for row, name in enumerate(table.particles["rlnImageName"])}
    names = read_star(out / "predictions.star").particles["rlnImageName"]
    rows = torch.tensor([row_of_name[name] for name in names])
    write_star(select_rows(table, rows), out / "truth.star")


def _reconstruct(out: Path, bar: Bar, timings: Timings) -> dict[str, dict[str, float | bool]]:
    """A map from each kind of poses; their resolutions."""
    resolutions = {}
    (out / "reconstruction").mkdir()
    for kind, name in RECONSTRUCTED.items():
        with _timed(f"reconstruct ({kind})", len(read_star(out / name)), timings):
            resolutions[kind] = reconstruct_to_folder(
                [out / name], None, out / "reconstruction" / kind, overwrite=False, bar=bar
            )
    return resolutions


def _measured(out: Path, resolutions: dict[str, dict[str, float | bool]]) -> DemoResult:
    """How far the poses are from the truth, and from the bound of their images."""
    truth, predicted = read_star(out / "truth.star"), read_star(out / "predictions.star")
    shifts: dict[str, float] = {}
    bound = None
    bound_deg = number_column(predicted, "cryoforumBoundDeg")
    if bound_deg is not None:  # without a reference the origins are still the true ones of the file
        for group, name in COMPARED.items():
            errors_angstrom = matched_shift_errors_angstrom(read_star(out / name), truth)
            shifts[group] = float(errors_angstrom.quantile(0.5)) / pixel_size_from_table(truth)
        limit = torch.from_numpy(bound_deg)
        ratio = torch.rad2deg(matched_errors(predicted, truth)) / limit
        bound = BoundSummary(float(limit.quantile(0.5)), float(ratio.quantile(0.5)))
    errors = {
        group: compare_files(out / name, out / "truth.star", None, overwrite=False)
        for group, name in COMPARED.items()
    }
    return DemoResult(errors, shifts, bound, resolutions, out / "report.html")


def _write_summary(result: DemoResult, timings: Timings, shown: float, path: Path) -> None:
    summary = {
        "errors": {group: errors.to_dict() for group, errors in result.errors.items()},
        "shift_errors": {
            group: {"median_pixel": median, "median_angstrom": median * PIXEL_SIZE_ANGSTROM}
            for group, median in result.shift_medians_pixel.items()
        },
        "bound": None if result.bound is None else asdict(result.bound),
        "resolutions": result.resolutions,
        "timings": timings,
        "training_images_shown": shown,
    }
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(summary, indent=2) + "\n")


@contextmanager
def _timed(step: str, images: int, timings: Timings) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds = time.perf_counter() - start
    unit = 2**20 if sys.platform == "darwin" else 2**10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    timings.append(
        {
            "step": step,
            "seconds": round(seconds, 2),
            "images_per_second": round(images / seconds, 1),
            "peak_memory_mb": round(peak),
        }
    )
