"""Checking a particle file: what it says, whether its images bear it out, and what to do."""

import shlex
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from cryoforum.checking.aligning import Comparison, compare_maps
from cryoforum.checking.inventory import inventory, origins_in_pixels
from cryoforum.checking.judging import FEWEST, Judgement, Outcome, judge
from cryoforum.checking.remedies import LEAST_SKEWNESS, Complaint, complaints, complaints_beside
from cryoforum.particles import Particles, Volume
from cryoforum.structures import load_structure
from cryoforum.symmetry import symmetry_group
from cryoforum.workflow import checked_particles, read_joined

SHOWN = 12  # particles in pictures


@dataclass(frozen=True)
class Check:
    """All that is known of a file.

    inventory: (what, what was understood). judgement: None where there were no poses, or too few particles.
    untold: what the images could not tell. conclusion: one line.
    """

    path: Path
    particles: Particles
    inventory: tuple[tuple[str, str], ...]
    judgement: Judgement | None
    complaints: tuple[Complaint, ...]
    untold: tuple[str, ...]
    conclusion: str
    reference: Volume | None = None
    comparison: Comparison | None = None

    @property
    def correction(self) -> str | None:
        """The command that mends all that changing the table can; None where it cannot."""
        flags = {complaint.flags[0]: complaint.flags for complaint in self.complaints if complaint.flags}
        if not flags or not self.path.is_file():  # several files have one path, which is none
            return None
        command = ["cryoforum", "convert", str(self.path), *chain(*flags.values())]
        return shlex.join([*command, "--out", f"corrected{self.path.suffix}"])

    @property
    def shown(self) -> Tensor:
        """Rows of the particles to show, spread over the file."""
        return torch.linspace(0, len(self.particles) - 1, min(SHOWN, len(self.particles))).long()


def check_files(
    paths: Sequence[Path],
    root: Path | None,
    symmetry: str = "C1",
    reference: str | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> Check:
    """Read one or several files as one and ask their images; ValueError where they cannot be read at all."""
    symmetry_group(symmetry)
    star = read_joined(paths, root, tell)
    particles = checked_particles(star, root, tell)
    path = star.path
    rows = tuple(inventory(star, particles, root))
    unjudged = _why_not_judged(particles)
    if unjudged is not None:
        return Check(path, particles, rows, None, (), (), unjudged)
    judgement = judge(particles, symmetry)
    found = complaints(judgement, particles.pixel_size_angstrom, origins_in_pixels(star))
    untold = [v.name for v in judgement.verdicts if v.outcome is Outcome.UNDECIDED]
    if judgement.oriented and abs(judgement.skewness) < LEAST_SKEWNESS:
        untold.append("contrast")
    volume, comparison = None, None
    if reference is None:
        untold.append("hand (needs --reference)")
    elif judgement.oriented:
        own = judgement.volume
        volume = _loaded(reference, len(own.voxels), own.pixel_size_angstrom)
        comparison = compare_maps(own.voxels, volume.voxels)
        size = judgement.reading.pixel_factor * particles.pixel_size_angstrom
        found += complaints_beside(reference, comparison, size)
        if comparison.other_hand is None:
            untold.append("hand")
    conclusion = _conclusion(judgement, found)
    return Check(
        path, particles, rows, judgement, tuple(found), tuple(untold), conclusion, volume, comparison
    )


def _why_not_judged(particles: Particles) -> str | None:
    """The conclusion on a file whose images cannot be asked; None where they can."""
    predictable = "ready to predict, not to train"
    if particles.poses is None:
        return f"{predictable}: there are no poses"
    q = particles.poses.quaternions
    if len(q) > 1 and bool((q == q[0]).all()):
        return f"{predictable}: all orientations are the same, as before a refinement"
    if len(q) < FEWEST:
        return f"cannot tell: {len(q)} particles are too few to judge the file by ({FEWEST} or more)"
    return None


def _loaded(reference: str, box: int, pixel_size: float) -> Volume:
    """A map at the box and pixel size of the particles' own; that it is resampled is no news here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return load_structure(reference, box, pixel_size)


def _conclusion(judgement: Judgement, found: list[Complaint]) -> str:
    if found:
        return "not ready"
    if judgement.oriented is None:
        return "cannot tell: the images are too few or too faint to say whether their orientations fit"
    return "ready"
