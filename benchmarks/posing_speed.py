"""How fast poses are found: each step and its floor on this machine, boxes, set sizes, RELION beside it.

    python benchmarks/posing_speed.py --model MODEL --particles TRUE.star --map MAP.mrc [--part PART ...]

Prints Markdown. MODEL, the STAR file of particles with true poses and the map are those that
benchmarks/limit.py leaves in its folder (model, truth.star, map.mrc). Parts: steps, relion, boxes, sizes;
all where none is named. Medians of three; compare the ratios, not the seconds.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import timings
import torch

from cryoforum.alignment import local_refinement
from cryoforum.alignment.config import AlignmentConfig
from cryoforum.alignment.fitting import fitted_aligner
from cryoforum.alignment.global_search import SearchConfig, candidates, log_likelihood_on_grid, make_templates
from cryoforum.alignment.local_refinement import refine_locally
from cryoforum.alignment.map_aligner import MapAligner
from cryoforum.dataset.particle_table import ParticleTable, select_rows, with_columns
from cryoforum.dataset.particles import Particles, loaded_batches
from cryoforum.dataset.pose_errors import orientation_errors
from cryoforum.imaging.likelihood import evaluate
from cryoforum.io.relion.particles import particles_from_table, poses_from_table
from cryoforum.io.relion.star_files import read_star, write_star
from cryoforum.molecules.structures import load_structure
from cryoforum.network.model_folder import load_model
from cryoforum.network.predict import network_numbers
from cryoforum.reconstruction.reference_files import load_reference
from cryoforum.reconstruction.reference_map import reference_from_map
from cryoforum.simulation.config import SimulationConfig
from cryoforum.simulation.ideal import simulate

REPEATS, COUNT = 3, 512
# Of one point in `kernels.accumulate`, counted in its source: eight neighbours, the image and its CTF.
BYTES, OPERATIONS = 8 * 8 + 8 + 4, 200
EXHAUSTIVE = ("--healpix_order", "3", "--oversampling", "0")
ADAPTIVE = ("--healpix_order", "2", "--oversampling", "1")
COARSE = ("--ini_high", "20")
COMMAND = Path(sys.executable).parent / "cryoforum"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--particles", type=Path, required=True)
    parser.add_argument("--map", type=Path, required=True)
    parser.add_argument("--part", action="append", choices=PARTS)
    arguments = parser.parse_args()
    for part in arguments.part or PARTS:
        print(f"\n## {part}\n")
        PARTS[part](arguments)


def steps(arguments: argparse.Namespace) -> None:
    """Every step on one batch after the other, beside what the processor could do at best."""
    table = read_star(arguments.particles)
    particles = particles_from_table(select_rows(table, torch.arange(COUNT)))
    model, reference = load_model(arguments.model), load_reference(arguments.model)
    aligner = fitted_aligner(reference, particles, model, AlignmentConfig("network"))
    batch = next(loaded_batches(particles, COUNT))
    everything = torch.arange(COUNT)
    images = aligner.noise.whiten(batch, aligner.points)
    templates, transform = aligner.maps[0], aligner.maps[0].transform
    numbers = network_numbers(model, batch)
    density = model.head.log_density(numbers, aligner.features)
    starts = candidates(templates, images, density)

    def refined() -> object:
        poses = starts.quaternions, starts.origins_pixel
        return refine_locally(transform, images, *poses, aligner.local_refinement, starts.plausible)

    gemm, reading = products_per_second(), bytes_per_second()
    points, shifts = len(templates.points.kx), len(templates.origins_pixel)
    products = 4 * points * shifts * len(templates.rotations)
    evaluations = evaluations_of(refined) / COUNT
    reach = int(templates.points.radius[-1])
    print(f"{len(templates.rotations)} rotations × {shifts} origins up to frequency {reach};")
    print(f"reference up to frequency {int(aligner.points.radius[-1])} of {particles.box // 2}.")
    print(f"Measured rates of this machine: {gemm / 2e9:.0f} G multiply-adds/s in matrix products,")
    print(f"{reading / 1e9:.0f} GB/s read from the second-level cache.\n")
    print_header("step", "images/s", "floor, images/s", "what the floor counts", "share of the floor")
    search = COUNT / median_seconds(lambda: log_likelihood_on_grid(templates, images))
    found = gemm / products
    counted = f"{products / 2e6:.0f} M multiply-adds"
    print(f"| search | {search:.0f} | {found:.0f} | {counted} | {search / found:.2f} |")
    speed = COUNT / median_seconds(refined)
    found = evaluations * max(BYTES / reading, OPERATIONS / gemm)
    counted = f"{evaluations / 1e3:.0f} k points of {BYTES} bytes and {OPERATIONS} operations"
    print(f"| refine | {speed:.0f} | {1 / found:.0f} | {counted} | {speed * found:.2f} |")
    rest: list[tuple[str, Callable[[], object]]] = [
        ("read", lambda: particles.images[everything]),
        ("whiten", lambda: aligner.noise.whiten(batch, aligner.points)),
        ("network", lambda: network_numbers(model, batch)),
        ("candidates", lambda: candidates(templates, images, density)),
        ("a batch from file to posterior, without the search", lambda: aligner.align_batch(batch)),
    ]
    for name, action in rest:
        print(f"| {name} | {COUNT / median_seconds(action):.0f} | | | |", flush=True)


def relion(arguments: argparse.Namespace) -> None:
    """One global iteration of relion_refine, same images, same reference; whole processes on either side."""
    if shutil.which("relion_refine") is None:
        print("relion_refine is not installed")
        return
    table = read_star(arguments.particles)
    pixel_size = particles_from_table(table).pixel_size_angstrom
    print_header("program", "images", "images/s", "median error, rad")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        link_stacks(arguments.particles, folder)
        (folder / "refined").mkdir()
        write_star(table, folder / "particles.star")
        shutil.copy(arguments.model / "reference.mrc", folder / "map.mrc")
        diameter = str(round(0.85 * pixel_size * particles_from_table(table).box))
        refine = ["relion_refine", "--ref", "map.mrc", "--iter", "1", "--ctf", "--firstiter_cc", "--K", "1"]
        refine += ["--offset_range", "3", "--offset_step", "2", "--pad", "2", "--j", "2"]
        refine += ["--particle_diameter", diameter, "--tau2_fudge", "4", "--norm", "--scale"]
        refine += ["--flatten_solvent", "--zero_mask", "--dont_check_norm", "--o", "refined/run"]
        ours = [COMMAND, "predict", arguments.model.absolute(), "particles.star", "--half-maps", "all"]
        ours += ["--out", "ours.star"]
        few, everything = ("--i", "few.star"), ("--i", "particles.star")
        result = "refined/run_it001_data.star"
        relion_runs = (
            ("7.5° throughout, to 20 Å", 128, (*EXHAUSTIVE, *COARSE, *few)),
            ("15°, then 7.5°", 128, (*ADAPTIVE, *few)),
            ("15°, then 7.5°, to 20 Å", len(table), (*ADAPTIVE, *COARSE, *everything)),
        )
        runs = (
            *(
                (f"relion_refine, {how}", count, [*refine, *words], result)
                for how, count, words in relion_runs
            ),
            ("cryoforum predict", len(table), ours, "ours.star"),
        )
        write_star(select_rows(table, torch.arange(128)), folder / "few.star")
        for label, count, command, result in runs:
            speed = count / run(command, folder)[0]
            error = median_error(table, read_star(folder / result))
            print(f"| {label} | {count} | {speed:.1f} | {error:.4f} |", flush=True)


def median_error(truth: ParticleTable, found: ParticleTable) -> float:
    """Median orientation error in radians, particles matched by name."""
    row_of_name = {name: row for row, name in enumerate(truth.particles["rlnImageName"])}
    rows = torch.tensor([row_of_name[name] for name in found.particles["rlnImageName"]])
    true = poses_from_table(truth).quaternions[rows]
    return float(orientation_errors(poses_from_table(found).quaternions, true).median())


def boxes(arguments: argparse.Namespace) -> None:
    """Search and refine of images of growing box at one field of view."""
    print_header("box", "highest frequency", "search, images/s", "refine, images/s")
    for box in (64, 128, 192, 256):
        volume = load_structure("4v5d", box, 128 * 2.8 / box)
        particles = simulate(volume, SimulationConfig(count=128, snr=0.1))
        for label, resolution in (("to 10 Å", 10.0), ("to 0.9 of Nyquist", None)):
            if resolution and resolution < 2.2 * volume.pixel_size_angstrom:
                continue
            reference = reference_from_map(volume, resolution_angstrom=resolution)
            aligner = fitted_aligner(reference, particles)
            print_row(f"{box}, {label}", aligner, particles)
    print()
    print_header("rotations × origins, up to frequency", "search, images/s")
    volume = load_structure("4v5d", 128, 2.8)
    particles = simulate(volume, SimulationConfig(count=128, snr=0.1))
    aligner = fitted_aligner(reference_from_map(volume), particles)
    images = aligner.noise.whiten(particles, aligner.points)
    for nside, highest in ((3, 10), (4, 10), (5, 10), (5, 14), (6, 14)):
        config = SearchConfig(nside=nside, highest_frequency=highest)
        templates = make_templates(aligner.maps[0].transform, 128, config)
        speed = 128 / median_seconds(lambda templates=templates: log_likelihood_on_grid(templates, images))
        size = f"{len(templates.rotations)} × {len(templates.origins_pixel)}, {highest}"
        print(f"| {size} | {speed:.0f} |", flush=True)


def print_row(label: str, aligner: MapAligner, particles: Particles) -> None:
    images = aligner.noise.whiten(particles, aligner.points)
    templates, transform = aligner.maps[0], aligner.maps[0].transform
    density = log_likelihood_on_grid(templates, images)
    starts = candidates(templates, images, density)
    search = len(particles) / median_seconds(lambda: log_likelihood_on_grid(templates, images))
    poses = starts.quaternions, starts.origins_pixel
    speed = len(particles) / median_seconds(
        lambda: refine_locally(transform, images, *poses, aligner.local_refinement, starts.plausible)
    )
    print(f"| {label} | {int(aligner.points.radius[-1])} | {search:.0f} | {speed:.0f} |", flush=True)


def sizes(arguments: argparse.Namespace) -> None:
    """Tables of growing length over copies of one stack, 10⁴ particles of each predicted; peak memory."""
    table = read_star(arguments.particles)
    print_header("rows of the file", "predicted", "seconds", "images/s", "peak memory, GB")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for rows in (10_000, 100_000, 1_000_000):
            write_star(repeated(table, rows, folder), folder / "many.star")
            command = [COMMAND, "predict", arguments.model.absolute(), "many.star", "--overwrite"]
            command += ["--out", "out.star", "--shard", f"1/{rows // 10_000}"]
            seconds, memory = run(command, folder)
            done = len(read_star(folder / "out.star"))
            print(f"| {rows} | {done} | {seconds:.1f} | {done / seconds:.0f} | {memory:.2f} |", flush=True)


def repeated(table: ParticleTable, rows: int, folder: Path) -> ParticleTable:
    """The particles again and again, every time from a further link to their stacks."""
    frame = select_rows(table, torch.arange(rows) % len(table))
    names = []
    for row, found in enumerate(frame.particles["rlnImageName"]):
        index, stack = found.split("@")
        link = folder / f"copy{row // len(table)}_{Path(stack).name}"
        if not link.is_symlink():
            link.symlink_to(table.path.absolute().parent / stack)
        names.append(f"{index}@{link.name}")
    return with_columns(frame, {"rlnImageName": names})


PARTS: dict[str, Callable[[argparse.Namespace], None]] = {
    "steps": steps,
    "relion": relion,
    "boxes": boxes,
    "sizes": sizes,
}


def link_stacks(path: Path, folder: Path) -> None:
    """The stacks of a STAR file beside the copies of it in ``folder``."""
    for stack in path.absolute().parent.glob("*.mrcs"):
        (folder / stack.name).symlink_to(stack)


def print_header(*labels: str) -> None:
    print(f"| {' | '.join(labels)} |\n|{'---|' * len(labels)}", flush=True)


def run(command: Sequence[object], folder: Path) -> tuple[float, float]:
    """Seconds and peak memory in GB of a whole process."""
    start = time.perf_counter()
    words = [str(word) for word in command]
    process = subprocess.Popen(words, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(words)} failed")
    return time.perf_counter() - start, usage.ru_maxrss / 2**20


def products_per_second() -> float:
    """Multiplications and additions a second of large float32 matrix products."""
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    return 2 * 2048**3 / median_seconds(lambda: a @ b)


def bytes_per_second() -> float:
    """Bytes a second that are read from the processor's second-level cache."""
    values = torch.randn(2**18)  # 1 MB
    return 4 * len(values) * 1000 / median_seconds(lambda: [values.sum() for _ in range(1000)])


def evaluations_of(action: Callable[[], object]) -> int:
    """Points at which the likelihood is evaluated in ``action``."""
    count = 0

    def counted(transform, images, rows, *pose):
        nonlocal count
        count += len(rows) * len(images.points.kx)
        return evaluate(transform, images, rows, *pose)

    local_refinement.evaluate = counted
    try:
        action()
    finally:
        local_refinement.evaluate = evaluate
    return count


def median_seconds(action: Callable[[], object]) -> float:
    action()
    return timings.median_seconds(action, REPEATS)


if __name__ == "__main__":
    main()
