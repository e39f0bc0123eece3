"""Faults put into particle files, and what `cryoforum check` says of them.

    python benchmarks/check.py --out DIR [--map MAP.mrc] [--symmetry G] [--count N] [--snr S] [--simulated]

Particles of a map (the 70S ribosome, 128 px, if none is given) are made by `relion_project --ctf --add_noise
--white_noise`, or by cryo-forum with --simulated. Then one fault after the other is put into the STAR file or
the stack, and the command is run. Prints a Markdown table. Needs RELION 3.1 on the PATH.
"""

import argparse
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from relion_made import relion_particles

from cryoforum.commands.check.map_comparison import mirrored
from cryoforum.dataset.particle_table import ParticleTable, number_column, with_columns
from cryoforum.dataset.particles import Particles, all_rows
from cryoforum.dataset.volumes import Volume
from cryoforum.imaging.ctf import ctf_2d
from cryoforum.imaging.fft import phase_shift, to_fourier, to_real
from cryoforum.io.mrc.maps import read_volume, write_volume
from cryoforum.io.mrc.stacks import write_stack
from cryoforum.io.relion.particles import particles_from_table, table_from_particles
from cryoforum.io.relion.star_files import read_star, write_star
from cryoforum.molecules.structures import load_structure
from cryoforum.simulation.config import SimulationConfig
from cryoforum.simulation.ideal import simulate

