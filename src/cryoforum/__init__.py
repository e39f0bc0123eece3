"""Orientations of cryo-EM particles, each with an honest belief.

The verbs below work on tensors and dataclasses, without files; `cryoforum.io` reads and writes files.
Importing this package is cheap: a name brings its module, and torch, when it is first used.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "load_structure": "commands.structures",
    "simulate": "imaging.simulation",
    "train": "training.loop",
    "TrainingOptions": "training.loop",
    "split_rows": "dataset.split",
    "learning_rate_range": "training.lr_finder",
    "RangeTestOptions": "training.lr_finder",
    "suggested_rate": "training.lr_finder",
    "predict": "network.predict",
    "calibrated": "training.calibration",
    "matched_to_model": "network.predict",
    "align": "alignment.fitting",
    "AlignmentConfig": "alignment.aligner",
    "load_reference": "reconstruction.reference_map",
    "reference_from_particles": "reconstruction.reference_map",
    "reference_from_map": "reconstruction.reference_map",
    "select": "curation.selection",
    "reconstruct": "reconstruction.inversion",
    "summarise_errors": "dataset.pose_errors",
    "load_model": "network.model_folder",
    "save_model": "network.model_folder",
    "read_star": "io.relion.star_files",
    "write_star": "io.relion.star_files",
    "joined": "io.join",
    "particles_from_table": "io.relion.particles",
    "write_report": "report.page",
    "ImageGrid": "dataset.image_grid",
    "Particles": "dataset.particles",
    "Poses": "dataset.poses",
    "Predictions": "dataset.predictions",
    "Volume": "dataset.volumes",
    "HalfMaps": "dataset.volumes",
    "CtfParameters": "dataset.ctf_parameters",
    "OrientationPosterior": "distributions.bingham",
    "SimulationConfig": "config",
    "Config": "config",
    "preset": "config",
}

__all__ = list(_HOMES)


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"cryoforum.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'cryoforum' has no attribute '{name}'")
