"""Checking a particle file: its columns, whether its images agree with them, its problems and their fixes."""

import logging
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from cryoforum.commands.check.columns import set_problems, unit_problems
from cryoforum.commands.check.findings import Findings, Outcome, TooFewParticles, find_interpretation
from cryoforum.commands.check.inventory import inventory, origins_in_pixels, table_alone
from cryoforum.commands.check.map_comparison import Comparison, compare_maps
from cryoforum.commands.check.problems import (
    LEAST_SKEWNESS,
    Problem,
    fixing_flags,
    problems,
    problems_beside,
    problems_of_repeats,
)
from cryoforum.commands.reference_maps import ReferenceMap
from cryoforum.dataset.particle_table import ParticleTable
from cryoforum.dataset.particles import Particles
from cryoforum.dataset.volumes import Volume
from cryoforum.errors import InputError
from cryoforum.geometry.point_groups import symmetry_group
from cryoforum.io.join import joined
from cryoforum.io.particle_files import particle_set_of, read_files
from cryoforum.molecules.structures import check_structure, load_structure

logger = logging.getLogger(__name__)

SHOWN = 12  # particles in pictures
NOT_READY = "not ready"


@dataclass(frozen=True)
class Check:
    """The result for one file.

    Attributes
    ----------
    inventory
        (property, value) of the file as it was read.
    conclusion
        One line: ready, not ready, or cannot tell and why.
    findings
        None where there were no poses, or too few particles to judge by.
    problems
        Each with its fix.
    undecided
        Properties that the images could not decide.
    correction
        The command that corrects the columns; None where no column can be corrected.
    reference
        The user's map, at the box and pixel size of the particles' own.
    comparison
        The particles' own map compared with the reference.
    """

    path: Path
    particles: Particles
    inventory: tuple[tuple[str, str], ...]
    conclusion: str
    findings: Findings | None = None
    problems: tuple[Problem, ...] = ()
    undecided: tuple[str, ...] = ()
    correction: str | None = None
    reference: Volume | None = None
    comparison: Comparison | None = None

    @property
    def shown(self) -> Tensor:
        """(k,) rows of the particles to show, spread over the file."""
        return torch.linspace(0, len(self.particles) - 1, min(SHOWN, len(self.particles))).long()


def check_files(
    paths: Sequence[Path],
    root: Path | None,
    symmetry: str = "C1",
    reference: ReferenceMap | None = None,
) -> Check:
    """Read one or several particle files as one, and compare them with their images.

    Parameters
    ----------
    paths
        .star or .cs files.
    root
        Folder that image names are relative to.
    symmetry
        Point group of the molecule.
    reference
        Decides the hand, and the pixel size of files without CTF parameters; its resolution is not asked for.

    Raises
    ------
    InputError
        Where the files or their images cannot be read.
    """
    symmetry_group(symmetry)
    if reference is not None:
        check_structure(reference.spec, reference.pixel_size_angstrom)
    table = joined(read_files(paths), root)
    try:
        particles = particle_set_of(table, root).particles
    except InputError:
        logger.info(f"{table.path} has {table_alone(table)}")
        raise
    conclusion, undecided = _why_not_checked(particles), () if reference is None else ("hand",)
    units, of_the_set = unit_problems(table, particles), set_problems(table, particles)
    unchecked = Check(
        table.path,
        particles,
        tuple(inventory(table, particles)),
        NOT_READY if units or of_the_set else conclusion or "",
        problems=(*units, *of_the_set),
        undecided=undecided,
    )
    if units:
        return replace(unchecked, undecided=("whether the images agree, before the units do",))
    if conclusion is not None:
        return unchecked
    try:
        findings = find_interpretation(particles, symmetry)
    except TooFewParticles as error:
        return replace(unchecked, conclusion=unchecked.conclusion or f"cannot tell: {error}")
    return _judged(unchecked, findings, table, root, reference)


def _judged(
    unchecked: Check,
    findings: Findings,
    table: ParticleTable,
    root: Path | None,
    reference: ReferenceMap | None,
) -> Check:
    """The check with its findings and problems, and a comparison with the reference."""
    size, in_pixels = unchecked.particles.pixel_size_angstrom, origins_in_pixels(table)
    ctf = unchecked.particles.ctf
    is_overfocus = ctf is not None and float(ctf.defocus_u_angstrom.median()) < 0
    found = [
        *unchecked.problems,
        *problems_of_repeats(unchecked.particles),
        *problems(findings, size, in_pixels, is_overfocus),
    ]
    undecided = [one.name for one in findings.alternatives if one.outcome is Outcome.UNDECIDED]
    if findings.oriented and abs(findings.skewness) < LEAST_SKEWNESS:
        undecided.append("contrast")
    volume, comparison = None, None
    if reference is not None and findings.oriented:
        own = findings.volume
        volume = load_structure(
            reference.spec, len(own.voxels), own.pixel_size_angstrom, reference.pixel_size_angstrom
        )
        comparison = compare_maps(own.voxels, volume.voxels)
        found += problems_beside(reference.spec, comparison, findings.interpretation.pixel_factor * size)
    if comparison is None or comparison.other_hand is None:
        undecided.append("hand (needs --reference)" if reference is None else "hand")
    flags = fixing_flags(findings.interpretation, in_pixels, comparison)
    return replace(
        unchecked,
        conclusion=_conclusion(findings, found),
        findings=findings,
        problems=tuple(found),
        undecided=tuple(undecided),
        correction=_command(table, root, flags),
        reference=volume,
        comparison=comparison,
    )


def _command(table: ParticleTable, root: Path | None, flags: Sequence[str]) -> str | None:
    """The command that writes a corrected file beside the checked one, under a name that is free."""
    if not flags or not table.path.is_file():  # the path of several joined files is no file
        return None
    out, number = table.path.with_name(f"corrected{table.path.suffix}"), 2
    while out.exists():
        out, number = table.path.with_name(f"corrected_{number}{table.path.suffix}"), number + 1
    where = [] if root is None else ["--root", root]
    command = ["cryoforum", "convert", table.path, *table.companions, *flags, *where, "--out", out]
    return shlex.join(map(str, command))


def _why_not_checked(particles: Particles) -> str | None:
    """The conclusion on a file without poses to judge; None where there are some."""
    predictable = "ready to predict, not to train"
    if particles.poses is None:
        return f"{predictable}: there are no poses"
    q = particles.poses.quaternions
    if len(q) > 1 and bool((q == q[0]).all()):
        return f"{predictable}: all orientations are the same, as before a refinement"
    return None


def _conclusion(findings: Findings, found: list[Problem]) -> str:
    if found:
        return NOT_READY
    if findings.oriented is None:
        return "cannot tell: the images are too few or too faint to say whether their orientations fit"
    return "ready"
