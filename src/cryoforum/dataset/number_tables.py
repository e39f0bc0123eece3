"""Particles and predictions as pandas tables of numbers, in RELION's columns."""

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from cryoforum.dataset import columns as c
from cryoforum.dataset.particles import Particles
from cryoforum.dataset.pose_errors import orientation_errors
from cryoforum.dataset.poses import Poses
from cryoforum.dataset.prediction_columns import COLUMNS
from cryoforum.dataset.predictions import Predictions
from cryoforum.errors import require
from cryoforum.geometry.rotations import unitquat_to_relion_euler


def particle_numbers(particles: Particles) -> pd.DataFrame:
    """What `Particles.table` gives."""
    table: dict[str, object] = {c.IMAGE_NAME: list(particles.names)}
    if particles.poses is not None:
        table |= _angles(particles.poses.quaternions) | _origins(particles.poses.shifts_angstrom)
    ctf = particles.ctf
    if ctf is not None:
        known = (getattr(ctf, name) for name in ctf.__dataclass_fields__)
        table |= {name: _numbers(v) for name, v in zip((*c.CTF_COLUMNS, c.PHASE_SHIFT), known, strict=True)}
    groups = {c.HALF_SET: particles.half_sets, c.OPTICS_GROUP: particles.optics_groups}
    table |= {name: _numbers(values) for name, values in groups.items() if values is not None}
    return pd.DataFrame(table)


def prediction_numbers(
    predictions: Predictions, particles: Particles | None, truth: Poses | None, symmetry: str
) -> pd.DataFrame:
    """What `Predictions.table` gives."""
    count, modes, shifts = len(predictions), predictions.posterior.mode, predictions.shifts_angstrom
    table: dict[str, object] = {}
    if particles is not None:
        require(len(particles) == count, f"{count} particles, one a prediction", len(particles))
        table[c.IMAGE_NAME] = list(particles.names)
    table |= _angles(modes)
    if shifts is not None:
        table |= _origins(shifts)
    values = {name: column(predictions) for name, column in COLUMNS.items()}
    table |= {name: _numbers(column) for name, column in values.items() if column is not None}
    if truth is not None:
        require(len(truth) == count, f"{count} true poses, one a prediction", len(truth))
        table[c.ERROR] = _numbers(torch.rad2deg(orientation_errors(modes, truth.quaternions, symmetry)))
        if shifts is not None:
            table[c.SHIFT_ERROR] = _numbers((shifts - truth.shifts_angstrom).norm(dim=-1))
    return pd.DataFrame(table)


def _angles(quaternions: Tensor) -> dict[str, object]:
    return dict(zip(c.ANGLE_COLUMNS, _numbers(unitquat_to_relion_euler(quaternions)).T, strict=True))


def _origins(shifts_angstrom: Tensor) -> dict[str, object]:
    return dict(zip(c.ORIGIN_COLUMNS, _numbers(shifts_angstrom).T, strict=True))


def _numbers(values: Tensor) -> np.ndarray:
    return values.detach().cpu().numpy()
