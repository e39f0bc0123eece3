"""The files in the folder of a run, read once and checked; None stands for a missing file."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from cryoforum.curation.selection import select
from cryoforum.dataset import columns as c
from cryoforum.dataset.particle_table import ParticleTable, number_column
from cryoforum.dataset.pose_errors import orientation_errors, summarise_errors
from cryoforum.dataset.poses import Poses
from cryoforum.errors import InputError
from cryoforum.io.particle_files import read_particle_file
from cryoforum.io.relion.particles import poses_from_table

DEFAULT_KEPT_SHARE = 0.75
STATISTICS = (
    *(c.LAMBDA_MAX, c.TRACE, c.CRAMER_RAO_BOUND, c.EXPECTED_ERROR),
    *(c.ORIGIN_ERROR, c.SIGNAL_SCALE, c.LOG_LIKELIHOOD_GAIN),
)


@dataclass(frozen=True)
class PredictedPoses:
    """predictions.star beside truth.star and network.star: n particles in the order of the predictions.

    Attributes
    ----------
    true_poses, network_poses
        None where their file is missing; the latter are the poses before local refinement.
    columns
        (n,) numbers by the name of their column: those of `STATISTICS` that the file has.
    kept
        (n,) bool: the particles of kept.star or, without that file, the share of the summary with the most
        negative tr Λ.
    """

    poses: Poses
    true_poses: Poses | None
    network_poses: Poses | None
    columns: dict[str, np.ndarray]
    kept: np.ndarray | None
    kept_share: float
    symmetry: str = "C1"

    @property
    def bound_rad(self) -> np.ndarray | None:
        """(n,) Cramér-Rao lower bound of the root mean square error; None where no pose was refined."""
        bound_deg = self.columns.get(c.CRAMER_RAO_BOUND)
        return None if bound_deg is None else np.deg2rad(bound_deg)

    def errors_rad(self, poses: Poses) -> np.ndarray:
        """(n,) geodesic distances of ``poses`` to the nearest equivalent of the true ones."""
        return orientation_errors(poses.quaternions, self._truth.quaternions, self.symmetry).numpy()

    def shift_errors_angstrom(self, poses: Poses) -> np.ndarray:
        """(n,) distances of the origins of ``poses`` to the true ones."""
        return np.linalg.norm(poses.shifts_angstrom - self._truth.shifts_angstrom, axis=1)

    @property
    def _truth(self) -> Poses:
        if self.true_poses is None:
            raise InputError("expected true poses, found none")
        return self.true_poses


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file, empty where there is no file; InputError where it holds no object."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"expected JSON in {path}: {error}; write the file again") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content


def read_csv(path: Path, columns: tuple[str, ...]) -> pd.DataFrame | None:
    """A table with at least these columns; None where there is no file or no row.

    Raises
    ------
    InputError
        Where the file is no CSV table, or a column is missing.
    """
    if not path.is_file():
        return None
    try:
        table = pd.read_csv(path)
    except (UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise InputError(f"{path}: expected a CSV table, found none: {error}") from error
    missing = [column for column in columns if column not in table]
    if missing:
        raise InputError(f"{path}: expected a column {missing[0]}, found {', '.join(table.columns)}")
    return None if table.empty else table


def split_counts(folder: Path) -> dict[str, int]:
    """How many particles the model in a run's folder used for each part; empty where it does not say."""
    table = read_csv(folder / "model" / "split.csv", ("part",))
    return {} if table is None else table["part"].value_counts().to_dict()


def read_predictions(folder: Path, summary: dict[str, Any], model: dict[str, Any]) -> PredictedPoses | None:
    """The predicted poses of a run.

    Parameters
    ----------
    folder
        Of the run.
    summary, model
        The contents of its summary.json and model.json.

    Returns
    -------
    None where there is no predictions.star.

    Raises
    ------
    InputError
        Where a file lacks poses, or holds other particles than predictions.star.
    """
    path = folder / "predictions.star"
    if not path.is_file():
        return None
    table, poses = _table_with_poses(path)
    columns = {name: values for name in STATISTICS if (values := number_column(table, name)) is not None}
    kept = _kept(folder / "kept.star", table, columns.get(c.TRACE), summary)
    return PredictedPoses(
        poses=poses,
        true_poses=_poses_of(folder / "truth.star", table),
        network_poses=_poses_of(folder / "network.star", table),
        columns=columns,
        kept=kept,
        kept_share=DEFAULT_KEPT_SHARE if kept is None else float(kept.mean()),
        symmetry=model.get("config", {}).get("symmetry", "C1"),
    )


