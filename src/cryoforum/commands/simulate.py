"""Simulated particles in a folder."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import Tensor

from cryoforum.config import SimulationConfig
from cryoforum.dataset.particles import all_rows
from cryoforum.imaging.simulation import simulate as simulated_particles
from cryoforum.io.mrc.stacks import write_stack
from cryoforum.io.particle_files import write_particle_file
from cryoforum.io.relion.particles import table_from_particles
from cryoforum.molecules.structures import load_structure
from cryoforum.reconstruction.half_sets import drawn_half_sets
from cryoforum.runtime.reporter import SILENT, Reporter
from cryoforum.storage.files import refuse_to_overwrite

PARTICLES, STACK = "particles.star", "particles.mrcs"


@dataclass(frozen=True)
class SimulateRequest:
    """What `cryoforum simulate` is asked for.

    Parameters
    ----------
    out
        Folder for particles.star and particles.mrcs.
    structure
        A shipped molecule, a PDB or mmCIF file, or a map.
    box, pixel_size_angstrom
        Of the images, in pixels and Å.
    config
        How many particles, and of which kind.
    map_pixel_size_angstrom
        Of a map, whatever its header says.
    overwrite
        Replace what is there.
    """

    out: Path
    structure: str = "4v5d"
    box: int = 128
    pixel_size_angstrom: float = 2.8
    config: SimulationConfig = field(default_factory=SimulationConfig)
    map_pixel_size_angstrom: float | None = None
    overwrite: bool = False


def simulate(request: SimulateRequest, reporter: Reporter = SILENT) -> Path:
    """Write particles.star, with true poses and half sets, and particles.mrcs; the path of the STAR file."""
    out, box, pixel_size = Path(request.out), request.box, request.pixel_size_angstrom
    for name in (PARTICLES, STACK):
        refuse_to_overwrite(out / name, request.overwrite)
    volume = load_structure(request.structure, box, pixel_size, request.map_pixel_size_angstrom)
    particles = simulated_particles(volume, request.config)
    out.mkdir(parents=True, exist_ok=True)
    advance = reporter.progress("simulating", len(particles))

    def batches() -> Iterator[Tensor]:
        for rows in all_rows(len(particles), 128):
            yield particles.images[rows]
            advance(len(rows))

    write_stack(out / STACK, batches(), len(particles), box, pixel_size)
    halved = replace(particles, half_sets=drawn_half_sets(particles.names, request.config.seed))
    write_particle_file(table_from_particles(halved, particles.names), out / PARTICLES)
    return out / PARTICLES
