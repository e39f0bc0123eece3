"""Errors of poses against known ones."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from cryoforum.dataset.columns import IMAGE_NAME
from cryoforum.dataset.particle_table import ParticleTable
from cryoforum.dataset.pose_errors import ErrorSummary, orientation_errors, summarise_errors
from cryoforum.dataset.poses import Poses
from cryoforum.errors import InputError
from cryoforum.io.particle_files import read_particle_file
from cryoforum.io.relion.particles import poses_from_table
from cryoforum.storage.files import check_output, write_json


@dataclass(frozen=True)
class PoseErrors:
    """Of n particles: geodesic angle in radians (n,), and distance between origins in Å (n,)."""

    orientations_rad: Tensor
    shifts_angstrom: Tensor

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
) -> PoseErrors:
    """Errors of the particles of the first file, matched by image name; a summary goes to ``json_path``."""
    check_output(json_path, overwrite)
    errors = pose_errors(read_particle_file(predictions), read_particle_file(truth), symmetry)
    if json_path is not None:
        write_json(json_path, errors.summary.to_dict())
    return errors


def pose_errors(predicted: ParticleTable, truth: ParticleTable, symmetry: str = "C1") -> PoseErrors:
    """Errors in the order of ``predicted``; InputError where a particle is not in ``truth``."""
    found, true = _poses(predicted), _poses(truth)[matching_rows(truth, predicted)]
    shifts = torch.linalg.vector_norm(found.shifts_angstrom - true.shifts_angstrom, dim=1)
    return PoseErrors(orientation_errors(found.quaternions, true.quaternions, symmetry), shifts)


def _poses(table: ParticleTable) -> Poses:
    poses = poses_from_table(table)
    if poses is None:
        raise InputError(f"{table.path}: expected rlnAngleRot, rlnAngleTilt and rlnAnglePsi to compare")
    return poses


def matching_rows(table: ParticleTable, wanted: ParticleTable) -> Tensor:
    """The rows (n,) of ``table`` that hold the images of ``wanted``, in its order; InputError: one is not."""
    row_of_name = {name: row for row, name in enumerate(table.particles[IMAGE_NAME])}
    names = wanted.particles[IMAGE_NAME]
    for name in names:
        if name not in row_of_name:
            raise InputError(f"{table.path}: expected image {name} of {wanted.path}, found none")
    return torch.tensor([row_of_name[name] for name in names])
