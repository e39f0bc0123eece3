"""Predictions as columns of a particle table, and back."""

import logging
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch

from cryoforum.dataset import columns as c
from cryoforum.dataset.particle_table import ParticleTable, number_column, with_columns
from cryoforum.dataset.poses import Poses
from cryoforum.dataset.prediction_columns import COLUMNS
from cryoforum.dataset.predictions import Predictions
from cryoforum.io.cryosparc.records import without_fields
from cryoforum.io.relion.particles import with_orientations, with_poses

logger = logging.getLogger(__name__)

_QUATERNION = ("qx", "qy", "qz", "qw")
_SHIFT = ("shift_x_angstrom", "shift_y_angstrom")


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
