"""From particles alone to maps: first maps, refinement, classes, and what comes of noise.

    python benchmarks/from_particles.py STUDY --out DIR [--n N] [--seeds S] [--snr SNR]

Every study runs the commands as a user would and prints a Markdown table. Errors are those that are left
after the turn, move and hand are taken away by which a map made from nothing differs from the truth.

ideal       70S ribosome, SNR 0.1: from particles to half maps, beside those of the true poses
starts      the first map alone, for every seed
realistic   two conformations with all imperfections: two classes, and one
model       one model of both, learned from what refine found, on a quarter of them that it never saw
relion      beside relion_refine (MPI, two halves and a leader), from the same map
noise       pure noise from a map of the ribosome, and images of another molecule

--structure takes what `simulate` takes, and: d2, four subunits of apoferritin about two-fold axes (80 kDa);
part, what lies in an ellipsoid of the ribosome (some 200 kDa).
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from relion_made import against_truth
from tables import head, percent, row, seconds

from cryoforum.commands.compare import errors_after_frames, matching_rows
from cryoforum.dataset.columns import ANGLE_COLUMNS, CLASS_NUMBER, CRAMER_RAO_BOUND, ORIGIN_COLUMNS
from cryoforum.dataset.particle_table import ParticleTable, number_column, select_rows
from cryoforum.geometry.rotations import unitquat_to_rotmat
from cryoforum.io.mrc.maps import read_volume, write_volume
from cryoforum.io.relion.star_files import read_star, write_star
from cryoforum.molecules.potential import Atoms, atoms_to_volume, load_molecule
from cryoforum.molecules.structures import load_structure
from cryoforum.report.inputs import read_json
from cryoforum.study.datasets import d2_complex

LOST_RAD, FOUND_RAD = 0.1, 0.3
OBLIQUE = torch.tensor([0.3, 0.5, 0.1, (1 - 0.35) ** 0.5])
PARTICLES, POSES, MAP = "particles.star", "predictions.star", Path("map") / "map.mrc"


def main() -> None:
    studies: dict[str, Callable[[argparse.Namespace], None]] = {
        "ideal": ideal,
        "starts": starts,
        "realistic": realistic,
        "model": one_model,
        "relion": beside_relion,
        "noise": noise,
    }
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", choices=studies)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--n", type=int, default=5000)
    parser.add_argument("--snr", type=float, default=0.1)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--classes", type=int, nargs="+", default=[2, 1], help="for realistic")
    parser.add_argument("--structure", default="4v5d")
    parser.add_argument("--symmetry", default="C1")
    parser.add_argument("--diameter", help="Å, for initial-model")
    parser.add_argument("--box", type=int, default=128)
    parser.add_argument("--pixel-size", type=float, default=2.8)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    studies[arguments.study](arguments)


def seeds(arguments: argparse.Namespace) -> range:
    return range(arguments.first_seed, arguments.first_seed + arguments.seeds)


def ideal(arguments: argparse.Namespace) -> None:
    """From particles to half maps, and what the true poses give."""
    print(
        "| seed | first map | refine | rounds | resolution | of true poses | median error | over the bound |"
    )
    print("|---|---|---|---|---|---|---|---|", flush=True)
    for seed in seeds(arguments):
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
    for seed in seeds(arguments):
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
    for seed in seeds(arguments):
        folder = arguments.out / f"realistic{seed}"
        benchmark = [sys.executable, Path(__file__).with_name("realistic.py"), "--out", folder / "set"]
        run(*benchmark, "--n", arguments.n, "--snr", arguments.snr, "--seed", seed, "--only-make")
        truth = read_star(folder / "set" / "truth.star")
        for classes in arguments.classes:
            _, refined, times = from_nothing(folder, arguments, seed, "--classes", str(classes))
            found = read_star(refined / POSES)
            errors = errors_after_frames(found, truth).orientations_rad
            places = [refined / "map"] if classes == 1 else sorted((refined / "reconstruction").iterdir())
            right = "–" if classes == 1 else percent(right_share(found, truth))
            reached = ", ".join(map(resolution, places)), right, medians_by_state(errors, found, truth)
            row(seed, classes, *map(seconds, times), *reached, percent(lost_share(errors)))


def one_model(arguments: argparse.Namespace) -> None:
    """One model of both states, against new particles; and the maps of `refine` without a network."""
    head("seed", "by", "right state", "of the smaller one", "median errors", "> 0.1 rad")
    for seed in seeds(arguments):
        folder = arguments.out / f"model{seed}"
        benchmark = [sys.executable, Path(__file__).with_name("realistic.py"), "--out", folder / "set"]
        run(*benchmark, "--n", arguments.n, "--snr", arguments.snr, "--seed", seed, "--only-make")
        everything, old = read_star(folder / "set" / PARTICLES), torch.arange(arguments.n) % 4 < 3
        for name, rows in (("old.star", old), ("new.star", ~old)):
            write_star(select_rows(everything, rows), folder / "set" / name)
        _, refined, _ = from_nothing(folder, arguments, seed, "--classes", "2", particles="old.star")
        written = "--root", folder / "set", "--overwrite"
        cryoforum("train", refined, "--out", folder / "model", "--max-minutes", "4", *written)
        new, truth = folder / "set" / "new.star", read_star(folder / "set" / "truth.star")
        cryoforum("predict", folder / "model", new, "--out", folder / "predicted.star", *written)
        cryoforum("align", refined, new, "--out", folder / "aligned.star", *written)
        for name, path in (("model", "predicted.star"), ("maps alone", "aligned.star")):
            found = read_star(folder / path)
            errors = errors_after_frames(found, truth).orientations_rad
            classes, states = classes_and_states(found, truth)
            smaller = (classes == states)[states == 2].mean()
            shares = percent(right_share(found, truth)), percent(smaller)
            row(seed, name, *shares, medians_by_state(errors, found, truth), percent(lost_share(errors)))


def beside_relion(arguments: argparse.Namespace) -> None:
    """The same particles, without poses, and the same start through relion_refine and refine."""
    folder = arguments.out / "relion"
    simulated(folder / "set", arguments, 0)
    truth = read_star(folder / "set" / PARTICLES)
    poses = [*ANGLE_COLUMNS, *ORIGIN_COLUMNS]
    write_star(
        replace(truth, particles=truth.particles.drop(columns=poses)), folder / "set" / "without_poses.star"
    )
    true_map = load_structure(arguments.structure, arguments.box, arguments.pixel_size)
    start = folder / "start.mrc"
    write_volume(true_map, start)
    began = time.monotonic()
    refined = folder / "ours"
    given = folder / "set" / "without_poses.star"
    cryoforum("refine", given, "--reference", start, "--out", refined, "--overwrite")
    ours = time.monotonic() - began
    (folder / "theirs").mkdir(exist_ok=True)
    began = time.monotonic()
    mpi = ["mpirun", "--allow-run-as-root", "--oversubscribe", "-n", "3", "relion_refine_mpi"]
    command = [*mpi, "--o", "../theirs/run", "--auto_refine", "--split_random_halves"]
    command += ["--i", given.name, "--ref", "../start.mrc", "--ini_high", "40", "--firstiter_cc", "--ctf"]
    command += ["--particle_diameter", "320", "--flatten_solvent", "--zero_mask", "--oversampling", "1"]
    command += ["--healpix_order", "2", "--auto_local_healpix_order", "4", "--offset_range", "5"]
    command += ["--offset_step", "2", "--sym", "C1", "--low_resol_join_halves", "40", "--norm", "--scale"]
    command += ["--dont_combine_weights_via_disc", "--pool", "3", "--pad", "2", "--j", "1"]
    subprocess.run(command, cwd=folder / "set", check=True, stdout=subprocess.DEVNULL)
    theirs = time.monotonic() - began
    head("program", "time", "against the true map", "median error", "> 0.1 rad")
    for name, took, path, volume in (
        ("refine", ours, refined / POSES, refined / MAP),
        ("relion_refine", theirs, folder / "theirs/run_data.star", folder / "theirs/run_class001.mrc"),
    ):
        errors = errors_after_frames(read_star(path), truth).orientations_rad
        reached = f"{against_truth(read_volume(volume), true_map):.2f} Å"
        row(name, seconds(took), reached, f"{errors.median():.4f} rad", percent(lost_share(errors)))
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
        structure = arguments.structure
        if structure in MOLECULES:
            folder.mkdir(parents=True, exist_ok=True)
            volume = atoms_to_volume(MOLECULES[structure](), arguments.box, arguments.pixel_size)
            structure = folder / f"{structure}.mrc"
            write_volume(volume, structure)
        cryoforum("simulate", "--structure", structure, "--out", folder, *grid, *count)


def part_of_ribosome() -> Atoms:
    """What lies in an ellipsoid a third of the radius away from the middle, turned to no axis."""
    whole = load_molecule("4v5d")
    positions = whole.positions_angstrom - whole.positions_angstrom.mean(0)
    turned = (positions - np.array([25.0, 20.0, 15.0])) @ unitquat_to_rotmat(OBLIQUE).numpy()
    inside = ((turned / np.array([63.0, 44.0, 33.0])) ** 2).sum(1) < 1
    kept = positions[inside] - positions[inside].mean(0)
    return Atoms(kept.astype(np.float32), whole.elements[inside], whole.b_factors[inside])


def from_nothing(
    folder: Path, arguments: argparse.Namespace, seed: int, *options: str, particles: str = PARTICLES
) -> tuple[Path, Path, tuple[float, float]]:
    """Folders of the first map and of the refinement, and the seconds that each took."""
    first, refined = folder / "first", folder / "-".join(["refined", *options])
    shared = "--seed", str(seed), "--overwrite", *symmetry(arguments)
    began = time.monotonic()
    diameter = [] if arguments.diameter is None else ["--diameter", arguments.diameter]
    cryoforum("initial-model", folder / "set" / particles, "--out", first, *shared, *diameter)
    middle = time.monotonic()
    start = "--reference", first / MAP
    cryoforum("refine", folder / "set" / particles, *start, "--out", refined, *shared, *options)
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


MOLECULES: dict[str, Callable[[], Atoms]] = {"d2": d2_complex, "part": part_of_ribosome}


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
