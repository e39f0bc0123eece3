"""Errors of poses against known ones."""

import json
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
from cryoforum.storage.files import refuse_to_overwrite, replacing, require_folder_of


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
    if json_path is not None:
        refuse_to_overwrite(json_path, overwrite)
        require_folder_of(json_path)
    errors = pose_errors(read_particle_file(predictions), read_particle_file(truth), symmetry)
    if json_path is not None:
        with replacing(json_path) as temporary:
            temporary.write_text(json.dumps(errors.summary.to_dict(), indent=2) + "\n")
    return errors


def pose_errors(predicted: ParticleTable, truth: ParticleTable, symmetry: str = "C1") -> PoseErrors:
    """Errors in the order of ``predicted``; InputError where a particle is not in ``truth``."""
    found, true = _matched_poses(predicted, truth)
    shifts = torch.linalg.vector_norm(found.shifts_angstrom - true.shifts_angstrom, dim=1)
    return PoseErrors(orientation_errors(found.quaternions, true.quaternions, symmetry), shifts)


def _matched_poses(predicted: ParticleTable, truth: ParticleTable) -> tuple[Poses, Poses]:
    """Poses of ``predicted`` and those of the same image names in ``truth``."""
    poses = []
    for table in (predicted, truth):
        found = poses_from_table(table)
        if found is None:
            raise InputError(f"{table.path}: expected rlnAngleRot, rlnAngleTilt and rlnAnglePsi to compare")
        poses.append(found)
    row_of_name = {name: row for row, name in enumerate(truth.particles[IMAGE_NAME])}
    rows = []
    for name in predicted.particles[IMAGE_NAME]:
        if name not in row_of_name:
            raise InputError(f"{truth.path}: expected image {name} of {predicted.path}, found none")
        rows.append(row_of_name[name])
    return poses[0], poses[1][torch.tensor(rows)]
