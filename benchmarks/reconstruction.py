"""Reconstruction beside relion_reconstruct: time, memory, and how far the maps agree with the truth.

    python benchmarks/reconstruction.py [--n 1000] [--box 128 --box 256]

Prints Markdown. Simulated particles of the package's 70S ribosome with their true poses, SNR 0.1; whole
processes on either side. cryo-forum makes both half maps, map and FSC in one pass; relion_reconstruct
makes the map alone, with its iterative gridding correction.
"""

import argparse
import tempfile
from pathlib import Path

from posing_speed import COMMAND, run

from cryoforum.commands.simulate import SimulateRequest, simulate
from cryoforum.dataset.volumes import Volume
from cryoforum.imaging.masks import soft_mask
from cryoforum.io.mrc.maps import read_volume
from cryoforum.molecules.structures import load_structure
from cryoforum.reconstruction.fsc import fourier_shell_correlation, resolution_angstrom
from cryoforum.simulation.config import SimulationConfig

EXTENT_ANGSTROM = 358.4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("--box", type=int, action="append")
    arguments = parser.parse_args()
    labels = ("box", "program", "seconds", "images/s", "peak memory, GB", "FSC 0.5 with the truth at, Å")
    print(f"| {' | '.join(labels)} |\n|{'---|' * len(labels)}", flush=True)
    for box in arguments.box or (128, 256):
        with tempfile.TemporaryDirectory() as name:
            compared(box, arguments.n, Path(name))


def compared(box: int, count: int, folder: Path) -> None:
    """Rows of both programs."""
    pixel_size = EXTENT_ANGSTROM / box
    config = SimulationConfig(count=count, snr=0.1)
    simulate(SimulateRequest(folder, "4v5d", box, pixel_size, config))
    truth = load_structure("4v5d", box, pixel_size)
    relion = ("relion_reconstruct", "--i", "particles.star", "--ctf", "--o", "relion.mrc")
    for program, command, result in (
        (
            "cryoforum reconstruct",
            (COMMAND, "reconstruct", "particles.star", "--out", "ours"),
            "ours/map.mrc",
        ),
        ("relion_reconstruct", relion, "relion.mrc"),
    ):
        seconds, memory = run(command, folder)
        agreement = against_truth(read_volume(folder / result), truth)
        figures = f"{seconds:.1f} | {count / seconds:.0f} | {memory:.2f} | {agreement:.2f}"
        print(f"| {box} | {program} | {figures} |", flush=True)


def against_truth(found: Volume, truth: Volume) -> float:
    mask = soft_mask(truth)
    curve = fourier_shell_correlation(
        Volume(found.voxels * mask, truth.pixel_size_angstrom),
        Volume(truth.voxels * mask, truth.pixel_size_angstrom),
    )
    return resolution_angstrom(curve, len(mask), truth.pixel_size_angstrom, threshold=0.5)


if __name__ == "__main__":
    main()
