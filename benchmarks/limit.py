"""How near poses come to the Cramér-Rao bound, from network and search, with own reference and true map.

    python benchmarks/limit.py --out DIR [--snr 0.1] [--minutes 6] [--model MODEL]
    python benchmarks/limit.py --out DIR --map MAP.mrc [--symmetry D2]        # images made by relion_project

Prints Markdown. Without --map: 5000 particles of the package's 70S ribosome, 128 px, as in the demonstration.
With it, `relion_project --ctf --add_noise --white_noise` makes the particles of that map. Half of them train
a network and make the reference, a third is aligned in every way. Noise and scale are measured on these
images, as for any user; the bound alone is computed with the truth.
"""

import argparse
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from relion_made import relion_particles
from torch import Tensor

from cryoforum.alignment.config import AlignmentConfig
from cryoforum.alignment.local_refinement import orientation_covariance, origin_covariance_pixel2
from cryoforum.commands.pose_files import PoseOutput
from cryoforum.commands.predict import predict
from cryoforum.commands.predict_request import PredictRequest
from cryoforum.commands.reconstruct import ReconstructRequest, reconstruct
from cryoforum.commands.reference_maps import ReferenceMap
from cryoforum.commands.simulate import SimulateRequest, simulate
from cryoforum.commands.train import TrainRequest, train
from cryoforum.config import preset, with_symmetry
from cryoforum.dataset.particle_table import select_rows
from cryoforum.dataset.particles import Particles
from cryoforum.dataset.pose_errors import orientation_errors
from cryoforum.dataset.split import PAPER_SPLIT
from cryoforum.dataset.volumes import Volume
from cryoforum.imaging.fft import frequency_points
from cryoforum.imaging.likelihood import evaluate, whiten
from cryoforum.imaging.projection import cropped_transform, slices_at
from cryoforum.io.mrc.maps import read_volume, write_volume
from cryoforum.io.relion.particles import particles_from_table, poses_from_table
from cryoforum.io.relion.star_files import read_star, write_star
from cryoforum.molecules.structures import load_structure
from cryoforum.network.model_folder import load_model
from cryoforum.reconstruction.reference_files import load_reference
from cryoforum.reconstruction.reference_map import HIGHEST_OF_NYQUIST
from cryoforum.simulation.config import SimulationConfig

COUNT, BOX, PIXEL_SIZE_ANGSTROM = 5000, 128, 2.8
SOURCES = ("network", "search", "both")
WAYS = (
    ("network", "nothing"),
    *((source, "own reference") for source in SOURCES),
    ("both", "own halves"),
    *((source, "true map") for source in SOURCES),
)
HEADER = ("candidates", "compared with", "median, rad", "× bound", "> 0.1 rad", "> 0.3 rad")
HEADER += ("shift, px", "× bound", "images/s")
DRAWS = 100  # of each particle's error, for the median error of an estimator at the bound


@dataclass(frozen=True)
class Bound:
    """What the best unbiased estimator reaches: medians over the particles, and where it was computed."""

    orientation_rad: float
    origin_pixel: float
    highest_frequency: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--snr", type=float, default=0.1)
    parser.add_argument("--minutes", type=float, default=6.0, help="of training")
    parser.add_argument(
        "--model", type=Path, help="use this model, trained on such a set, instead of training"
    )
    parser.add_argument("--map", type=Path, help="MRC map whose images RELION makes")
    parser.add_argument("--symmetry", default="C1")
    arguments = parser.parse_args()
    folder = arguments.out.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    path = made_by_relion(folder, arguments) if arguments.map else simulated(folder, arguments.snr)
    model = arguments.model or trained(folder, path, arguments)
    report(folder, path, model, arguments.symmetry)


def simulated(folder: Path, snr: float) -> Path:
    """Particles of the demonstration at another signal-to-noise ratio."""
    volume = load_structure("4v5d", BOX, PIXEL_SIZE_ANGSTROM)
    write_volume(volume, folder / "map.mrc")
    if not (folder / "particles.star").exists():
        config = SimulationConfig(count=COUNT, snr=snr)
        simulate(SimulateRequest(folder, "4v5d", BOX, PIXEL_SIZE_ANGSTROM, config, overwrite=True))
    return folder / "particles.star"


def made_by_relion(folder: Path, arguments: argparse.Namespace) -> Path:
    """Particles of a map that `relion_project` made."""
    if not (folder / "noisy.star").exists():
        relion_particles(read_volume(arguments.map), folder, COUNT, arguments.snr)
    return folder / "noisy.star"


def trained(folder: Path, path: Path, arguments: argparse.Namespace) -> Path:
    """A model and its reference."""
    config = with_symmetry(preset("small"), arguments.symmetry)
    out, minutes = folder / "model", arguments.minutes
    train(TrainRequest([path], out, config, split=PAPER_SPLIT, max_minutes=minutes, overwrite=True))
    return folder / "model"


