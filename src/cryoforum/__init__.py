"""Orientations of cryo-EM particles, each with an honest belief.

The verbs below work on tensors and dataclasses, without files; `cryoforum.io` reads and writes files.
Importing this package is cheap: a name brings its module, and torch, when it is first used.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "load_structure": "imaging.potential",
    "simulate": "imaging.simulation",
    "train": "training.loop",
    "split_rows": "training.loop",
    "learning_rate_range": "training.loop",
    "suggested_rate": "training.loop",
    "predict": "network.predict",
    "calibrated": "network.predict",
    "matched_to_model": "network.predict",
    "find_poses": "alignment.fitting",
    "PosingConfig": "alignment.aligner",
    "load_reference": "reconstruction.reference_map",
    "reference_from_particles": "commands.train",
    "reference_from_map": "reconstruction.reference_map",
    "select": "curation.selection",
    "reconstruct": "reconstruction.inversion",
    "summarise_errors": "reconstruction.fsc",
    "load_model": "network.model_folder",
    "save_model": "network.model_folder",
    "read_star": "dataset.particle_table",
    "write_star": "dataset.particle_table",
    "joined": "io.join",
    "particles_from_star": "io.relion.particles",
    "write_report": "report.page",
    "Sampling": "dataset.resampling",
    "Particles": "dataset.particles",
    "Poses": "dataset.particles",
    "Predictions": "dataset.particles",
    "Volume": "dataset.particles",
    "HalfMaps": "dataset.particles",
    "Optics": "imaging.ctf",
    "OrientationBelief": "distributions.bingham",
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
