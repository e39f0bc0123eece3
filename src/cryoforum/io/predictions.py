"""Predictions as columns of a particle table, and back."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch

from cryoforum.dataset import columns as c
from cryoforum.dataset.particle_table import ParticleTable, number_column, with_columns
from cryoforum.dataset.poses import Poses
from cryoforum.dataset.predictions import Predictions
from cryoforum.io.relion.particles import with_orientations, with_poses

_QUATERNION = ("qx", "qy", "qz", "qw")
_SHIFT = ("shift_x_angstrom", "shift_y_angstrom")


def prediction_columns(predictions: Predictions) -> dict[str, np.ndarray]:
    """Float32 columns (n,) of a table, and the pose as a quaternion and a shift in Å.

    Errors are root mean squares in degrees: the one that the posterior means and, where the image was
    compared with a reference, the Cramér-Rao lower bound.
    """
    posterior, evidence = predictions.posterior, predictions.evidence
    columns = dict(zip(_QUATERNION, posterior.mode.unbind(-1), strict=True))
    if predictions.shifts_angstrom is not None:
        columns |= dict(zip(_SHIFT, predictions.shifts_angstrom.unbind(-1), strict=True))
    columns |= {c.LAMBDA_MAX: posterior.lambda_max, c.TRACE: posterior.trace}
    for row in range(4):
        for column in range(row, 4):
            columns[c.concentration_column(row, column)] = posterior.concentration[:, row, column]
    columns[c.EXPECTED_ERROR] = torch.rad2deg(predictions.expected_error_rad)
    columns[c.FIGURE_OF_MERIT] = predictions.figure_of_merit
    if predictions.model_half is not None:
        columns[c.MODEL_HALF] = predictions.model_half
    if evidence is not None:
        covariance = evidence.origin_covariance_angstrom2
        columns |= {
            c.CRAMER_RAO_BOUND: torch.rad2deg(evidence.bound_rad),
            c.ORIGIN_ERROR: covariance.diagonal(dim1=1, dim2=2).sum(1).sqrt(),
            c.LOG_LIKELIHOOD_GAIN: evidence.log_likelihood_gain,
            c.SIGNAL_SCALE: evidence.signal_scale,
            c.MODE_PROBABILITY: evidence.mode_probability,
            c.REFERENCE_HALF: evidence.reference_half,
            c.DEFOCUS_CHANGE: evidence.defocus_change_angstrom,
        }
    return {name: values.float().numpy() for name, values in columns.items()}


def with_predictions(table: ParticleTable, found: Mapping[str, np.ndarray]) -> ParticleTable:
    """The table with `prediction_columns`, their poses as RELION's angles and origins.

    Where no shifts were found those of the table stay, and so does the defocus. Columns of an earlier
    prediction are dropped.
    """
    earlier = [
        name
        for name in table.particles
        if name.startswith(c.OWN) or name in (c.FIGURE_OF_MERIT, c.MODE_PROBABILITY)
    ]
    table = replace(table, particles=table.particles.drop(columns=earlier))
    quaternions = torch.from_numpy(np.stack([found[name] for name in _QUATERNION], axis=-1))
    columns = {name: values for name, values in found.items() if name not in (*_QUATERNION, *_SHIFT)}
    for name in {c.MODEL_HALF, c.REFERENCE_HALF} & columns.keys():
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


def half_sets_are_independent(table: ParticleTable) -> bool:
    """Whether no prediction posed the particles, or each half set was posed by its own half's reference.

    Where there are two models, each half set by its own half's model, too.
    """
    if c.TRACE not in table.particles.columns:
        return True
    columns = [number_column(table, name) for name in (c.MODEL_HALF, c.REFERENCE_HALF)]
    used, half_sets = [one for one in columns if one is not None], number_column(table, c.HALF_SET)
    return half_sets is not None and bool(used) and all(bool((half == half_sets).all()) for half in used)
