"""Problems that the columns of a particle file show by themselves, before any image is looked at.

The images would be explained by something else, whose remedy does harm: where the defocus is in nanometres,
images without a CTF fit best.
"""

import math

import numpy as np
import torch

from cryoforum.commands.check.problems import Problem
from cryoforum.dataset.columns import ANGLE_COLUMNS, CLASS_NUMBER, CLASS_PROBABILITY
from cryoforum.dataset.ctf_parameters import CtfParameters
from cryoforum.dataset.particle_table import ParticleTable, missing_columns, number_column, number_columns
from cryoforum.dataset.particles import Particles

FEWEST = 20  # values, of which not one is beyond a full turn in radians
LARGEST_MEDIAN_NM, LARGEST_MOST_NM = (
    3000.0,
    3500.0,
)  # of defocus in nm; in Å no particle is seen without a plate
LEAST_SPREAD = 1.5  # of angles in radians that fill a half turn
LARGEST_PIXEL_NM = 2.0  # of images of particles, which would be 20 Å
NARROWEST_BOX = 50.0  # Å: no molecule with the border that images need is narrower
SMALLEST_HALF = 0.05  # of all particles
CLASSES_SHOWN = 5
_TURN = 2 * math.pi * 1.0001
_DEGREES = "57.29578 (180 / π)"


def unit_problems(table: ParticleTable, particles: Particles) -> list[Problem]:
    """List numbers that can be, but hardly are in the unit of their column."""
    found = [*_about_angles(table)]
    width = particles.box * particles.pixel_size_angstrom
    if width < NARROWEST_BOX and particles.pixel_size_angstrom < LARGEST_PIXEL_NM:
        found.append(
            Problem(
                f"the images are {width:.0f} Å wide ({particles.box} px of "
                f"{particles.pixel_size_angstrom:.4g} Å), too narrow for a particle: the pixel size seems to "
                "be in nm",
                "multiply the pixel size by 10: cryoforum convert --scale-pixel-size 10",
            )
        )
    return found if particles.ctf is None else [*found, *_about_ctf(particles.ctf)]


def set_problems(table: ParticleTable, particles: Particles) -> list[Problem]:
    """List why particles with poses are no set of one map, or no two half sets."""
    if particles.poses is None:
        return []
    found = []
    classes = number_column(table, CLASS_NUMBER)
    numbers, counts = (
        (np.zeros(1), np.zeros(1)) if classes is None else np.unique(classes, return_counts=True)
    )
    if len(numbers) > 1 and missing_columns(table, [CLASS_PROBABILITY]):  # not of `refine`, in one frame
        pairs = [f"{number:g}: {count}" for number, count in zip(numbers, counts, strict=True)]
        listed = ", ".join(pairs[:CLASSES_SHOWN]) + (", …" if len(pairs) > CLASSES_SHOWN else "")
        found.append(
            Problem(
                f"the particles are of {len(numbers)} classes ({CLASS_NUMBER} {listed}), and poses of "
                "several classes are poses in several maps",
                "give the particles of one class, or train --by-class where they are states in one frame; "
                f"where the classes are those of a 2D classification, remove {CLASS_NUMBER}",
            )
        )
    if particles.half_sets is not None:
        sizes = [int((particles.half_sets == half).sum()) for half in (1, 2)]
        if min(sizes) < SMALLEST_HALF * sum(sizes):
            found.append(
                Problem(
                    f"the half sets have {sizes[0]} and {sizes[1]} particles: two half maps cannot be made",
                    "give both half sets of the refinement; or remove rlnRandomSubset, and they are drawn",
                )
            )
    return found


def _about_angles(table: ParticleTable) -> list[Problem]:
    """Orientations in radians: of degrees not all would be within ±2π."""
    angles = number_columns(table, ANGLE_COLUMNS)
    if angles is None or len(table) < FEWEST:
        return []
    values = np.stack(angles)
    if np.abs(values).max() > _TURN or np.ptp(values, axis=1).max() < LEAST_SPREAD:
        return []
    return [
        Problem(
            f"all angles lie within ±{np.abs(values).max():.3g}: they seem to be in radians",
            f"multiply {', '.join(ANGLE_COLUMNS)} by {_DEGREES}",
        )
    ]


def _about_ctf(ctf: CtfParameters) -> list[Problem]:
    found = []
    defocus = ((ctf.defocus_u_angstrom + ctf.defocus_v_angstrom) / 2).abs().double()
    median, most = torch.quantile(defocus[:: len(defocus) // 100_000 + 1], torch.tensor([0.5, 0.9]).double())
    plate = ctf.phase_shift_deg
    if 0 < median < LARGEST_MEDIAN_NM and most < LARGEST_MOST_NM and not plate.any():
        found.append(
            Problem(
                f"the defocus is {median / 1e4:.2f} µm in the median, and there is no phase plate: it seems "
                "to be in nm",
                "multiply rlnDefocusU and rlnDefocusV by 10",
            )
        )
    angle, astigmatism = ctf.defocus_angle_deg, ctf.defocus_u_angstrom - ctf.defocus_v_angstrom
    if astigmatism.any() and _fill_a_turn_in_radians(angle):
        found.append(
            Problem(
                f"all defocus angles lie within ±{angle.abs().max():.3g}: they seem to be in radians",
                f"multiply rlnDefocusAngle by {_DEGREES}",
            )
        )
    if plate.any() and plate[plate > 0].median() > 0.3 and plate.max() <= math.pi:
        found.append(
            Problem(
                f"no phase shift is beyond {plate.max():.3g}°: they seem to be in radians",
                f"multiply rlnPhaseShift by {_DEGREES}",
            )
        )
    return found


def _fill_a_turn_in_radians(angles: torch.Tensor) -> bool:
    """Whether many distinct angles (n,) all lie within ±2π, and well apart."""
    distinct = torch.unique(angles)
    is_wide = len(distinct) >= FEWEST and float(distinct.max() - distinct.min()) > LEAST_SPREAD
    return is_wide and float(distinct.abs().max()) <= _TURN
