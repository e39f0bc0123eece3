"""The whole way on the package's 70S ribosome: from a structure to poses, a filtered set, maps and a page."""

import json
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from cryoforum.config import SimulationConfig, preset
from cryoforum.io.files import new_folder, replacing
from cryoforum.io.star import read_star, select_rows, write_star
from cryoforum.metrics import ErrorSummary
from cryoforum.predicting import Output, PredictionOptions, predict_to_star
from cryoforum.reporting import write_report
from cryoforum.training import Progress, split_rows
from cryoforum.workflow import (
    Bar,
    compare_stars,
    filter_star,
    reconstruct_to_folder,
    simulate_to_folder,
    train_to_folder,
)

STRUCTURE, BOX, PIXEL_SIZE_ANGSTROM = "4v5d", 128, 2.8
KEPT_SHARE = 0.75
RESULTS = {
    *("particles.star", "particles.mrcs", "model", "predictions.star", "kept.star", "truth.star"),
    *("reconstruction", "summary.json", "report.html"),
}


@dataclass(frozen=True)
class DemoResult:
    """What the demonstration found: errors of all and of the kept, resolutions by poses, the page."""

    errors: dict[str, ErrorSummary]
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
    on_step: Callable[[Progress], None],
) -> DemoResult:
    """Simulate, train, predict the test part, filter, reconstruct three ways, report."""
    settings = preset(preset_name)
    if not max_minutes > 0:
        raise ValueError(f"expected --max-minutes above 0, found {max_minutes}")
    split_rows(count)  # too few particles are refused before anything is made or replaced
    out = new_folder(out, overwrite, RESULTS)
    particles, model = out / "particles.star", out / "model"
    predicted, kept, truth = (out / f"{name}.star" for name in ("predictions", "kept", "truth"))
    timings: list[dict[str, float | str]] = []
    with _timed("simulate", count, timings):
        config = SimulationConfig(count=count, seed=seed)
        simulate_to_folder(STRUCTURE, BOX, PIXEL_SIZE_ANGSTROM, config, out, bar, overwrite=False)
    with _timed("train", 0, timings):
        trained = train_to_folder(
            particles,
            None,
            model,
            settings,
            split_choice=None,
            seed=seed,
            max_minutes=max_minutes,
            resume=False,
            overwrite=False,
            bar=bar,
            on_step=on_step,
        )
        shown = trained.log[-1]["images"]
    timings[-1]["images_per_second"] = shown / float(timings[-1]["seconds"])
    test_count = sum(part == "test" for part in trained.parts.values())
    with _timed("predict", test_count, timings):
        predict_to_star(model, particles, None, PredictionOptions(), Output(predicted, bar, part="test"))
    filter_star(predicted, KEPT_SHARE, "trace", kept, None, overwrite=False)
    _write_truth(particles, predicted, truth)
    errors = {
        "all": compare_stars(predicted, truth, None, overwrite=False),
        "kept": compare_stars(kept, truth, None, overwrite=False),
    }
    resolutions = {}
    (out / "reconstruction").mkdir()
    for name, star in {"true": truth, "predicted": predicted, "filtered": kept}.items():
        with _timed(f"reconstruct ({name})", len(read_star(star)), timings):
            resolutions[name] = reconstruct_to_folder(
                star,
                None,
                out / "reconstruction" / name,
                overwrite=False,
                bar=bar,
            )
    summary = {
        "errors": {name: errors[name].to_dict() for name in errors},
        "resolutions": resolutions,
        "timings": timings,
        "training_images_shown": shown,
    }
    with replacing(out / "summary.json") as temporary:
        temporary.write_text(json.dumps(summary, indent=2) + "\n")
    write_report(out, out / "report.html")
    return DemoResult(errors, resolutions, out / "report.html")


def _write_truth(particles: Path, predicted: Path, truth: Path) -> None:
    """The true poses of the particles that were predicted, in the same order."""
    star = read_star(particles)
    row_of_name = {name: row for row, name in enumerate(star.particles["rlnImageName"])}
    names = read_star(predicted).particles["rlnImageName"]
    write_star(select_rows(star, torch.tensor([row_of_name[name] for name in names])), truth)


@contextmanager
def _timed(step: str, images: int, timings: list[dict[str, float | str]]) -> Iterator[None]:
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
