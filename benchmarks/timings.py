"""Images a second of every step, each beside a peer where one is installed. Prints a Markdown table.

    python benchmarks/timings.py [--n 500] [--repeats 3]

Medians of several repeats in one process; compare the ratios, not the seconds.
"""

import argparse
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from cryoforum.config import preset
from cryoforum.dataset.split import PAPER_SHARES, split_rows
from cryoforum.io.mrc.maps import write_volume
from cryoforum.io.mrc.stacks import write_stack
from cryoforum.io.relion.particles import particles_from_table, table_from_particles
from cryoforum.io.relion.star_files import read_star, write_star
from cryoforum.molecules.structures import load_structure
from cryoforum.network.predict import predict
from cryoforum.reconstruction.inversion import reconstruct
from cryoforum.simulation.config import SimulationConfig
from cryoforum.simulation.ideal import simulate
from cryoforum.training.loop import train


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    count, repeats = arguments.n, arguments.repeats
    has_relion = shutil.which("relion_project") is not None
    volume = load_structure("4v5d", 128, 2.8)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_volume(volume, folder / "map.mrc")

        def write_simulated() -> None:
            made = simulate(volume, SimulationConfig(count=count))
            batches = (made.images[rows] for rows in torch.arange(count).split(128))
            write_stack(folder / "particles.mrcs", batches, count, 128, 2.8)
            write_star(table_from_particles(made, made.names), folder / "particles.star")

        def relion(*command: str) -> Callable[[], None] | None:
            if not has_relion:
                return None
            return lambda: subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)

        project = ("relion_project", "--i", "map.mrc", "--ang", "particles.star", "--ctf", "--angpix", "2.8")
        noise = ("--add_noise", "--white_noise", "1", "--o", "relion")
        write_simulated()
        particles = particles_from_table(read_star(folder / "particles.star"))
        config = preset("small")
        once = replace(config, training=replace(config.training, image_passes=2048))
        split = split_rows(count, *PAPER_SHARES)
        model = train(particles, once, split)
        rows = [
            ("simulate", count, write_simulated, "relion_project", relion(*project, *noise)),
            ("train (small)", 2048, lambda: train(particles, once, split), "", None),
            ("predict (small)", count, lambda: predict(model, particles), "", None),
            (
                "reconstruct, halves and map",
                count,
                lambda: reconstruct(particles),
                "relion_reconstruct, map alone",
                relion("relion_reconstruct", "--i", "particles.star", "--ctf", "--o", "relion.mrc"),
            ),
        ]
        print("| step | images/s | peer | its images/s | ratio |\n|---|---|---|---|---|")
        for step, images, ours, peer, theirs in rows:
            speed = images / median_seconds(ours, repeats)
            if theirs is None:
                print(f"| {step} | {speed:.0f} | | | |", flush=True)
                continue
            peer_speed = images / median_seconds(theirs, repeats)
            print(
                f"| {step} | {speed:.0f} | {peer} | {peer_speed:.0f} | {speed / peer_speed:.2f} |", flush=True
            )


def median_seconds(action: Callable[[], object], repeats: int) -> float:
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


if __name__ == "__main__":
    main()
