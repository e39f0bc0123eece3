"""The map of each class of a classified set, for one model of all states."""

import logging
from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Int
from torch import Tensor

from cryoforum.dataset.columns import CLASS_NUMBER, CLASS_PROBABILITY
from cryoforum.dataset.particle_set import ParticleSet
from cryoforum.dataset.particle_table import missing_columns, number_column, where_to_add
from cryoforum.dataset.particles import Particles
from cryoforum.dataset.volumes import Volume
from cryoforum.errors import InputError, require
from cryoforum.imaging.noise_model import FEWEST_OF_A_GROUP, NoiseModel
from cryoforum.reconstruction.fsc import fourier_shell_correlation
from cryoforum.reconstruction.reference_map import Reference, reference_from_particles
from cryoforum.runtime.distributed import from_first
from cryoforum.runtime.reporter import Reporter

logger = logging.getLogger(__name__)

# States of one molecule in one frame are alike at low resolution; turned maps are not.
ALIKE_ANGSTROM, LEAST_ALIKE = 40.0, 0.5


def classes_to_tell_apart(particle_set: ParticleSet, by_class: bool | None) -> Int[Tensor, " n"] | None:
    """The class of each particle where a model is to know several; None for one map.

    Without being asked only where `refine` has found the classes: other programs also number those of a 2D
    classification. InputError where they are asked for and there are none.
    """
    table = particle_set.table
    known = not missing_columns(table, [CLASS_NUMBER])
    if by_class and not known:
        raise InputError(
            f"{table.path}: expected {CLASS_NUMBER} for --by-class, found none; "
            f"{where_to_add(table, CLASS_NUMBER)}"
        )
    wanted = by_class or (by_class is None and not missing_columns(table, [CLASS_PROBABILITY]))
    numbers = number_column(table, CLASS_NUMBER) if known and wanted else None
    if numbers is None or len(set(numbers.tolist())) < 2:
        return None
    return torch.from_numpy(numbers).long()


def class_references(
    particles: Particles, classes: Int[Tensor, " n"], symmetry: str, reporter: Reporter
) -> tuple[Reference, ...]:
    """The reference of each class, in the order of their numbers; none where fewer than two have one.

    Of several processes the first makes them.
    """
    advance = reporter.progress("references of classes", len(particles))
    found: dict[int, Reference] = {}
    for number in classes.unique().tolist():
        own = particles.select((classes == number).nonzero()[:, 0])
        made = partial(_reference_or_none, own, number, symmetry, advance)
        reference = from_first(made, Reference, Volume, NoiseModel)
        if reference is not None:
            found[number] = reference
    if len(found) < 2:
        return ()
    if list(found) != list(range(1, len(found) + 1)):
        numbered = ", ".join(f"{new} is {number}" for new, number in enumerate(found, 1))
        logger.info(f"classes of the model are numbered anew: {numbered} of the file")
    references = tuple(found.values())
    for number, reference in list(found.items())[1:]:
        if _likeness(references[0], reference) < LEAST_ALIKE:
            logger.warning(
                f"the map of class {number} is not in the frame of the first: orientations mean something "
                "else in it; refine the classes from one start, as refine --classes does"
            )
    return references


def _reference_or_none(
    own: Particles, number: int, symmetry: str, progress: Callable[[int], None]
) -> Reference | None:
    try:
        require(len(own) >= FEWEST_OF_A_GROUP, f"{FEWEST_OF_A_GROUP} particles or more", len(own))
        return reference_from_particles(own, symmetry, progress=progress)
    except InputError as error:
        logger.warning(f"class {number} has no reference of its own: {error}")
        return None


def _likeness(first: Reference, second: Reference) -> float:
    """Mean correlation of two maps at low resolution."""
    volume = first.full
    extent = len(volume.voxels) * volume.pixel_size_angstrom
    shells = max(2, round(extent / ALIKE_ANGSTROM))
    return float(fourier_shell_correlation(first.full, second.full)[1 : shells + 1].mean())
