"""Poses of particles as they are: against one map of two states, and against the right map of each.

    python benchmarks/realistic.py --out DIR [--n 4000] [--snr 0.05] [--seed 0]

Makes a `--realistic` set of the 70S ribosome (docs/simulation.md), whose noise-free projections
`relion_project` makes where it is installed, and aligns its particles without a network: against the map of
the first state, against the map of the labels as they are, and the particles of each state against its own
map. Prints a Markdown table of errors against the truth.
"""

import argparse
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from cryoforum.alignment.aligner import align
from cryoforum.commands.simulate import PARTICLES, write_simulated_set
from cryoforum.dataset.images import Images, JoinedImages
from cryoforum.dataset.pose_errors import orientation_errors
from cryoforum.dataset.predictions import Predictions
from cryoforum.dataset.volumes import Volume
from cryoforum.io.mrc.maps import write_volume
from cryoforum.io.particle_files import load_particle_set
from cryoforum.io.relion.particles import table_from_particles
from cryoforum.io.relion.star_files import write_star
from cryoforum.molecules.structures import load_structure
from cryoforum.reconstruction.reference_map import reference_from_map, reference_from_particles
from cryoforum.simulation.config import REALISTIC, SimulationConfig
from cryoforum.simulation.realistic import SimulatedSet, simulate_realistic
from cryoforum.simulation.realistic_images import RealisticImages

LOST_RAD = 0.1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--n", type=int, default=4000)
    parser.add_argument("--snr", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only-make", action="store_true", help="The set alone, without alignments.")
    arguments = parser.parse_args()
    folder = arguments.out.absolute()
    config = SimulationConfig(count=arguments.n, snr=arguments.snr, seed=arguments.seed)
    simulated = simulate_realistic(load_structure("4v5d", 128, 2.8), config, REALISTIC)
    if shutil.which("relion_project"):
        simulated = with_projections_of_relion(simulated, folder / "relion")
    write_simulated_set(simulated, folder, config.seed)
    if arguments.only_make:
        return
    particles = load_particle_set([folder / PARTICLES]).particles
    assert simulated.truth.poses is not None
    truth = simulated.truth.poses.quaternions
    print("| map | particles | median error | mean | above 0.1 rad | expected / found |")
    print("|---|---|---|---|---|---|")
    print_row("of the first state", align(reference_from_map(simulated.maps[0]), particles), truth)
    labelled = reference_from_particles(particles)
    print_row("of all particles by their labels", align(labelled, particles), truth)
    for number, volume in enumerate(simulated.maps, 1):
        own = (simulated.conformation_numbers == number).nonzero().flatten()
        found = align(reference_from_map(volume), particles.select(own))
        print_row(f"of state {number}", found, truth[own])


def with_projections_of_relion(simulated: SimulatedSet, folder: Path) -> SimulatedSet:
    """The same set, the noise-free images of whose particles, but for junk, RELION made."""
    folder.mkdir(parents=True, exist_ok=True)
    images, states = simulated.particles.images, simulated.conformation_numbers
    assert isinstance(images, RealisticImages)
    stacks, row_in_stack = [images.signal], torch.arange(len(states))
    for number, volume in enumerate(simulated.maps, 1):
        own = (states == number).nonzero().flatten()
        row_in_stack[own] = torch.arange(len(own))
        stacks.append(relion_projections(simulated, own, volume, folder / f"state{number}"))
    replaced = replace(images, signal=JoinedImages(tuple(stacks), states, row_in_stack))
    return replace(
        simulated,
        particles=replace(simulated.particles, images=replaced),
        truth=replace(simulated.truth, images=replaced),
    )


def relion_projections(simulated: SimulatedSet, rows: Tensor, volume: Volume, folder: Path) -> Images:
    """RELION's noise-free images of some particles, all of one state, made in ``folder``."""
    folder.mkdir(exist_ok=True)
    write_volume(volume, folder / "map.mrc")
    plan = simulated.truth.select(rows)
    write_star(table_from_particles(plan, plan.names), folder / "plan.star")
    command = ["relion_project", "--i", "map.mrc", "--ang", "plan.star", "--ctf", "--o", "clean"]
    command += ["--angpix", str(volume.pixel_size_angstrom)]
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    return load_particle_set([folder / "clean.star"]).particles.images


def print_row(name: str, found: Predictions, truth: Tensor) -> None:
    errors = orientation_errors(found.posterior.mode, truth)
    assert found.expected_error_rad is not None
    ratio = float(found.expected_error_rad.median() / errors.median())
    lost = float((errors > LOST_RAD).float().mean())
    print(
        f"| {name} | {len(errors)} | {errors.median():.4f} rad | {errors.mean():.4f} rad | "
        f"{100 * lost:.2f} % | {ratio:.2f} |",
        flush=True,
    )


if __name__ == "__main__":
    main()
