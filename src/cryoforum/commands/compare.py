"""Errors of poses against known ones."""

import json
from pathlib import Path

import torch
from torch import Tensor

from cryoforum.dataset.particle_table import ParticleTable
from cryoforum.dataset.pose_errors import ErrorSummary, orientation_errors, summarise_errors
from cryoforum.dataset.poses import Poses
from cryoforum.errors import InputError
from cryoforum.io.particle_files import read_particle_file
from cryoforum.io.relion.particles import (
    poses_from_table,
)
from cryoforum.storage.files import refuse_to_overwrite, replacing, require_folder_of


def compare_files(
    predicted_path: Path,
    truth_path: Path,
    json_path: Path | None,
    overwrite: bool,
    symmetry: str = "C1",
) -> ErrorSummary:
    """Orientation errors of the particles of the first file, matched by image name."""
    if json_path is not None:
        refuse_to_overwrite(json_path, overwrite)
        require_folder_of(json_path)
    predicted, truth = read_particle_file(predicted_path), read_particle_file(truth_path)
    errors = matched_errors(predicted, truth, symmetry)
    summary = summarise_errors(errors)
    if json_path is not None:
        with replacing(json_path) as temporary:
            temporary.write_text(json.dumps(summary.to_dict(), indent=2) + "\n")
    return summary


def median_shift_error_angstrom(predicted_path: Path, truth_path: Path) -> float:
    """Of the same particles: median distance between origins."""
    errors = matched_shift_errors_angstrom(read_particle_file(predicted_path), read_particle_file(truth_path))
    return float(errors.quantile(0.5))


def matched_errors(predicted: ParticleTable, truth: ParticleTable, symmetry: str = "C1") -> Tensor:
    """Geodesic errors in radians, in the order of ``predicted``; every particle must be in ``truth``."""
    found, true = _matched_poses(predicted, truth)
    return orientation_errors(found.quaternions, true.quaternions, symmetry)


def matched_shift_errors_angstrom(predicted: ParticleTable, truth: ParticleTable) -> Tensor:
    """Distances in Å between origins, in the order of ``predicted``; every particle must be in ``truth``."""
    found, true = _matched_poses(predicted, truth)
    return torch.linalg.vector_norm(found.shifts_angstrom - true.shifts_angstrom, dim=1)


def _matched_poses(predicted: ParticleTable, truth: ParticleTable) -> tuple[Poses, Poses]:
    """Poses of ``predicted`` and those of the same image names in ``truth``."""
    poses = []
    for table in (predicted, truth):
        found = poses_from_table(table)
        if found is None:
            raise InputError(f"{table.path}: expected rlnAngleRot, rlnAngleTilt and rlnAnglePsi to compare")
        poses.append(found)
    row_of_name = {name: row for row, name in enumerate(truth.particles["rlnImageName"])}
    rows = []
    for name in predicted.particles["rlnImageName"]:
        if name not in row_of_name:
            raise InputError(f"{truth.path}: expected image {name} of {predicted.path}, found none")
        rows.append(row_of_name[name])
    return poses[0], poses[1][torch.tensor(rows)]