ORIGINS = ("rlnOriginXAngst", "rlnOriginYAngst")
CTF_OF_PARTICLES = ["rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle", "rlnPhaseShift"]
MAPS = {
    "mirror image given as reference": "mirrored.mrc",
    "map with pixels 6 % too large given as reference": "larger.mrc",
    "none, the map given as reference": "map.mrc",
}
Slices = Callable[[torch.Tensor, Particles, torch.Tensor], torch.Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--map", type=str, default="4v5d")
    parser.add_argument("--box", type=int, default=128)
    parser.add_argument("--pixel-size", type=float, default=2.8)
    parser.add_argument("--symmetry", default="C1")
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--snr", type=float, default=0.1)
    parser.add_argument("--simulated", action="store_true")
    parser.add_argument("--only", default="")
    arguments = parser.parse_args()
    folder = arguments.out.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    known = arguments.map in ("4v5d", "6z6u")
    volume = (
        load_structure(arguments.map, arguments.box, arguments.pixel_size)
        if known
        else read_volume(Path(arguments.map))
    )
    make = simulated_particles if arguments.simulated else relion_particles
    table = make(volume, folder, arguments.count, arguments.snr)
    write_volume(Volume(mirrored(volume.voxels), volume.pixel_size_angstrom), folder / "mirrored.mrc")
    write_volume(Volume(volume.voxels, 1.06 * volume.pixel_size_angstrom), folder / "larger.mrc")
    particles = particles_from_table(table)
    cases: dict[str, Callable[[], Path]] = {"none": lambda: table.path}
    cases |= {name: lambda edit=edit: edited(table, edit) for name, edit in edits(particles, table).items()}
    cases |= {
        name: lambda change=change: restacked(table, particles, change) for name, change in CHANGES.items()
    }
    title = f"fault in {arguments.count} particles, SNR {arguments.snr}"
    print(f"| {title} | outcome | standard errors to the nearest interpretation | wall s | CPU s |")
    print("|---|---|---|---|---|")
    for name, path in cases.items():
        if arguments.only in name:
            report(name, path(), arguments.symmetry, [])
    for name, file in MAPS.items():
        if arguments.only in name:
            report(name, table.path, arguments.symmetry, ["--reference", str(folder / file)])


def edits(particles: Particles, table: ParticleTable) -> dict[str, Callable[[ParticleTable], ParticleTable]]:
    """What is written wrongly in the STAR file."""
    size = particles.pixel_size_angstrom
    psi, tilt, rot = (number_column(table, f"rlnAngle{name}") for name in ("Psi", "Tilt", "Rot"))
    inverse = {"rlnAngleRot": -psi, "rlnAngleTilt": -tilt, "rlnAnglePsi": -rot}
    return {
        "pixels given as Å": lambda table: scaled_origins(table, 1 / size),
        "Å given as pixels": lambda table: scaled_origins(table, size),
        "origins of the opposite sign": lambda table: scaled_origins(table, -1),
        "angles of the inverse rotation": lambda table: with_columns(table, inverse),
        "no CTF columns": without_ctf,
        "pixel size 15 % too large": lambda table: with_pixel_size(table, 1.15 * size),
        "pixel size 4 % too small": lambda table: with_pixel_size(table, 0.96 * size),
        "pixel size and origins 15 % too large": lambda table: scaled_origins(
            with_pixel_size(table, 1.15 * size), 1.15
        ),
    }


CHANGES: Mapping[str, Slices] = {
    "images centred, origins kept": lambda slices, p, rows: phase_shift(
        slices, p.poses[rows].shifts_angstrom / p.pixel_size_angstrom
    ),
    "contrast inverted": lambda slices, p, rows: -slices,
    "images phase-flipped": lambda slices, p, rows: slices * transfer(p, rows).sign(),
    "images multiplied by the CTF": lambda slices, p, rows: slices * transfer(p, rows),
    "images CTF-corrected": lambda slices, p, rows: (
        slices * transfer(p, rows) / (transfer(p, rows).square() + 0.1)
    ),
}


def transfer(particles: Particles, rows: torch.Tensor) -> torch.Tensor:
    return ctf_2d(particles.ctf[rows], particles.box, particles.pixel_size_angstrom)


def scaled_origins(table: ParticleTable, factor: float) -> ParticleTable:
    return with_columns(table, {name: factor * number_column(table, name) for name in ORIGINS})


def without_ctf(table: ParticleTable) -> ParticleTable:
    return replace(table, particles=table.particles.drop(columns=CTF_OF_PARTICLES, errors="ignore"))


def with_pixel_size(table: ParticleTable, size: float) -> ParticleTable:
    return replace(table, optics=table.optics.assign(rlnImagePixelSize=f"{size:.6f}"))


def edited(table: ParticleTable, edit: Callable[[ParticleTable], ParticleTable]) -> Path:
    path = table.path.with_name("faulty.star")
    write_star(edit(table), path)
    return path


def restacked(table: ParticleTable, particles: Particles, change: Slices) -> Path:
    """A file whose images were changed and whose columns were not."""

    def batches():
        for rows in all_rows(len(particles), 128):
            slices = change(to_fourier(particles.images[rows]), particles, rows)
            yield to_real(slices, particles.box)

    stack = table.path.with_name("faulty.mrcs")
    write_stack(stack, batches(), len(particles), particles.box, particles.pixel_size_angstrom)
    names = [f"{row + 1:06d}@faulty.mrcs" for row in range(len(particles))]
    return edited(table, lambda table: with_columns(table, {"rlnImageName": names}))


def simulated_particles(volume: Volume, folder: Path, count: int, snr: float) -> ParticleTable:
    """The same as `relion_particles`, made by cryo-forum."""
    particles = simulate(volume, SimulationConfig(count=count, snr=snr))
    write_volume(volume, folder / "map.mrc")
    write_stack(
        folder / "particles.mrcs",
        (particles.images[rows] for rows in all_rows(count, 128)),
        count,
        particles.box,
        particles.pixel_size_angstrom,
    )
    write_star(table_from_particles(particles, particles.names), folder / "noisy.star")
    return read_star(folder / "noisy.star")


def report(name: str, table: Path, symmetry: str, more: list[str]) -> None:
    """One row: what the command said, and what it cost."""
    code = "from cryoforum.cli import main; main()"
    command = [sys.executable, "-c", code, "check", str(table), "--symmetry", symmetry, *more]
    start, before = time.perf_counter(), os.times()
    done = subprocess.run(
        command, cwd=table.parent, capture_output=True, text=True, env=os.environ | {"COLUMNS": "200"}
    )
    seconds, after = time.perf_counter() - start, os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    lines = done.stdout.splitlines()
    found = [line.removeprefix("Problem: ") for line in lines if line.startswith("Problem: ")]
    undecided = [line for line in lines if line.startswith("cannot tell")]
    deviations = [abs(int(number)) for number in re.findall(r"│ +([+-]\d+) +│", done.stdout)]
    last = lines[-1] if lines else done.stderr
    outcome = ("; ".join(found) or last).replace(f"{table.parent}/", "")
    note = (
        " (" + undecided[0].replace(", hand (needs --reference)", "") + ")"
        if undecided and "hand (" not in undecided[0][:20]
        else ""
    )
    nearest = min(deviations, default=0)
    print(f"| {name} | {outcome}{note} | {nearest} | {seconds:.0f} | {cpu:.0f} |", flush=True)


if __name__ == "__main__":
    main()
