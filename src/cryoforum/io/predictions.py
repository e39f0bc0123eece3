"""Predictions as columns of a particle table, and back."""

import logging
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from cryoforum.dataset import columns as c
from cryoforum.dataset.particle_table import (
    ParticleTable,
    missing_columns,
    number_column,
    where_to_add,
    with_columns,
)
from cryoforum.dataset.poses import Poses
from cryoforum.dataset.prediction_columns import COLUMNS
from cryoforum.dataset.predictions import ImageEvidence, Predictions
from cryoforum.distributions.bingham import OrientationPosterior
from cryoforum.errors import InputError
from cryoforum.io.cryosparc.records import without_fields
from cryoforum.io.relion.particles import poses_from_table, with_orientations, with_poses

logger = logging.getLogger(__name__)

_QUATERNION = ("qx", "qy", "qz", "qw")
_SHIFT = ("shift_x_angstrom", "shift_y_angstrom")
_CELLS = [(i, j) for i in range(4) for j in range(i, 4)]  # of a symmetric matrix
_POSTERIOR_COLUMNS = (*(c.concentration_column(i, j) for i, j in _CELLS), c.EXPECTED_ERROR)
_EVIDENCE_COLUMNS = (
    *(c.CRAMER_RAO_BOUND, c.ORIGIN_ERROR, c.LOG_LIKELIHOOD_GAIN),
    *(c.SIGNAL_SCALE, c.MODE_PROBABILITY, c.REFERENCE_HALF),
)


def prediction_columns(predictions: Predictions) -> dict[str, np.ndarray]:
    """Float32 `COLUMNS` (n,) of ``predictions``, and poses as quaternions and, where known, shifts in Å."""
    found = dict(zip(_QUATERNION, predictions.posterior.mode.unbind(-1), strict=True))
    if predictions.shifts_angstrom is not None:
        found |= dict(zip(_SHIFT, predictions.shifts_angstrom.unbind(-1), strict=True))
    values = {name: column(predictions) for name, column in COLUMNS.items()}
    found |= {name: column for name, column in values.items() if column is not None}
    return {name: column.float().numpy() for name, column in found.items()}


def with_predictions(table: ParticleTable, found: Mapping[str, np.ndarray]) -> ParticleTable:
    """The table with `prediction_columns`, their poses as RELION's angles and origins.

    Where no shifts were found those of the table stay, and so does the defocus. Columns of an earlier
    prediction are dropped.
    """
    ours = [*COLUMNS.keys() - {c.CLASS_NUMBER}, *found]  # a class that nothing new is said of stays
    earlier = [name for name in table.particles if name.startswith(c.OWN) or name in ours]
    table = replace(table, particles=table.particles.drop(columns=earlier))
    quaternions = torch.from_numpy(np.stack([found[name] for name in _QUATERNION], axis=-1))
    columns = {name: values for name, values in found.items() if name not in (*_QUATERNION, *_SHIFT)}
    for name in {c.MODEL_HALF, c.REFERENCE_HALF, c.CLASS_NUMBER} & columns.keys():
        columns[name] = columns[name].astype(np.int64)
    change = columns.pop(c.DEFOCUS_CHANGE, np.zeros(1))
    if change.any():
        columns[c.DEFOCUS_CHANGE] = change
        for name in c.DEFOCUS_COLUMNS:
            columns[name] = number_column(table, name) + change
    if _SHIFT[0] in found:
        shifts = torch.from_numpy(np.stack([found[name] for name in _SHIFT], axis=-1))
        return with_columns(with_poses(table, Poses(quaternions, shifts)), columns)
    return with_columns(with_orientations(table, quaternions), columns)


