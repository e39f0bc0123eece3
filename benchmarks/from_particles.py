"""From particles alone to maps: first maps, refinement, classes, and what comes of noise.

    python benchmarks/from_particles.py STUDY --out DIR [--n N] [--seeds S] [--snr SNR]

Every study runs the commands as a user would and prints a Markdown table. Errors are those that are left
after the turn, move and hand are taken away by which a map made from nothing differs from the truth.

ideal       70S ribosome, SNR 0.1: from particles to half maps, beside those of the true poses
starts      the first map alone, for every seed
realistic   two conformations with all imperfections: two classes, and one
relion      beside relion_refine, from the same map
noise       pure noise from a map of the ribosome, and from one of another molecule
"""

import argparse
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from cryoforum.commands.compare import errors_after_frames, matching_rows
from cryoforum.dataset.columns import CLASS_NUMBER, CRAMER_RAO_BOUND
from cryoforum.dataset.particle_table import ParticleTable, number_column, select_rows
from cryoforum.io.relion.star_files import read_star
from cryoforum.report.inputs import read_json

LOST_RAD, FOUND_RAD = 0.1, 0.3
PARTICLES, POSES, MAP = "particles.star", "predictions.star", Path("map") / "map.mrc"


def main() -> None:
    studies: dict[str, Callable[[argparse.Namespace], None]] = {
        "ideal": ideal,
        "starts": starts,
        "realistic": realistic,
        "relion": beside_relion,
        "noise": noise,
    }
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", choices=studies)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--n", type=int, default=5000)
    parser.add_argument("--snr", type=float, default=0.1)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--structure", default="4v5d")
    parser.add_argument("--symmetry", default="C1")
    parser.add_argument("--box", type=int, default=128)
    parser.add_argument("--pixel-size", type=float, default=2.8)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    studies[arguments.study](arguments)


def ideal(arguments: argparse.Namespace) -> None:
    """From particles to half maps, and what the true poses give."""
    print(
        "| seed | first map | refine | rounds | resolution | of true poses | median error | over the bound |"
    )
    print("|---|---|---|---|---|---|---|---|", flush=True)
    for seed in range(arguments.seeds):
        folder = arguments.out / f"ideal{seed}"
        simulated(folder / "set", arguments, seed)
        first, refined, times = from_nothing(folder, arguments, seed)
        cryoforum("reconstruct", folder / "set" / PARTICLES, "--out", folder / "true", *symmetry(arguments))
        found, truth = read_star(refined / POSES), read_star(folder / "set" / PARTICLES)
        errors = errors_after_frames(found, truth, arguments.symmetry).orientations_rad
        bound = np.deg2rad(np.median(number_column(found, CRAMER_RAO_BOUND)))
        median = float(errors.median())
        reached = rounds(refined), resolution(refined / "map"), resolution(folder / "true")
        row(seed, *map(seconds, times), *reached, f"{median:.4f} rad", f"{median / bound:.2f}")


def starts(arguments: argparse.Namespace) -> None:
    """Whether the first map leads one round of refinement to the right poses."""
    head("seed", "first map", "within 0.3 rad after one round", "right")
    for seed in range(arguments.seeds):
        folder = arguments.out / f"start{seed}"
        simulated(folder / "set", arguments, seed)
        _, refined, times = from_nothing(folder, arguments, seed, "--most-rounds", "1")
        truth = read_star(folder / "set" / PARTICLES)
        errors = errors_after_frames(read_star(refined / POSES), truth, arguments.symmetry).orientations_rad
        share = float((errors < FOUND_RAD).float().mean())
        row(seed, seconds(times[0]), percent(share), "yes" if share >= 0.95 else "no")


def realistic(arguments: argparse.Namespace) -> None:
    """Two conformations, without labels: with two classes, and with one."""
    head("seed", "classes", "first map", "refine", "resolution", "right state", "median errors", "> 0.1 rad")
    for seed in range(arguments.seeds):
        folder = arguments.out / f"realistic{seed}"
        benchmark = [sys.executable, Path(__file__).with_name("realistic.py"), "--out", folder / "set"]
        run(*benchmark, "--n", arguments.n, "--snr", arguments.snr, "--seed", seed, "--only-make")
        truth = read_star(folder / "set" / "truth.star")
        for classes in (2, 1):
            _, refined, times = from_nothing(folder, arguments, seed, "--classes", str(classes))
            found = read_star(refined / POSES)
            errors = errors_after_frames(found, truth).orientations_rad
            places = [refined / "map"] if classes == 1 else sorted((refined / "reconstruction").iterdir())
            right = "–" if classes == 1 else percent(right_share(found, truth))
            reached = ", ".join(map(resolution, places)), right, medians_by_state(errors, found, truth)
            row(seed, classes, *map(seconds, times), *reached, percent(lost_share(errors)))


