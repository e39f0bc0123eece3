"""What lies in the folder of a run: read once, checked, and None where a file is missing."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from cryoforum.io.star import ParticleStar, number_column, poses_from_star, read_star
from cryoforum.metrics import orientation_errors
from cryoforum.selection import select

DEFAULT_KEPT_SHARE = 0.75


@dataclass(frozen=True)
class PredictedPoses:
    """predictions.star beside truth.star: n particles in the order of the predictions.

    quaternions, true_quaternions: (n, 4). The statistics are (n,), None without their column;
    true_quaternions is None without truth.star. kept: (n,) bool, those of kept.star or, without that
    file, the share of the summary with the most negative tr Λ.
    """

    quaternions: Tensor
    true_quaternions: Tensor | None
    lambda_max: np.ndarray | None
    trace: np.ndarray | None
    kept: np.ndarray | None
    kept_share: float
    symmetry: str = "C1"

    @property
    def errors_rad(self) -> np.ndarray | None:
        """(n,) geodesic distance to the truth, or to the nearest equivalent of it."""
        if self.true_quaternions is None:
            return None
        return orientation_errors(self.quaternions, self.true_quaternions, self.symmetry).numpy()


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty where there is no file."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"expected JSON in {path}: {error}; write the file again") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content


def read_csv(path: Path, columns: tuple[str, ...]) -> pd.DataFrame | None:
    """A table that has at least these columns and a row; None where there is no file or no row."""
    if not path.is_file():
        return None
    try:
        table = pd.read_csv(path)
    except (UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise ValueError(f"{path}: expected a CSV table, found none: {error}") from error
    missing = [column for column in columns if column not in table]
    if missing:
        raise ValueError(f"{path}: expected a column {missing[0]}, found {', '.join(table.columns)}")
    return None if table.empty else table


def read_predictions(folder: Path, summary: dict[str, Any], model: dict[str, Any]) -> PredictedPoses | None:
    """The predicted poses of a run; None where there are none. ``model`` is its model.json."""
    path = folder / "predictions.star"
    if not path.is_file():
        return None
    star = read_star(path)
    poses = poses_from_star(star)
    if poses is None:
        raise ValueError(f"{path}: expected columns rlnAngleRot, rlnAngleTilt and rlnAnglePsi")
    trace = number_column(star, "cryoforumTrace")
    kept = _kept(folder / "kept.star", star, trace, summary)
    return PredictedPoses(
        quaternions=poses.quaternions,
        true_quaternions=_true_quaternions(folder / "truth.star", star),
        lambda_max=number_column(star, "cryoforumLambdaMax"),
        trace=trace,
        kept=kept,
        kept_share=DEFAULT_KEPT_SHARE if kept is None else float(kept.mean()),
        symmetry=model.get("config", {}).get("symmetry", "C1"),
    )


def _true_quaternions(path: Path, predictions: ParticleStar) -> Tensor | None:
    """True orientations (n, 4) in the order of the predictions, matched by image name."""
    if not path.is_file():
        return None
    star = read_star(path)
    poses = poses_from_star(star)
    if poses is None:
        raise ValueError(f"{path}: expected columns rlnAngleRot, rlnAngleTilt and rlnAnglePsi")
    names = pd.Index(star.particles["rlnImageName"])
    if not names.is_unique:
        raise ValueError(f"{path}: an rlnImageName occurs twice; remove the duplicates")
    wanted = predictions.particles["rlnImageName"]
    rows = names.get_indexer(wanted)
    if (rows < 0).any():
        missing = int((rows < 0).argmax())
        raise ValueError(
            f"{path}: expected the image {wanted.iloc[missing]} of row {missing + 1} in {predictions.path}, "
            "found no row of that name; give the truth of these particles"
        )
    return poses.quaternions[torch.from_numpy(rows)]


def _kept(
    path: Path, predictions: ParticleStar, trace: np.ndarray | None, summary: dict[str, Any]
) -> np.ndarray | None:
    """(n,) bool: which predictions were kept; None where nothing says so."""
    if path.is_file():
        names = read_star(path).particles["rlnImageName"]
        kept = predictions.particles["rlnImageName"].isin(names).to_numpy()
        if not kept.any():
            raise ValueError(f"{path}: expected particles of {predictions.path}, found none of them")
        return kept
    if trace is None:
        return None
    errors, share = summary.get("errors", {}), DEFAULT_KEPT_SHARE
    if "all" in errors and "kept" in errors:
        share = errors["kept"]["count"] / errors["all"]["count"]
    kept = np.zeros(len(trace), dtype=bool)
    kept[select(torch.from_numpy(trace), share).numpy()] = True
    return kept
