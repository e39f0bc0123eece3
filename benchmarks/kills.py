"""Kill long commands with signal 9 at random moments, and compare with runs left in peace.

python benchmarks/kills.py DIR [--kills 10] [--only predict] [--seed 0] > benchmarks/kills.md
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file

from cryoforum.commands.watch.sums import load_sums
from cryoforum.dataset.particle_table import select_rows, with_columns
from cryoforum.io.mrc.maps import write_volume
from cryoforum.io.relion.star_files import read_star, write_star
from cryoforum.molecules.structures import load_structure
from cryoforum.storage.files import is_leftover

# One thread: sums are added in one order. States often, so that they are resumed.
CHILD = """
import sys
import torch
torch.set_num_threads(1)
from cryoforum.training import loop as training
training.STATE_INTERVAL_SECONDS = 0.3
from cryoforum.commands import initial_model
initial_model.STEPS_A_STATE = 2
from cryoforum.cli import app
app(sys.argv[1:])
"""
SETTINGS = """
[training]
image_passes = 12000
batch_size = 32
grid_nside = 2
grid_count = 2
[network]
widths = [8, 16]
degree = 2
"""
ABOUT = """# Commands killed at random moments

`python benchmarks/kills.py DIR --kills {kills} --seed {seed}`

{count} simulated particles of 32 px, one thread. Each command is killed with signal 9 so long after it wrote
its first file and started again, until it has been killed as often as asked. Then it is left in peace, and
its result compared with that of an undisturbed run.

