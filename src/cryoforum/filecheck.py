"""Checking a particle file: what it says, whether its images bear it out, and what to do."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from cryoforum.checking import (
    FEWEST,
    LEAST_SKEWNESS,
    Complaint,
    Judgement,
    Outcome,
    complaints,
    judge,
)
from cryoforum.inventory import inventory, origins_in_pixels
from cryoforum.io.formats import read_particle_file
from cryoforum.particles import Particles
from cryoforum.symmetry import symmetry_group
from cryoforum.workflow import checked_particles

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

    @property
    def shown(self) -> Tensor:
        """Rows of the particles to show, spread over the file."""
        return torch.linspace(0, len(self.particles) - 1, min(SHOWN, len(self.particles))).long()


def check_file(path: Path, root: Path | None, symmetry: str = "C1", reference: str | None = None) -> Check:
    """Read a file and ask its images; ValueError where it cannot be read at all."""
    symmetry_group(symmetry)
    star = read_particle_file(path)
    particles = checked_particles(star, root)
    rows = tuple(inventory(star, particles, root))
    if particles.poses is None:
        return Check(path, particles, rows, None, (), (), "ready to predict, not to train: there are no poses")
    q = particles.poses.quaternions
    if len(q) > 1 and bool((q == q[0]).all()):
        one = "ready to predict, not to train: all orientations are the same, as before a refinement"
        return Check(path, particles, rows, None, (), (), one)
    if len(particles) < FEWEST:
        few = f"cannot tell: {len(particles)} particles are too few to judge the file by ({FEWEST} or more)"
        return Check(path, particles, rows, None, (), (), few)
    judgement = judge(particles, symmetry)
    found = complaints(judgement, particles.pixel_size_angstrom, origins_in_pixels(star))
    untold = [v.name for v in judgement.verdicts if v.outcome is Outcome.UNDECIDED]
    if judgement.oriented and abs(judgement.skewness) < LEAST_SKEWNESS:
        untold.append("contrast")
    if reference is None:
        untold.append("hand (needs --reference)")
    return Check(path, particles, rows, judgement, tuple(found), tuple(untold), _conclusion(judgement, found))


def _conclusion(judgement: Judgement, found: list[Complaint]) -> str:
    if found:
        return "not ready"
    if judgement.oriented is None:
        return "cannot tell: the images are too few or too faint to say whether their orientations fit"
    return "ready"
