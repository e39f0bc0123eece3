"""Simulated particles in a folder."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from cryoforum.commands.structures import load_structure
from cryoforum.commands.workflow import Bar, notices_to
from cryoforum.config import SimulationConfig
from cryoforum.dataset.particles import all_rows
from cryoforum.imaging.simulation import simulate
from cryoforum.io.mrc.stacks import write_stack
from cryoforum.io.particle_files import write_particle_file
from cryoforum.io.relion.particles import (
    table_from_particles,
)
from cryoforum.reconstruction.half_sets import drawn_half_sets
from cryoforum.storage.files import refuse_to_overwrite


def simulate_to_folder(
    structure: str,
    box: int,
    pixel_size: float,
    config: SimulationConfig,
    out: Path,
    bar: Bar,
    overwrite: bool,
    tell: Callable[[str], None] = lambda line: None,
    map_pixel_size: float | None = None,
) -> Path:
    """Write particles.star, with half sets, and particles.mrcs into ``out``; the path of the STAR file."""
    out = Path(out)
    for name in ("particles.star", "particles.mrcs"):
        refuse_to_overwrite(out / name, overwrite)
    with notices_to(tell):
        volume = load_structure(structure, box, pixel_size, map_pixel_size)
    particles = simulate(volume, config)
    out.mkdir(parents=True, exist_ok=True)
    advance = bar("simulating", len(particles))

    def batches() -> Iterator[Tensor]:
        for rows in all_rows(len(particles), 128):
            yield particles.images[rows]
            advance(len(rows))

    write_stack(out / "particles.mrcs", batches(), len(particles), box, pixel_size)
    halved = replace(particles, half_sets=drawn_half_sets(len(particles), config.seed))
    write_particle_file(table_from_particles(halved, particles.names), out / "particles.star")
    return out / "particles.star"