def without_own_columns(table: ParticleTable) -> ParticleTable:
    """The table without our own columns, and without our own fields of a .cs file; the poses stay."""
    own = [name for name in table.particles if name.startswith(c.OWN)]
    dataset = table.dataset
    if dataset is not None:
        dataset = without_fields(dataset, c.OWN)
    logger.info(f"left out {', '.join(own) if own else 'nothing, as there are no columns of our own'}")
    return replace(table, particles=table.particles.drop(columns=own), dataset=dataset)


def half_sets_are_independent(table: ParticleTable) -> bool:
    """Whether no prediction aligned the particles, or each half set was aligned by its own half's reference.

    Where there are two models, each half set by its own half's model, too.
    """
    if c.TRACE not in table.particles.columns:
        return True
    columns = [number_column(table, name) for name in (c.MODEL_HALF, c.REFERENCE_HALF)]
    used, half_sets = [one for one in columns if one is not None], number_column(table, c.HALF_SET)
    return half_sets is not None and bool(used) and all(bool((half == half_sets).all()) for half in used)


def holds_predictions(table: ParticleTable) -> bool:
    """Whether `predictions_from_table` finds a posterior and an expected error in the columns."""
    return not missing_columns(table, _POSTERIOR_COLUMNS)


def predictions_from_table(table: ParticleTable) -> Predictions:
    """The predictions that the columns of a table hold; InputError where there are none.

    Evidence is None where a part of it is missing. Of the covariance of an origin there is the trace alone.
    """
    missing = missing_columns(table, _POSTERIOR_COLUMNS)
    if missing:
        raise InputError(
            f"{table.path}: expected predictions, found no column {missing[0]}; predict them first"
        )
    concentration = torch.zeros(len(table), 4, 4)
    for i, j in _CELLS:
        concentration[:, i, j] = concentration[:, j, i] = _column(table, c.concentration_column(i, j))
    poses = poses_from_table(table)
    has_origins = any(
        not missing_columns(table, names) for names in (c.ORIGIN_COLUMNS, c.ORIGIN_PIXEL_COLUMNS)
    )
    return Predictions(
        OrientationPosterior(concentration),
        torch.deg2rad(_column(table, c.EXPECTED_ERROR)),
        poses.shifts_angstrom if poses is not None and has_origins else None,
        None if missing_columns(table, _EVIDENCE_COLUMNS) else _evidence(table),
        None if missing_columns(table, [c.MODEL_HALF]) else _column(table, c.MODEL_HALF).long(),
        **_classes(table),
    )


def _classes(table: ParticleTable) -> dict[str, Tensor]:
    """Classes that were found, which have a probability; one that a file came with has none."""
    if missing_columns(table, [c.CLASS_NUMBER, c.CLASS_PROBABILITY]):
        return {}
    number, probability = (_column(table, name) for name in (c.CLASS_NUMBER, c.CLASS_PROBABILITY))
    return {"class_number": number.long(), "class_probability": probability}


def _evidence(table: ParticleTable) -> ImageEvidence:
    variance = _column(table, c.ORIGIN_ERROR).square() / 2
    has_defocus = not missing_columns(table, [c.DEFOCUS_CHANGE])
    return ImageEvidence(
        bound_rad=torch.deg2rad(_column(table, c.CRAMER_RAO_BOUND)),
        origin_covariance_angstrom2=variance[:, None, None] * torch.eye(2),
        log_likelihood_gain=_column(table, c.LOG_LIKELIHOOD_GAIN),
        signal_scale=_column(table, c.SIGNAL_SCALE),
        mode_probability=_column(table, c.MODE_PROBABILITY),
        reference_half=_column(table, c.REFERENCE_HALF).long(),
        defocus_change_angstrom=_column(table, c.DEFOCUS_CHANGE) if has_defocus else torch.zeros(len(table)),
    )


def _column(table: ParticleTable, name: str) -> Tensor:
    numbers = number_column(table, name)
    if numbers is None:
        raise InputError(f"{table.path}: expected a column {name}, found none; {where_to_add(table, name)}")
    return torch.from_numpy(numbers).float()
