"""The main job on images that RELION made: train, predict, then reconstruct with both programs.

    python benchmarks/relion_made.py --out DIR [--map MAP.mrc] [--max-minutes 6]

`relion_project --ctf --add_noise --white_noise` makes 2512 + 400 particles of a map at SNR 0.1.
cryo-forum trains on the first and predicts the others; both programs reconstruct the training set
from the same STAR file. Prints a Markdown table. Needs RELION 3.1 on the PATH.
"""

import argparse
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import mrcfile
import torch

from cryoforum.config import preset
from cryoforum.dataset.particle_table import ParticleTable, select_rows, with_columns
from cryoforum.dataset.pose_errors import orientation_errors, summarise_errors
from cryoforum.dataset.split import split_rows
from cryoforum.dataset.volumes import Volume
from cryoforum.imaging.masks import soft_mask
from cryoforum.io.mrc.maps import read_volume, write_volume
from cryoforum.io.relion.particles import particles_from_table, table_from_particles
from cryoforum.io.relion.star_files import read_star, write_star
from cryoforum.molecules.structures import load_structure
from cryoforum.network.predict import predict
from cryoforum.reconstruction.fsc import fourier_shell_correlation, fsc_curve, resolution_angstrom
from cryoforum.reconstruction.inversion import reconstruct
from cryoforum.simulation.config import SimulationConfig
from cryoforum.simulation.ideal import simulate
from cryoforum.training.loop import train
from cryoforum.training.options import TrainingOptions

TRAINING_COUNT, TEST_COUNT, SNR = 2512, 400, 0.1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--map", type=Path, help="MRC map; the package's 70S ribosome if not given")
    parser.add_argument("--max-minutes", type=float, default=6.0)
    arguments = parser.parse_args()
    folder = arguments.out.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    volume = read_volume(arguments.map) if arguments.map else load_structure("4v5d", 128, 2.8)
    table = relion_particles(volume, folder, TRAINING_COUNT + TEST_COUNT, SNR)
    everything = particles_from_table(table)
    learning = everything.select(torch.arange(TRAINING_COUNT))
    model = train(
        learning,
        preset("small"),
        split_rows(TRAINING_COUNT, 0.1, 0.0),
        TrainingOptions(max_minutes=arguments.max_minutes),
    )
    test = everything.select(torch.arange(TRAINING_COUNT, len(everything)))
    errors = summarise_errors(orientation_errors(predict(model, test).posterior.mode, test.poses.quaternions))

    halves = with_columns(
        select_rows(table, torch.arange(TRAINING_COUNT)),
        {"rlnRandomSubset": [str(row % 2 + 1) for row in range(TRAINING_COUNT)]},
    )
    write_star(halves, folder / "training.star")
    ours_seconds, ours, resolution = our_reconstruction(folder)
    relion_seconds, relion = relion_reconstruction(folder, volume.pixel_size_angstrom)
    agreement = fourier_shell_correlation(*masked(ours, relion))
    shell = int(ours.voxels.shape[0] * ours.pixel_size_angstrom / resolution)
    print("| quantity | value |\n|---|---|")
    print(f"| map | {arguments.map.name if arguments.map else '4v5d, 128 px, 2.8 Å'} |")
    print(f"| training images shown | {model.log[-1]['images']:.0f} on {model.compute} |")
    print(f"| test median / mean error | {errors.median_rad:.4f} / {errors.mean_rad:.4f} rad |")
    print(f"| above 0.3 rad | {100 * errors.share_above_0_3_rad:.2f} % of {errors.count} |")
    print(f"| half-map resolution, masked | {resolution:.2f} Å |")
    print(f"| smallest FSC between the programs' maps up to it | {agreement[1 : shell + 1].min():.4f} |")
    print(f"| resolution of ours against the true map, FSC 0.5 | {against_truth(ours, volume):.2f} Å |")
    print(f"| resolution of RELION's against the true map | {against_truth(relion, volume):.2f} Å |")
    print(f"| reconstruction, both halves and map: cryo-forum | {ours_seconds:.1f} s |")
    print(f"| three runs of relion_reconstruct for the same | {relion_seconds:.1f} s |")


def relion_particles(volume: Volume, folder: Path, count: int, snr: float) -> ParticleTable:
    """RELION's noisy projections of ``volume``: noisy.star in ``folder``, with map.mrc beside it."""
    config = SimulationConfig(count=count)
    plan = simulate(volume, config)
    write_volume(volume, folder / "map.mrc")
    write_star(table_from_particles(plan, plan.names), folder / "plan.star")
    few = replace(config, count=100)
    few_plan = simulate(volume, few)
    write_star(table_from_particles(few_plan, few_plan.names), folder / "few.star")
    project = ["relion_project", "--i", "map.mrc", "--ctf", "--angpix", str(volume.pixel_size_angstrom)]
    run([*project, "--ang", "few.star", "--o", "clean"], folder)
    deviation = (mrcfile.read(folder / "clean.mrcs").var(axis=(1, 2)).mean() / snr) ** 0.5
    noise = ["--add_noise", "--white_noise", f"{deviation:.6g}"]
    run([*project, "--ang", "plan.star", "--o", "noisy", *noise], folder)
    return read_star(folder / "noisy.star")


def our_reconstruction(folder: Path) -> tuple[float, Volume, float]:
    start = time.perf_counter()
    maps = reconstruct(particles_from_table(read_star(folder / "training.star")))
    seconds = time.perf_counter() - start
    return seconds, maps.full, fsc_curve(maps).masked_resolution_angstrom


def relion_reconstruction(folder: Path, pixel_size: float) -> tuple[float, Volume]:
    command = ["relion_reconstruct", "--i", "training.star", "--ctf", "--angpix", str(pixel_size)]
    start = time.perf_counter()
    for name, subset in (("relion_half1", "1"), ("relion_half2", "2"), ("relion", "-1")):
        run([*command, "--o", f"{name}.mrc", "--subset", subset], folder)
    return time.perf_counter() - start, read_volume(folder / "relion.mrc")


def masked(*volumes: Volume) -> list[Volume]:
    mask = soft_mask(volumes[0])
    return [Volume(volume.voxels * mask, volume.pixel_size_angstrom) for volume in volumes]


def against_truth(found: Volume, truth: Volume) -> float:
    curve = fourier_shell_correlation(*masked(found, truth))
    return resolution_angstrom(curve, truth.voxels.shape[0], truth.pixel_size_angstrom, threshold=0.5)


def run(command: list[str], folder: Path) -> None:
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
