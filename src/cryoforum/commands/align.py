"""Find the poses of particles in files against a given map."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cryoforum.alignment.class_aligner import aligner_of
from cryoforum.alignment.config import AlignmentConfig
from cryoforum.commands.pose_files import PoseOutput, PoseSummary, hash_of_files, write_poses
from cryoforum.commands.reference_maps import ReferenceMap, load_reference_map
from cryoforum.dataset.particle_set import ParticleSet
from cryoforum.dataset.repeats import WITH_SYMMETRY, refuse_expansion
from cryoforum.io.particle_files import check_writable, load_particle_set
from cryoforum.io.scratch import on_scratch
from cryoforum.runtime.reporter import SILENT, Reporter


@dataclass(frozen=True)
class AlignRequest:
    """What `cryoforum align` is asked for.

    Parameters
    ----------
    references
        The map, or one of each class: particles are written in the class that they are likeliest in. Maps and
        images are resampled to the box and pixel size that most images have.
    particles
        Particle files, joined where there are several.
    output
        Where poses go.
    symmetry
        Point group of the maps.
    root
        Folder that image names are looked for in first.
    alignment
        How poses are looked for.
    keep_ramp
        Leave in each image the ramp that a gradient of the ice left; else it is removed first of all.
    """

    references: Sequence[ReferenceMap]
    particles: Sequence[Path]
    output: PoseOutput
    symmetry: str = "C1"
    root: Path | None = None
    alignment: AlignmentConfig = field(default_factory=AlignmentConfig)
    keep_ramp: bool = False


def align(request: AlignRequest, reporter: Reporter = SILENT) -> PoseSummary:
    """Write the poses that the global search and local refinement find; all other columns are kept."""
    output = request.output
    output.check(request.particles)
    particle_set = load_particle_set(request.particles, request.root, keep_ramp=request.keep_ramp)
    companions = particle_set.table.companions
    output.check(companions)
    check_writable(particle_set.table, output.path)
    particles = particle_set.particles
    refuse_expansion(particle_set, "to align", WITH_SYMMETRY)
    references = [load_reference_map(given, particles, request.symmetry) for given in request.references]
    maps = [path for given in request.references for path in given.files]
    inputs = hash_of_files([*request.particles, *companions, *maps])
    made_with = f"{inputs} {request.symmetry} {list(request.references)} {request.alignment}"
    with on_scratch(particles, output.rows(len(particles)), output.scratch, reporter) as near:
        aligner = aligner_of(references, near, config=request.alignment)
        return write_poses(aligner, ParticleSet(particle_set.table, near), output, made_with, reporter)
