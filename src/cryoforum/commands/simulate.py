"""Simulated particles in a folder."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import Tensor

from cryoforum.config import LARGEST_BOX
from cryoforum.dataset.columns import CLASS_NUMBER, JUNK_KIND, MICROGRAPH_NAME
from cryoforum.dataset.particle_table import ParticleTable, with_columns
from cryoforum.dataset.particles import Particles, all_rows
from cryoforum.dataset.volumes import Volume
from cryoforum.errors import InputError, require
from cryoforum.io.mrc.maps import write_volume
from cryoforum.io.mrc.stacks import write_stack
from cryoforum.io.particle_files import write_particle_file
from cryoforum.io.relion.particles import table_from_particles
from cryoforum.molecules.potential import MOLECULES
from cryoforum.molecules.structures import load_structure
from cryoforum.reconstruction.half_sets import drawn_half_sets
from cryoforum.runtime.reporter import SILENT, Reporter
from cryoforum.simulation.config import Imperfections, SimulationConfig
from cryoforum.simulation.ideal import simulate as simulate_ideal
from cryoforum.simulation.realistic import SimulatedSet, simulate_realistic
from cryoforum.storage.files import refuse_to_overwrite
from cryoforum.storage.locks import taken

PARTICLES, STACK, TRUTH = "particles.star", "particles.mrcs", "truth.star"
IDEAL = Imperfections()
MOST_PARTICLES = 100_000_000


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
    imperfections
        What images and labels have that ideal ones lack.
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
    imperfections: Imperfections = IDEAL
    map_pixel_size_angstrom: float | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        require(2 <= self.box <= LARGEST_BOX, f"--box of 2 to {LARGEST_BOX} pixels", self.box)
        count = self.config.count
        require(count <= MOST_PARTICLES, f"at most {MOST_PARTICLES} particles in one set", count)


def simulate(request: SimulateRequest, reporter: Reporter = SILENT) -> Path:
    """Write particles.star, with poses and half sets, and particles.mrcs; the path of the STAR file.

    Imperfect particles have a truth.star and maps of the conformations beside; see `write_simulated_set`.
    """
    out, imperfections = Path(request.out), request.imperfections
    names = [PARTICLES, STACK]
    if imperfections != IDEAL:
        names += [TRUTH, *_map_names(len(imperfections.conformation_shares))]
    for name in names:
        refuse_to_overwrite(out / name, request.overwrite)
    with taken(out):
        return _simulate_into(out, names, request, reporter)


def _simulate_into(out: Path, names: list[str], request: SimulateRequest, reporter: Reporter) -> Path:
    """Make the files ``names`` in a folder that this process holds."""
    config, imperfections = request.config, request.imperfections
    for name in names:
        refuse_to_overwrite(out / name, request.overwrite)  # again: somebody may just have written them
    volume = _structure(request, request.structure, request.map_pixel_size_angstrom)
    if imperfections != IDEAL:
        simulated = simulate_realistic(volume, config, imperfections, _other_molecule(request))
        return write_simulated_set(simulated, out, config.seed, reporter)
    particles = simulate_ideal(volume, config)
    _write_stack(particles, out / STACK, reporter)
    write_particle_file(_table(particles, config.seed), out / PARTICLES)
    return out / PARTICLES


def write_simulated_set(simulated: SimulatedSet, out: Path, seed: int, reporter: Reporter = SILENT) -> Path:
    """Write imperfect particles and the truth about them into a folder; the path of particles.star.

    truth.star has the same images with true poses, true defocus, the conformation (rlnClassNumber, 0 for
    junk) and the kind of junk; conformation1.mrc, … are the maps. ``seed`` draws the half sets.
    """
    out.mkdir(parents=True, exist_ok=True)
    _write_stack(simulated.particles, out / STACK, reporter)
    for name, conformation in zip(_map_names(len(simulated.maps)), simulated.maps, strict=True):
        write_volume(conformation, out / name)
    micrographs = {MICROGRAPH_NAME: simulated.micrographs}
    known = {CLASS_NUMBER: simulated.conformation_numbers, JUNK_KIND: simulated.junk_kinds}
    write_particle_file(with_columns(_table(simulated.truth, seed), micrographs | known), out / TRUTH)
    write_particle_file(with_columns(_table(simulated.particles, seed), micrographs), out / PARTICLES)
    return out / PARTICLES


def _map_names(count: int) -> list[str]:
    return [f"conformation{number + 1}.mrc" for number in range(count)]


def _structure(request: SimulateRequest, name: str, map_pixel_size_angstrom: float | None = None) -> Volume:
    return load_structure(name, request.box, request.pixel_size_angstrom, map_pixel_size_angstrom)


def _other_molecule(request: SimulateRequest) -> Volume | None:
    """The first shipped molecule that is not the one asked for, where junk is to show one."""
    imperfections = request.imperfections
    if not imperfections.junk_share or "other_molecule" not in imperfections.junk_kinds:
        return None
    name = next(name for name in MOLECULES if name != request.structure.lower())
    try:
        return _structure(request, name)
    except InputError as error:
        raise InputError(
            f"for junk of kind other_molecule: {error}; or choose other kinds of junk"
        ) from error


def _write_stack(particles: Particles, path: Path, reporter: Reporter) -> None:
    advance = reporter.progress("simulating", len(particles))

    def batches() -> Iterator[Tensor]:
        for rows in all_rows(len(particles), 128):
            yield particles.images[rows]
            advance(len(rows))

    write_stack(path, batches(), len(particles), particles.box, particles.pixel_size_angstrom)


def _table(particles: Particles, seed: int) -> ParticleTable:
    halved = replace(particles, half_sets=drawn_half_sets(particles.names, seed))
    return table_from_particles(halved, particles.names)
