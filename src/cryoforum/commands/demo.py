"""The whole way on the package's 70S ribosome: from a structure to poses, a filtered set, maps and a page."""

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from cryoforum.choices import PresetName, SplitPart
from cryoforum.commands.compare import matching_rows, pose_errors
from cryoforum.commands.filter import FilterRequest, filter_particles
from cryoforum.commands.pose_files import PoseOutput
from cryoforum.commands.predict import predict
from cryoforum.commands.predict_request import PredictRequest
from cryoforum.commands.reconstruct import ReconstructRequest, reconstruct
from cryoforum.commands.simulate import SimulateRequest, simulate
from cryoforum.commands.train import TrainRequest, train
from cryoforum.config import preset
from cryoforum.dataset.columns import CRAMER_RAO_BOUND
from cryoforum.dataset.particle_table import ParticleTable, number_column, select_rows
from cryoforum.dataset.pose_errors import ErrorSummary
from cryoforum.dataset.split import PAPER_SHARES, PAPER_SPLIT, split_rows
from cryoforum.errors import require
from cryoforum.io.relion.lengths import pixel_size_from_table
from cryoforum.io.relion.star_files import read_star, write_star
from cryoforum.report.page import write_report
from cryoforum.runtime.reporter import SILENT, Reporter
from cryoforum.simulation.config import SimulationConfig
from cryoforum.storage.files import new_folder, write_json
from cryoforum.storage.locks import taken

STRUCTURE, BOX, PIXEL_SIZE_ANGSTROM = "4v5d", 128, 2.8
KEPT_SHARE = 0.75
RESULTS = {
    *("particles.star", "particles.mrcs", "model", "network.star", "predictions.star", "kept.star"),
    *("truth.star", "reconstruction", "summary.json", "report.html"),
}
FROM_PARTICLES = {"collected.star", "new.star", "initial", "refined"}  # of the one that forgets the poses
ALL_RESULTS = RESULTS | FROM_PARTICLES
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


@dataclass(frozen=True)
class DemoRequest:
    """What `cryoforum demo` is asked for: where, how many particles, and how long to train."""

    out: Path
    count: int = 5000
    preset: PresetName = "small"
    max_minutes: float = 6.0
    seed: int = 0
    overwrite: bool = False

    def __post_init__(self) -> None:
        preset(self.preset)
        require(self.max_minutes > 0, "--max-minutes above 0", self.max_minutes)


def demo(request: DemoRequest, reporter: Reporter = SILENT) -> DemoResult:
    """Simulate, train, predict the test part with and without refinement, filter, make four maps, report."""
    split_rows(request.count, *PAPER_SHARES)  # refuses too few before anything is made or replaced
    with taken(request.out):
        return _demo_into(new_folder(request.out, request.overwrite, ALL_RESULTS), request, reporter)


def _demo_into(out: Path, request: DemoRequest, reporter: Reporter) -> DemoResult:
    """All steps in an empty folder that this process holds."""
    timings: Timings = []
    simulate_into(out, request, timings, reporter)
    shown = train_on(out / "particles.star", out, request, timings, reporter, split=PAPER_SPLIT)
    predict_twice(out, out / "particles.star", timings, reporter, part="test")
    write_truth(out, read_star(out / "particles.star"))
    return maps_and_page(out, timings, shown, reporter)


def simulate_into(out: Path, request: DemoRequest, timings: Timings, reporter: Reporter) -> None:
    """particles.star with true poses, and its stack."""
    with timed("simulate", request.count, timings):
        simulation = SimulationConfig(count=request.count, seed=request.seed)
        simulate(SimulateRequest(out, STRUCTURE, BOX, PIXEL_SIZE_ANGSTROM, simulation), reporter)


def train_on(
    particles: Path,
    out: Path,
    request: DemoRequest,
    timings: Timings,
    reporter: Reporter,
    split: str | None = None,
) -> float:
    """A model in ``out``; how many images it was shown."""
    with timed("train", 0, timings):
        config, model = preset(request.preset), out / "model"
        training = TrainRequest(
            [particles], model, config, split=split, seed=request.seed, max_minutes=request.max_minutes
        )
        (trained,) = train(training, reporter)
    shown = trained.log[-1]["images"]
    timings[-1]["images_per_second"] = round(shown / float(timings[-1]["seconds"]), 1)
    return shown


def predict_twice(
    out: Path, particles: Path, timings: Timings, reporter: Reporter, part: SplitPart | None = None
) -> None:
    """network.star by the network alone, predictions.star refined, and the surest of these in kept.star."""
    for step, name, refine in (
        ("predict, network alone", "network.star", False),
        ("predict and refine", "predictions.star", None),
    ):
        with timed(step, 0, timings):
            request = PredictRequest(
                out / "model", [particles], PoseOutput(out / name), part=part, refine=refine
            )
            count = predict(request, reporter).count
        timings[-1]["images_per_second"] = round(count / float(timings[-1]["seconds"]), 1)
    filter_particles(FilterRequest(out / "predictions.star", out / "kept.star", KEPT_SHARE))


def write_truth(out: Path, table: ParticleTable) -> None:
    """The true poses, of ``table``, of the particles that were predicted, in the same order."""
    rows = matching_rows(table, read_star(out / "predictions.star"))
    write_star(select_rows(table, rows), out / "truth.star")


def maps_and_page(out: Path, timings: Timings, shown: float, reporter: Reporter) -> DemoResult:
    """A map from each kind of poses, what was found as numbers, and the page."""
    resolutions = _reconstruct(out, reporter, timings)
    result = _measured(out, resolutions)
    _write_summary(result, timings, shown, out / "summary.json")
    write_report(out, result.report)
    return result


def _reconstruct(out: Path, reporter: Reporter, timings: Timings) -> dict[str, dict[str, float | bool]]:
    """A map from each kind of poses; their resolutions."""
    resolutions = {}
    (out / "reconstruction").mkdir()
    for kind, name in RECONSTRUCTED.items():
        with timed(f"reconstruct ({kind})", len(read_star(out / name)), timings):
            request = ReconstructRequest([out / name], out / "reconstruction" / kind)
            resolutions[kind] = reconstruct(request, reporter)
    return resolutions


def _measured(out: Path, resolutions: dict[str, dict[str, float | bool]]) -> DemoResult:
    """How far the poses are from the truth, and from the bound of their images."""
    truth, predicted = read_star(out / "truth.star"), read_star(out / "predictions.star")
    errors = {group: pose_errors(read_star(out / name), truth) for group, name in COMPARED.items()}
    shifts: dict[str, float] = {}
    bound = None
    bound_deg = number_column(predicted, CRAMER_RAO_BOUND)
    if bound_deg is not None:  # without a reference the origins are still the true ones of the file
        pixel_size = pixel_size_from_table(truth)
        shifts = {group: found.median_shift_angstrom / pixel_size for group, found in errors.items()}
        limit = torch.from_numpy(bound_deg)
        ratio = torch.rad2deg(errors["all"].orientations_rad) / limit
        bound = BoundSummary(float(limit.quantile(0.5)), float(ratio.quantile(0.5)))
    summaries = {group: found.summary for group, found in errors.items()}
    return DemoResult(summaries, shifts, bound, resolutions, out / "report.html")


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
    write_json(path, summary)


@contextmanager
def timed(step: str, images: int, timings: Timings) -> Iterator[None]:
    """Add how long a step took, and its images a second, to ``timings``."""
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
