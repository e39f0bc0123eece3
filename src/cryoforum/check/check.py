"""Checking a particle file: what it says, whether its images bear it out, and what to do."""

import shlex
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from cryoforum.check.fixes import LEAST_SKEWNESS, Complaint, complaints, complaints_beside, mending_flags
from cryoforum.check.inventory import inventory, origins_in_pixels, table_alone
from cryoforum.check.judging import Judgement, Outcome, TooLittle, judge
from cryoforum.check.map_comparison import Comparison, compare_maps
from cryoforum.commands.structures import check_structure, load_structure
from cryoforum.commands.workflow import checked_particles, read_joined
from cryoforum.dataset.particle_table import ParticleStar
from cryoforum.dataset.particles import Particles
from cryoforum.dataset.volumes import Volume
from cryoforum.geometry.point_groups import symmetry_group

SHOWN = 12  # particles in pictures


@dataclass(frozen=True)
class Reference:
    """A map of the molecule that the user gave; pixel_size_angstrom: whatever its header says."""

    spec: str
    pixel_size_angstrom: float | None = None


@dataclass(frozen=True)
class Check:
    """All that is known of a file.

    inventory: (what, what was understood). conclusion: one line. judgement: None where there were no poses,
    or too little to judge by. untold: what the images could not tell. correction: the command that mends all
    that changing the table can; None where it cannot.
    """

    path: Path
    particles: Particles
    inventory: tuple[tuple[str, str], ...]
    conclusion: str
    judgement: Judgement | None = None
    complaints: tuple[Complaint, ...] = ()
    untold: tuple[str, ...] = ()
    correction: str | None = None
    reference: Volume | None = None
    comparison: Comparison | None = None

    @property
    def shown(self) -> Tensor:
        """Rows of the particles to show, spread over the file."""
        return torch.linspace(0, len(self.particles) - 1, min(SHOWN, len(self.particles))).long()


def check_files(
    paths: Sequence[Path],
    root: Path | None,
    symmetry: str = "C1",
    reference: Reference | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> Check:
    """Read one or several files as one and ask their images; ValueError where they cannot be read at all."""
    symmetry_group(symmetry)
    if reference is not None:
        check_structure(reference.spec, reference.pixel_size_angstrom)
    star = read_joined(paths, root, tell)
    try:
        particles = checked_particles(star, root, tell)
    except ValueError:
        tell(f"the table by itself says: {table_alone(star)}")
        raise
    conclusion, untold = _why_not_judged(particles), () if reference is None else ("hand",)
    unjudged = Check(star.path, particles, tuple(inventory(star, particles)), conclusion or "", untold=untold)
    if conclusion is not None:
        return unjudged
    try:
        judgement = judge(particles, symmetry)
    except TooLittle as error:
        return replace(unjudged, conclusion=f"cannot tell: {error}")
    return _judged(unjudged, judgement, star, root, reference)


def _judged(
    unjudged: Check, judgement: Judgement, star: ParticleStar, root: Path | None, reference: Reference | None
) -> Check:
    """The check with what its images say, beside a reference, too."""
    size, in_pixels = unjudged.particles.pixel_size_angstrom, origins_in_pixels(star)
    found = complaints(judgement, size, in_pixels)
    untold = [v.name for v in judgement.verdicts if v.outcome is Outcome.UNDECIDED]
    if judgement.oriented and abs(judgement.skewness) < LEAST_SKEWNESS:
        untold.append("contrast")
    volume, comparison = None, None
    if reference is not None and judgement.oriented:
        volume = _loaded(reference, judgement.volume)
        comparison = compare_maps(judgement.volume.voxels, volume.voxels)
        found += complaints_beside(reference.spec, comparison, judgement.reading.pixel_factor * size)
    if comparison is None or comparison.other_hand is None:
        untold.append("hand (needs --reference)" if reference is None else "hand")
    flags = mending_flags(judgement.reading, in_pixels, comparison)
    return replace(
        unjudged,
        conclusion=_conclusion(judgement, found),
        judgement=judgement,
        complaints=tuple(found),
        untold=tuple(untold),
        correction=_command(star, root, flags),
        reference=volume,
        comparison=comparison,
    )


def _command(star: ParticleStar, root: Path | None, flags: Sequence[str]) -> str | None:
    """The command that writes a corrected file beside the checked one, under a name that is free."""
    if not flags or not star.path.is_file():  # several files have one path, which is none
        return None
    out, number = star.path.with_name(f"corrected{star.path.suffix}"), 2
    while out.exists():
        out, number = star.path.with_name(f"corrected_{number}{star.path.suffix}"), number + 1
    where = [] if root is None else ["--root", root]
    command = ["cryoforum", "convert", star.path, *star.companions, *flags, *where, "--out", out]
    return shlex.join(map(str, command))


def _why_not_judged(particles: Particles) -> str | None:
    """The conclusion on a file whose images cannot be asked; None where they can."""
    predictable = "ready to predict, not to train"
    if particles.poses is None:
        return f"{predictable}: there are no poses"
    q = particles.poses.quaternions
    if len(q) > 1 and bool((q == q[0]).all()):
        return f"{predictable}: all orientations are the same, as before a refinement"
    return None


def _loaded(reference: Reference, own: Volume) -> Volume:
    """A map at the box and pixel size of the particles' own; that it is resampled is no news here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        box, size = len(own.voxels), own.pixel_size_angstrom
        return load_structure(reference.spec, box, size, reference.pixel_size_angstrom)


def _conclusion(judgement: Judgement, found: list[Complaint]) -> str:
    if found:
        return "not ready"
    if judgement.oriented is None:
        return "cannot tell: the images are too few or too faint to say whether their orientations fit"
    return "ready"