| command | undisturbed run, s | killed after, s | result | temporary files left |
|---|---|---|---|---|"""
COUNT, FILES = 600, 12


@dataclass(frozen=True)
class Case:
    """A command that writes ``out`` in a folder, and what says in one line how two results differ."""

    name: str
    arguments: Callable[[Path], list[str]]
    out: str
    difference: Callable[[Path, Path], str]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--only", help="one of the commands; several may run at the same time")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    random.seed(options.seed)
    base = options.folder
    base.mkdir(parents=True)
    (base / "child.py").write_text(CHILD)
    (base / "settings.toml").write_text(SETTINGS)
    simulate = [
        "simulate",
        "--n",
        COUNT,
        "--box",
        32,
        "--pixel-size",
        11.2,
        "--snr",
        1,
        "--out",
        base / "set",
    ]
    run(base, [str(argument) for argument in simulate])
    write_volume(load_structure("4v5d", 32, 11.2), base / "set" / "start.mrc")
    run(base, training(base)(base / "model"))
    deliver(base)
    print(ABOUT.format(kills=options.kills, seed=options.seed, count=COUNT))
    for case in cases(base):
        if options.only in (None, case.name):
            print(row(base, case, options.kills), flush=True)


def cases(base: Path) -> list[Case]:
    predict = ["predict", str(base / "model"), str(base / "set" / "particles.star"), "--batch-size", "32"]
    watch = [
        "watch",
        str(base / "live"),
        "--model",
        str(base / "model"),
        "--every",
        "0.2",
        "--until-idle",
        "2",
    ]
    particles = str(base / "set" / "particles.star")
    first = ["initial-model", particles]
    start = str(base / "set" / "start.mrc")
    refine = ["refine", particles, "--reference", start, "--initial-resolution", "60"]
    return [
        Case("train", training(base), "model", difference_of_models),
        Case("predict", lambda out: [*predict, "--out", str(out)], "predicted.star", difference_of_bytes),
        Case("watch", lambda out: [*watch, "--out", str(out)], "live", difference_of_watchers),
        Case("initial-model", lambda out: [*first, "--out", str(out)], "first", difference_of_maps),
        Case("refine", lambda out: [*refine, "--out", str(out)], "refined", difference_of_refinements),
    ]


def training(base: Path) -> Callable[[Path], list[str]]:
    def arguments(out: Path) -> list[str]:
        options = ["--preset", "tiny", "--config", str(base / "settings.toml"), "--out", str(out)]
        going_on = ["--resume"] if (out / "state.pt").exists() else ["--overwrite"]
        return ["train", str(base / "set" / "particles.star"), *options, *going_on]

    return arguments


def deliver(base: Path) -> None:
    """The particles as the files of so many micrographs."""
    table = read_star(base / "set" / "particles.star")
    names = table.particles["rlnImageName"].str.replace("@", f"@{base.absolute()}/set/")
    table = with_columns(table, {"rlnImageName": names.tolist()})
    for number, rows in enumerate(torch.arange(COUNT).chunk(FILES)):
        folder = base / "live" / f"micrograph{number:02d}"
        folder.mkdir(parents=True)
        write_star(select_rows(table, rows), folder / "particles.star")


def row(base: Path, case: Case, kills: int) -> str:
    """A line of the table."""
    peaceful, killed = base / "peaceful" / case.name, base / "killed" / case.name
    for folder in (peaceful, killed):
        folder.mkdir(parents=True)
    running = started(base, case.arguments(peaceful / case.out))
    wait_for_work(running, peaceful)
    start = time.monotonic()
    if running.wait():
        raise RuntimeError(f"{case.name} failed")
    seconds = time.monotonic() - start
    moments: list[float] = []
    while len(moments) < kills:
        running = started(base, case.arguments(killed / case.out))
        wait_for_work(running, killed)
        moment = random.uniform(0, 1.2 * seconds / kills)
        time.sleep(moment)
        running.send_signal(signal.SIGKILL)
        code = running.wait()
        is_through = code == 0 or is_finished(case, killed / case.out)  # all but its last words
        if code == -signal.SIGKILL and not is_through:
            moments.append(moment)
        elif is_through:  # once more from the start
            moments.clear()
            shutil.rmtree(killed)
            killed.mkdir()
        else:
            raise RuntimeError(f"{case.name} failed after {len(moments)} kills")
    run(base, case.arguments(killed / case.out))
    told = case.difference(peaceful / case.out, killed / case.out)
    left = sum(is_leftover(path) for path in killed.rglob("*"))
    when = ", ".join(f"{moment:.1f}" for moment in moments)
    return f"| {case.name} | {seconds:.1f} | {when} | {told} | {left} |"


def is_finished(case: Case, out: Path) -> bool:
    """Whether the result is there as a whole, whatever signal ended the command."""
    if case.name in ("initial-model", "refine"):
        return (out / "map").is_dir() and not list(out.glob(".*-state"))
    return out.is_file()


def started(base: Path, arguments: list[str]) -> subprocess.Popen[bytes]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    log = open(base / "log.txt", "ab")  # noqa: SIM115
    return subprocess.Popen(
        [sys.executable, str(base / "child.py"), *arguments], env=environment, stdout=log, stderr=log
    )


def run(base: Path, arguments: list[str]) -> None:
    if started(base, arguments).wait():
        raise RuntimeError(f"{' '.join(arguments)} failed; see {base / 'log.txt'}")


def wait_for_work(running: subprocess.Popen[bytes], folder: Path) -> None:
    """Until the process has changed a file in ``folder``."""
    begun = time.time()
    while running.poll() is None:
        changes = [path.stat().st_mtime for path in folder.rglob("*") if path.exists()]
        if changes and max(changes) > begun:
            return
        time.sleep(0.01)


def difference_of_models(first: Path, second: Path) -> str:
    weights, others = (load_file(folder / "weights.safetensors") for folder in (first, second))
    largest = max(float((weights[name] - others[name]).abs().max()) for name in weights)
    return "the same weights, bit by bit" if largest == 0 else f"weights differ by up to {largest:.1e}"


def difference_of_bytes(first: Path, second: Path) -> str:
    same = first.read_bytes() == second.read_bytes()
    return "the same file, byte by byte" if same else "another file"


def difference_of_maps(first: Path, second: Path) -> str:
    return difference_of_bytes(first / "map" / "map.mrc", second / "map" / "map.mrc")


def difference_of_refinements(first: Path, second: Path) -> str:
    names = Path("predictions.star"), Path("map") / "half1.mrc", Path("map") / "half2.mrc"
    told = [difference_of_bytes(first / name, second / name) for name in names]
    return "; ".join(f"{name.name}: {what}" for name, what in zip(names, told, strict=True))


def difference_of_watchers(first: Path, second: Path) -> str:
    told = []
    for name in ("all.star", "kept.star"):
        tables = [read_star(folder / name).particles for folder in (first, second)]
        one, other = (table.sort_values("rlnImageName").reset_index(drop=True) for table in tables)
        told.append(f"{name}: {'the same' if one.equals(other) else 'OTHER'} {len(one)} rows")
    found = [load_sums(folder / "sums.npz") for folder in (first, second)]
    sums = [each[0] for each in found if each is not None]
    grids, others = ((*each.data, *each.weight) for each in sums)
    differences = [float((a - b).abs().max() / a.abs().max()) for a, b in zip(grids, others, strict=True)]
    return f"{'; '.join(told)}; sums differ by {max(differences):.1e} of their largest value"


if __name__ == "__main__":
    main()