def beside_relion(arguments: argparse.Namespace) -> None:
    """The same particles and start through relion_refine and refine."""
    folder = arguments.out / "relion"
    simulated(folder / "set", arguments, 0)
    truth = read_star(folder / "set" / PARTICLES)
    start = folder / "start.mrc"
    cryoforum("reconstruct", folder / "set" / PARTICLES, "--out", folder / "true")
    shutil.copy(folder / "true" / "map.mrc", start)
    began = time.monotonic()
    refined = folder / "ours"
    cryoforum("refine", folder / "set" / PARTICLES, "--reference", start, "--out", refined)
    ours = time.monotonic() - began
    (folder / "theirs").mkdir(exist_ok=True)
    began = time.monotonic()
    command = ["relion_refine", "--o", "../theirs/run", "--auto_refine", "--split_random_halves"]
    command += ["--i", PARTICLES, "--ref", "../start.mrc", "--ini_high", "40", "--firstiter_cc", "--ctf"]
    command += ["--particle_diameter", "320", "--flatten_solvent", "--zero_mask", "--oversampling", "1"]
    command += ["--healpix_order", "2", "--auto_local_healpix_order", "4", "--offset_range", "5"]
    command += ["--offset_step", "2", "--sym", "C1", "--low_resol_join_halves", "40", "--norm", "--scale"]
    command += ["--dont_combine_weights_via_disc", "--pool", "3", "--pad", "2", "--j", "2"]
    subprocess.run(command, cwd=folder / "set", check=True, stdout=subprocess.DEVNULL)
    theirs = time.monotonic() - began
    head("program", "time", "median error", "> 0.1 rad")
    for name, took, path in (
        ("refine", ours, refined / POSES),
        ("relion_refine", theirs, folder / "theirs" / "run_data.star"),
    ):
        errors = errors_after_frames(read_star(path), truth).orientations_rad
        row(name, seconds(took), f"{errors.median():.4f} rad", percent(lost_share(errors)))
    print(f"\n{theirs / ours:.0f} times faster")


def noise(arguments: argparse.Namespace) -> None:
    """What a refinement makes of images that do not hold the molecule of its start."""
    head("images", "start", "highest FSC beyond the start", "it says")
    for name, structure, snr in (("pure noise", "4v5d", 1e-9), ("of 6z6u", "6z6u", 0.1)):
        folder = arguments.out / f"noise-{structure}"
        given = argparse.Namespace(**vars(arguments) | {"structure": structure, "snr": snr})
        simulated(folder / "set", given, 0)
        done = cryoforum(
            "refine", folder / "set" / PARTICLES, "--reference", "4v5d", "--out", folder / "refined"
        )
        table = np.genfromtxt(folder / "refined" / "map" / "fsc.csv", delimiter=",", names=True)
        beyond = table["fsc_unmasked"][table["resolution_angstrom"] < 36]
        said = "nothing was found" if "nothing was found" in done else "–"
        row(name, "4v5d", f"{beyond.max():.3f}", said)


def simulated(folder: Path, arguments: argparse.Namespace, seed: int) -> None:
    """An ideal set, made unless it is there."""
    if not (folder / PARTICLES).exists():
        grid = "--box", str(arguments.box), "--pixel-size", str(arguments.pixel_size)
        count = "--n", str(arguments.n), "--snr", str(arguments.snr), "--seed", str(seed)
        cryoforum("simulate", "--structure", arguments.structure, "--out", folder, *grid, *count)


def from_nothing(
    folder: Path, arguments: argparse.Namespace, seed: int, *options: str
) -> tuple[Path, Path, tuple[float, float]]:
    """Folders of the first map and of the refinement, and the seconds that each took."""
    first, refined = folder / "first", folder / "-".join(["refined", *options])
    shared = "--seed", str(seed), "--overwrite", *symmetry(arguments)
    began = time.monotonic()
    cryoforum("initial-model", folder / "set" / PARTICLES, "--out", first, *shared)
    middle = time.monotonic()
    start = "--reference", first / MAP
    cryoforum("refine", folder / "set" / PARTICLES, *start, "--out", refined, *shared, *options)
    return first, refined, (middle - began, time.monotonic() - middle)


def symmetry(arguments: argparse.Namespace) -> tuple[str, str]:
    return "--symmetry", arguments.symmetry


def cryoforum(*arguments: object) -> str:
    """What the command said."""
    return run(sys.executable, "-m", "cryoforum", *arguments)


def run(*command: object) -> str:
    """What the program said; its messages where it fails."""
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return done.stdout


def head(*names: str) -> None:
    row(*names)
    row(*("---" for _ in names))


def row(*cells: object) -> None:
    print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def seconds(value: float) -> str:
    return f"{value:.0f} s"


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def lost_share(errors: torch.Tensor) -> float:
    return float((errors > LOST_RAD).float().mean())


def rounds(folder: Path) -> int:
    return len((folder / "rounds.csv").read_text().splitlines()) - 1


def resolution(folder: Path) -> str:
    return f"{read_json(folder / 'resolution.json')['corrected']:.2f} Å"


def classes_and_states(found: ParticleTable, truth: ParticleTable) -> tuple[np.ndarray, np.ndarray]:
    """The class of each particle and its true state, numbered so that most agree."""
    states = number_column(select_rows(truth, matching_rows(truth, found)), CLASS_NUMBER)
    classes = number_column(found, CLASS_NUMBER)
    assert states is not None and classes is not None
    return (classes if (classes == states).mean() >= 0.5 else 3 - classes), states


def right_share(found: ParticleTable, truth: ParticleTable) -> float:
    """Of the particles in the class that is most of their state."""
    classes, states = classes_and_states(found, truth)
    return float((classes == states).mean())


def medians_by_state(errors: torch.Tensor, found: ParticleTable, truth: ParticleTable) -> str:
    """Median error of all particles of each state, in whatever class they are."""
    states = number_column(select_rows(truth, matching_rows(truth, found)), CLASS_NUMBER)
    assert states is not None
    medians = (errors[torch.from_numpy(states == state)].median() for state in (1, 2))
    return ", ".join(f"{median:.4f}" for median in medians) + " rad"


if __name__ == "__main__":
    main()