def report(folder: Path, path: Path, model: Path, symmetry: str) -> None:
    """Pose the test part in every way and print the tables."""
    table = read_star(path)
    parts = load_model(model).parts
    names = table.particles["rlnImageName"].tolist()
    table = select_rows(table, torch.tensor([row for row, name in enumerate(names) if parts[name] == "test"]))
    truth_path = folder / "truth.star"
    write_star(table, truth_path)
    test = particles_from_table(table)
    volume = read_volume(folder / "map.mrc")
    reference = load_reference(model)
    own_bound = bound(test, volume, reference.highest_frequency)
    true_bound = bound(test, volume, int(HIGHEST_OF_NYQUIST * (test.box // 2)))
    extent = test.box * test.pixel_size_angstrom
    print(f"\n{len(test)} test particles, {test.box} px of {test.pixel_size_angstrom:.3g} Å, {symmetry}.")
    for name, found in (("the reference's", own_bound), ("the true map's", true_bound)):
        print(
            f"Bound with {name} frequencies (up to {found.highest_frequency} per box, "
            f"{extent / found.highest_frequency:.1f} Å): {found.orientation_rad:.5f} rad, "
            f"{found.origin_pixel:.3f} px."
        )
    print(f"\n| {' | '.join(HEADER)} |\n|{'---|' * len(HEADER)}")
    for source, compared in WAYS:
        request = PredictRequest(
            model,
            [truth_path],
            PoseOutput(folder / f"{source}-{compared.replace(' ', '-')}.star", overwrite=True),
            refine=compared != "nothing",
            reference=ReferenceMap(str(folder / "map.mrc")) if compared == "true map" else None,
            half_maps="own" if compared == "own halves" else "all",
            alignment=AlignmentConfig(source=source),
        )
        limit = true_bound if compared == "true map" else own_bound
        print(row(test, request, limit, symmetry, (source, compared)), flush=True)
    resolutions(folder, truth_path, symmetry)


def row(
    test: Particles, request: PredictRequest, limit: Bound, symmetry: str, labels: tuple[str, ...]
) -> str:
    """Errors of one way beside the bound, as a row of the table; read, align and write are timed together."""
    start = time.perf_counter()
    with messages() as told:
        predict(request)
    speed = len(test) / (time.perf_counter() - start)
    poses = poses_from_table(read_star(request.output.path))
    errors = orientation_errors(poses.quaternions, test.poses.quaternions, symmetry)
    shifts = (poses.shifts_angstrom - test.poses.shifts_angstrom).norm(dim=1) / test.pixel_size_angstrom
    values = (
        f"{errors.median():.4f}",
        f"{errors.median() / limit.orientation_rad:.3f}",
        f"{100 * (errors > 0.1).float().mean():.2f} %",
        f"{100 * (errors > 0.3).float().mean():.2f} %",
        f"{shifts.median():.3f}",
        f"{shifts.median() / limit.origin_pixel:.3f}",
        f"{speed:.0f}",
    )
    notes = "".join(f" ({line.split(':')[0]})" for line in told)
    return f"| {' | '.join((*labels[:-1], labels[-1] + notes, *values))} |"


def resolutions(folder: Path, truth_path: Path, symmetry: str) -> None:
    """Maps from the same images under true and under found poses."""
    print("\n| poses | resolution, masked | unmasked |\n|---|---|---|")
    for name in (
        "truth",
        "network-nothing",
        "network-own-reference",
        "both-own-reference",
        "both-own-halves",
    ):
        particles, out = [folder / f"{name}.star"], folder / f"map-{name}"
        found = reconstruct(ReconstructRequest(particles, out, symmetry=symmetry, overwrite=True))
        print(f"| {name} | {found['masked']:.2f} Å | {found['unmasked']:.2f} Å |", flush=True)


def bound(particles: Particles, volume: Volume, highest_frequency: int) -> Bound:
    """Median errors of an estimator at the Cramér-Rao bound: true map, poses, noise and scale.

    The noise is white, so its power is what the highest frequencies hold; the scale is the regression of all
    images on their true projections.
    """
    transform = cropped_transform(volume.voxels, particles.box // 2 - 1)
    everywhere = frequency_points(particles.box, particles.box // 2 - 1)
    cross = power = noise = 0.0
    batches = torch.arange(len(particles)).split(128)
    for rows in batches:
        bare = whitened(particles, rows, everywhere, 1.0, 1.0)
        origins = particles.poses.shifts_angstrom[rows] / particles.pixel_size_angstrom
        slices = slices_at(transform, particles.poses.quaternions[rows], everywhere)
        model = bare.transfer * slices * everywhere.phases(origins)
        cross += float((bare.values * model.conj()).real.sum())
        power += float(model.abs().square().sum())
        noise += float(bare.values.abs().square().sum())
    scale = cross / power
    noise = (noise - scale * cross) / (len(particles) * len(everywhere.kx))
    points = frequency_points(particles.box, highest_frequency)
    information = torch.cat(
        [
            evaluate(
                transform,
                whitened(particles, rows, points, noise, scale),
                torch.arange(len(rows)),
                particles.poses.quaternions[rows],
                particles.poses.shifts_angstrom[rows] / particles.pixel_size_angstrom,
            ).information
            for rows in batches
        ]
    )
    return Bound(
        median_length(orientation_covariance(information)),
        median_length(origin_covariance_pixel2(information)),
        highest_frequency,
    )


def whitened(particles: Particles, rows: Tensor, points, noise: float, scale: float):
    flat = torch.ones(len(rows), len(points.kx))
    chosen = particles.select(rows)
    images = chosen.images[torch.arange(len(rows))]
    return whiten(images, chosen.ctf, particles.pixel_size_angstrom, points, noise * flat, scale * flat)


def median_length(covariance: Tensor) -> float:
    """Median length of errors drawn from normal distributions with ``covariance`` (n, d, d)."""
    generator = torch.Generator().manual_seed(0)
    root = torch.linalg.cholesky(covariance.double())
    normal = torch.randn(DRAWS, *covariance.shape[:2], 1, generator=generator, dtype=torch.float64)
    return float((root @ normal)[..., 0].norm(dim=-1).median())


@contextmanager
def messages() -> Iterator[list[str]]:
    """What the library logs."""
    told: list[str] = []
    logger, handler = logging.getLogger("cryoforum"), logging.Handler()
    handler.emit = lambda record: told.append(record.getMessage())
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        yield told
    finally:
        logger.removeHandler(handler)


if __name__ == "__main__":
    main()