def accuracy_numbers(summary: dict[str, Any], predictions: PredictedPoses | None) -> dict[str, Any]:
    """Errors, shift errors and Cramér-Rao lower bound, from the summary or else measured against the truth.

    Returns
    -------
    A dictionary with the keys errors, shift_errors and bound, each a dictionary as in summary.json; empty
    ones where nothing is known.
    """
    if "errors" in summary:
        return {name: summary.get(name) or {} for name in ("errors", "shift_errors", "bound")}
    if predictions is None or predictions.true_poses is None:
        return {"errors": {}, "shift_errors": {}, "bound": {}}
    named = {"network": predictions.network_poses, "all": predictions.poses}
    known = {group: poses for group, poses in named.items() if poses is not None}
    errors = {group: predictions.errors_rad(poses) for group, poses in known.items()}
    shifts: dict[str, np.ndarray] = {}
    bound: dict[str, float] = {}
    if predictions.bound_rad is not None:  # without it the origins were not refined
        shifts = {group: predictions.shift_errors_angstrom(poses) for group, poses in known.items()}
        bound["median_deg"] = float(np.rad2deg(np.median(predictions.bound_rad)))
        bound["median_error_over_bound"] = float(np.median(errors["all"] / predictions.bound_rad))
    for measured in (errors, shifts):
        if measured and predictions.kept is not None:
            measured["kept"] = measured["all"][predictions.kept]
    return {
        "errors": {group: summarise_errors(torch.from_numpy(own)).to_dict() for group, own in errors.items()},
        "shift_errors": {group: {"median_angstrom": float(np.median(own))} for group, own in shifts.items()},
        "bound": bound,
    }


def _table_with_poses(path: Path) -> tuple[ParticleTable, Poses]:
    table = read_particle_file(path)
    poses = poses_from_table(table)
    if poses is None:
        raise InputError(f"{path}: expected columns rlnAngleRot, rlnAngleTilt and rlnAnglePsi")
    return table, poses


def _poses_of(path: Path, predictions: ParticleTable) -> Poses | None:
    """Poses of a file in the order of the predictions, joined by image name; None without the file."""
    if not path.is_file():
        return None
    table, poses = _table_with_poses(path)
    names = pd.Index(table.particles[c.IMAGE_NAME])
    if not names.is_unique:
        raise InputError(f"{path}: an {c.IMAGE_NAME} occurs twice; remove the duplicates")
    wanted = predictions.particles[c.IMAGE_NAME]
    rows = names.get_indexer(wanted)
    if (rows < 0).any():
        missing = int((rows < 0).argmax())
        raise InputError(
            f"{path}: expected the image {wanted.iloc[missing]} of row {missing + 1} in {predictions.path}, "
            f"found no row of that name; give {path.name} of these particles, or remove it"
        )
    return poses[torch.from_numpy(rows)]


def _kept(
    path: Path, predictions: ParticleTable, trace: np.ndarray | None, summary: dict[str, Any]
) -> np.ndarray | None:
    """(n,) bool: the predictions that were kept; None where neither kept.star nor tr Λ is there."""
    if path.is_file():
        names = read_particle_file(path).particles[c.IMAGE_NAME]
        kept = predictions.particles[c.IMAGE_NAME].isin(names).to_numpy()
        if not kept.any():
            raise InputError(f"{path}: expected particles of {predictions.path}, found none of them")
        return kept
    if trace is None:
        return None
    errors, share = summary.get("errors", {}), DEFAULT_KEPT_SHARE
    if "all" in errors and "kept" in errors:
        share = errors["kept"]["count"] / errors["all"]["count"]
    return most_certain(trace, share)


def most_certain(trace: np.ndarray, share: float) -> np.ndarray:
    """(n,) bool: the ``share`` of the particles with the most negative ``trace`` (n,)."""
    chosen = np.zeros(len(trace), dtype=bool)
    chosen[select(torch.from_numpy(trace), share).numpy()] = True
    return chosen
