"""How opening and reading scale: many small stacks beside one, and 10⁶ rows, with few file handles.

    python benchmarks/many_stacks.py [--part PART ...] [--model MODEL --particles TRUE.star]

Prints Markdown. Parts: stacks (10⁴ stacks of ten images beside one stack of them all), star (10⁶ rows read,
selected and written), million (10⁶ images read in order), predict (a part of a file of 10⁶ rows; needs MODEL
and TRUE.star of `benchmarks/limit.py`). All where none is named. Every measurement is a process of its own
that may open 1024 files, and gives its peak memory, imports of the package included. Seconds are the
processor's (those of predict the clock's). Files were just written, so they come from the page cache.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import torch
from posing_speed import COMMAND, print_header, repeated, run

from cryoforum.dataset.particle_table import ParticleTable, select_rows
from cryoforum.dataset.particles import loaded_batches
from cryoforum.io.mrc.stacks import LazyImages, write_stack
from cryoforum.io.relion.particles import particles_from_table
from cryoforum.io.relion.star_files import read_star, write_star

BOX, STACKS, IMAGES_EACH = 32, 10_000, 10
OPEN_FILES, BATCH = 1024, 256
OPTICS = {"rlnOpticsGroup": ["1"], "rlnImagePixelSize": ["4.0"], "rlnImageSize": [str(BOX)]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", action="append", choices=PARTS)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--particles", type=Path)
    parser.add_argument("--measure", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measured(*arguments.measure)))
        return
    resource.setrlimit(resource.RLIMIT_NOFILE, (OPEN_FILES, OPEN_FILES))
    for part in arguments.part or PARTS:
        with tempfile.TemporaryDirectory() as name:
            print(f"\n## {part}\n")
            PARTS[part](Path(name), arguments)


def stacks(folder: Path, arguments: argparse.Namespace) -> None:
    """The same images in one stack and in 10⁴."""
    count = STACKS * IMAGES_EACH
    images = torch.randn(count, BOX, BOX, generator=torch.Generator().manual_seed(0))
    write_stack(folder / "one.mrcs", images.split(10_000), count, BOX, 4.0)
    (folder / "many").mkdir()
    for number, own in enumerate(images.split(IMAGES_EACH)):
        write_stack(folder / "many" / f"{number:05d}.mrcs", [own], IMAGES_EACH, BOX, 4.0)
    write_table(folder / "one.star", [f"{row + 1:06d}@one.mrcs" for row in range(count)])
    write_table(folder / "many.star", names(STACKS, IMAGES_EACH))
    print_header("step", "one stack, s", f"{STACKS} stacks, s", "ratio", "memory of either, GB", "open files")
    labels = {"open": "open", "ordered": "read in order of the file", "random": "read in random order"}
    found = {kind: measure("stacks", folder / f"{kind}.star") for kind in ("one", "many")}
    for step, label in labels.items():
        one, many = found["one"][step], found["many"][step]
        memory = " and ".join(f"{found[kind]['memory_gb']:.2f}" for kind in ("one", "many"))
        files = f"{found['many']['open_files']:.0f}"
        print(f"| {label} | {one:.2f} | {many:.2f} | {many / one:.1f} | {memory} | {files} |", flush=True)


def table(folder: Path, arguments: argparse.Namespace) -> None:
    """A table of 10⁶ rows: written, read, selected, written again."""
    write_table(folder / "million.star", names(1000, 1000))
    found = measure("star", folder / "million.star")
    print_header("rows", "read, s", "select half, s", "write that, s", "peak memory, GB")
    print(f"| 1000000 | {found['read']:.1f} | {found['select']:.1f} | {found['write']:.1f} ", end="")
    print(f"| {found['memory_gb']:.2f} |")


def million(folder: Path, arguments: argparse.Namespace) -> None:
    """10⁶ images of 1000 names of one stack, read batch by batch."""
    images = torch.randn(1000, BOX, BOX, generator=torch.Generator().manual_seed(0))
    write_stack(folder / "one.mrcs", [images], 1000, BOX, 4.0)
    (folder / "many").mkdir()
    for number in range(1000):
        (folder / "many" / f"{number:05d}.mrcs").symlink_to(folder / "one.mrcs")
    write_table(folder / "million.star", names(1000, 1000))
    found = measure("stacks", folder / "million.star")
    print_header("images", "open, s", "read in order, µs an image", "in random order, µs", "peak memory, GB")
    print(f"| 1000000 | {found['open']:.1f} | {found['ordered']:.2f} | {found['random']:.2f} ", end="")
    print(f"| {found['memory_gb']:.2f} |")


def predict(folder: Path, arguments: argparse.Namespace) -> None:
    """The network alone on a fiftieth of 10⁶ rows, and from a scratch folder."""
    if arguments.model is None or arguments.particles is None:
        print("needs --model and --particles")
        return
    write_star(repeated(read_star(arguments.particles), 1_000_000, folder), folder / "many.star")
    (folder / "scratch").mkdir()
    command = [COMMAND, "predict", arguments.model.absolute(), "many.star", "--no-refine", "--overwrite"]
    command += ["--out", "out.star", "--shard", "1/50"]
    print_header("run", "particles", "seconds", "particles/s", "peak memory, GB")
    for label, more in (("predict --no-refine", []), ("the same, --scratch", ["--scratch", "scratch"])):
        seconds, memory = run([*command, *more], folder)
        done = len(read_star(folder / "out.star"))
        print(f"| {label} | {done} | {seconds:.1f} | {done / seconds:.0f} | {memory:.2f} |", flush=True)


PARTS = {"stacks": stacks, "star": table, "million": million, "predict": predict}


def names(stack_count: int, images_each: int) -> list[str]:
    return [
        f"{image + 1:06d}@many/{stack:05d}.mrcs"
        for stack in range(stack_count)
        for image in range(images_each)
    ]


def write_table(path: Path, image_names: list[str]) -> None:
    """A STAR file with as many columns as a refinement has."""
    count = len(image_names)
    columns = {"rlnImageName": image_names, "rlnOpticsGroup": ["1"] * count}
    columns |= {
        f"rlnAngle{name}": [f"{row % 180}.250000" for row in range(count)] for name in ("Rot", "Tilt", "Psi")
    }
    columns |= {f"labColumn{number}": ["15000.123456"] * count for number in range(15)}
    write_star(ParticleTable(path, pd.DataFrame(OPTICS, dtype=str), pd.DataFrame(columns, dtype=str)), path)


def measure(what: str, path: Path) -> dict[str, float]:
    """The numbers that a process of its own prints."""
    command = [sys.executable, __file__, "--measure", what, str(path)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def measured(what: str, path: str) -> dict[str, float]:
    seconds = dict(stack_times(Path(path)) if what == "stacks" else table_times(Path(path)))
    # Not ru_maxrss, which begins at the memory of the process that started this one.
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line)
    return seconds | {"memory_gb": int(peak.split()[1]) / 2**20}


def stack_times(path: Path) -> Iterator[tuple[str, float]]:
    """Seconds to open, then to read all images (µs an image where there are 10⁶) in either order."""
    table = read_star(path)
    start = time.process_time()
    particles = particles_from_table(table)
    yield "open", time.process_time() - start
    assert isinstance(particles.images, LazyImages)
    unit = 1e6 / len(particles) if len(particles) == 1_000_000 else 1.0
    shuffled = torch.randperm(len(particles), generator=torch.Generator().manual_seed(1))
    for order, rows in (("ordered", torch.arange(len(particles))), ("random", shuffled)):
        chosen = particles.select(rows)
        start, files = time.process_time(), 0
        for _ in loaded_batches(chosen, BATCH):
            files = max(files, len(list(Path("/proc/self/fd").iterdir())))
        yield order, unit * (time.process_time() - start)
    yield "open_files", files


def table_times(path: Path) -> Iterator[tuple[str, float]]:
    start = time.process_time()
    table = read_star(path)
    yield "read", time.process_time() - start
    start = time.process_time()
    half = select_rows(table, torch.arange(0, len(table), 2))
    yield "select", time.process_time() - start
    start = time.process_time()
    write_star(half, path.with_name("half.star"))
    yield "write", time.process_time() - start


if __name__ == "__main__":
    main()
