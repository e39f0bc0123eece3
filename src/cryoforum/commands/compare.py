"""Errors of poses against known ones."""

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from cryoforum.curation.calibration import CalibrationCard, calibration_card
from cryoforum.dataset.columns import CLASS_NUMBER, OPTICS_GROUP
from cryoforum.dataset.frames import Frame, common_frame
from cryoforum.dataset.particle_table import ParticleTable, number_column, place_of_row
from cryoforum.dataset.pose_errors import ErrorSummary, orientation_errors, summarise_errors
from cryoforum.dataset.poses import Poses
from cryoforum.errors import InputError
from cryoforum.io.located_images import numbers_by_name, numbers_by_place
from cryoforum.io.particle_files import read_particle_file
from cryoforum.io.predictions import holds_predictions, predictions_from_table
from cryoforum.io.relion.particles import poses_from_table
from cryoforum.storage.files import check_output, write_json

logger = logging.getLogger(__name__)

SAME_ORIENTATION_RAD = 1e-3  # of the angles in a file and of the mode of its posteriors, but for rounding


@dataclass(frozen=True)
class PoseErrors:
    """Of n particles: geodesic angle in radians (n,), and distance between origins in Å (n,).

    calibration: what was stated of the orientations against what was found, where the file states it.
    """

    orientations_rad: Tensor
    shifts_angstrom: Tensor
    calibration: CalibrationCard | None = None

    @property
    def summary(self) -> ErrorSummary:
        """Of the orientations."""
        return summarise_errors(self.orientations_rad)

    @property
    def median_shift_angstrom(self) -> float:
        """Median distance between origins."""
        return float(self.shifts_angstrom.quantile(0.5))


def compare(
    predictions: Path,
    truth: Path,
    symmetry: str = "C1",
    json_path: Path | None = None,
    overwrite: bool = False,
    own_frames: bool = False,
) -> PoseErrors:
    """Errors of the particles of the first file, matched by image; a summary goes to ``json_path``.

    With ``own_frames`` after the turn, move and hand are taken away by which the maps differ, in each class
    of the first file by itself; the card of what predictions state is then left out, as frames are fitted.
    """
    check_output(json_path, overwrite)
    measure = errors_after_frames if own_frames else pose_errors
    errors = measure(read_particle_file(predictions), read_particle_file(truth), symmetry)
    if json_path is not None:
        card = {} if errors.calibration is None else {"calibration": errors.calibration.to_dict()}
        write_json(json_path, errors.summary.to_dict() | card)
    return errors


def pose_errors(predicted: ParticleTable, truth: ParticleTable, symmetry: str = "C1") -> PoseErrors:
    """Errors in the order of ``predicted``; InputError where a particle is not in ``truth``."""
    found, true = _poses(predicted), _poses(truth)[matching_rows(truth, predicted)]
    shifts = torch.linalg.vector_norm(found.shifts_angstrom - true.shifts_angstrom, dim=1)
    errors = orientation_errors(found.quaternions, true.quaternions, symmetry)
    return PoseErrors(errors, shifts, _calibration(predicted, found.quaternions, true.quaternions, symmetry))


def _calibration(
    predicted: ParticleTable, orientations: Tensor, truth: Tensor, symmetry: str
) -> CalibrationCard | None:
    """Of each optics group, too, where there are several; None where no error is stated of these."""
    if not holds_predictions(predicted):
        return None
    found = predictions_from_table(predicted)
    apart = orientation_errors(orientations, found.posterior.mode, symmetry)
    if float(apart.median()) > SAME_ORIENTATION_RAD:
        logger.info(f"{predicted.path}: poses have changed since errors were stated: no calibration is shown")
        return None
    numbers = number_column(predicted, OPTICS_GROUP)
    kinds = () if numbers is None else np.unique(numbers)
    groups = {f"optics group {kind:g}": torch.from_numpy(numbers == kind) for kind in kinds}
    return calibration_card(found, truth, symmetry, groups if len(groups) > 1 else None)


def errors_after_frames(predicted: ParticleTable, truth: ParticleTable, symmetry: str = "C1") -> PoseErrors:
    """As `pose_errors`, after each class of ``predicted`` is brought into the frame of ``truth``."""
    found, true = _poses(predicted), _poses(truth)[matching_rows(truth, predicted)]
    classes = number_column(predicted, CLASS_NUMBER)
    numbers = torch.zeros(len(found)) if classes is None else torch.from_numpy(classes)
    orientations, shifts = torch.empty(len(found)), torch.empty(len(found))
    for number in numbers.unique():
        own = (numbers == number).nonzero()[:, 0]
        frame = common_frame(found[own], true[own], symmetry)
        moved = frame.of(found[own])
        orientations[own] = orientation_errors(moved.quaternions, true.quaternions[own], symmetry)
        shifts[own] = torch.linalg.vector_norm(moved.shifts_angstrom - true.shifts_angstrom[own], dim=1)
        logger.info(_in_words(frame, "" if classes is None else f" of class {int(number)}"))
    return PoseErrors(orientations, shifts)


def _in_words(frame: Frame, whose: str) -> str:
    turn = 2 * torch.rad2deg(torch.acos(frame.turn[3].abs().clamp_max(1)))
    move, hand = frame.move_angstrom.norm(), "; of the other hand" if frame.mirrored else ""
    return f"frame{whose}: turned by {turn:.2f}°, moved by {move:.2f} Å{hand}"


def _poses(table: ParticleTable) -> Poses:
    poses = poses_from_table(table)
    if poses is None:
        raise InputError(f"{table.path}: expected rlnAngleRot, rlnAngleTilt and rlnAnglePsi to compare")
    return poses


def matching_rows(table: ParticleTable, wanted: ParticleTable) -> Tensor:
    """The rows (n,) of ``table`` that hold the images of ``wanted``, in its order.

    Images are known by their places on disk; where these are not found, or are those of a copied project, by
    their names. In symmetry-expanded sets the copies of an image are matched in the order of their rows; a
    single one in ``table`` stands for all of them. InputError where one is not there.
    """
    places, wanted_places = numbers_by_place(table), numbers_by_place(wanted)
    if places is not None and wanted_places is not None:
        rows = _rows_of_copies(places, wanted_places)
        if (rows >= 0).all():
            return rows
    rows = _rows_of_copies(numbers_by_name(table), numbers_by_name(wanted))
    lost = (rows < 0).nonzero()[:, 0]
    if len(lost):
        raise InputError(
            f"{table.path}: expected each image as often as in {wanted.path}, found {len(lost)} of "
            f"{len(wanted)} rows missing, first {place_of_row(wanted, int(lost[0]))}"
        )
    if places is not None and wanted_places is not None:
        logger.warning(
            f"matched by image name: the stacks of {table.path} and {wanted.path} are different files"
        )
    return rows


def _rows_of_copies(numbers: Tensor, wanted: Tensor) -> Tensor:
    """Row (n,) among ``numbers`` of each wanted one: of its k-th copy the k-th, or the only one; -1: none."""
    known, sought = pd.Series(numbers.numpy()), pd.Series(wanted.numpy())
    index = pd.MultiIndex.from_arrays([known, known.groupby(known).cumcount()])
    copies = sought.groupby(sought).cumcount()
    is_single = sought.map(known.value_counts()) == 1
    rows = index.get_indexer(pd.MultiIndex.from_arrays([sought, copies.mask(is_single, 0)]))
    return torch.from_numpy(rows).long()
