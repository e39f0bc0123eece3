"""Poses of cryo-EM particles, each with an uncertainty that means degrees.

The verbs below work on tensors and dataclasses; `cryoforum.commands` does the same on files. Importing this
package is cheap: a name brings its module, and torch, when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what editors and type checkers read; `_HOMES` says the same to Python
    from cryoforum.alignment.aligner import align
    from cryoforum.alignment.config import AlignmentConfig
    from cryoforum.alignment.global_search import SearchConfig
    from cryoforum.alignment.local_refinement import LocalRefinementConfig
    from cryoforum.config import REALISTIC, Config, Imperfections, SimulationConfig, preset
    from cryoforum.curation.selection import select
    from cryoforum.dataset.ctf_parameters import CtfParameters
    from cryoforum.dataset.image_grid import ImageGrid
    from cryoforum.dataset.particle_set import ParticleSet
    from cryoforum.dataset.particles import Particles
    from cryoforum.dataset.pose_errors import orientation_errors, summarise_errors
    from cryoforum.dataset.poses import Poses
    from cryoforum.dataset.predictions import Predictions
    from cryoforum.dataset.split import Split, split_rows
    from cryoforum.dataset.volumes import HalfMaps, Volume
    from cryoforum.distributions.bingham import OrientationPosterior
    from cryoforum.errors import InputError
    from cryoforum.io.particle_files import load_particle_set, read_particle_file, write_particle_file
    from cryoforum.io.predictions import prediction_columns, with_predictions
    from cryoforum.molecules.structures import load_structure
    from cryoforum.network.model import TrainedModel
    from cryoforum.network.model_folder import load_model, save_model
    from cryoforum.network.predict import predict, resampled_to_model
    from cryoforum.reconstruction.fsc import fsc_curve
    from cryoforum.reconstruction.inversion import ReconstructionConfig, reconstruct
    from cryoforum.reconstruction.reference_map import (
        Reference,
        load_reference,
        reference_from_map,
        reference_from_particles,
    )
    from cryoforum.report.page import write_report
    from cryoforum.runtime.reporter import Reporter
    from cryoforum.simulation.ideal import simulate
    from cryoforum.simulation.realistic import simulate_realistic
    from cryoforum.training.calibration import calibrated
    from cryoforum.training.loop import TrainingOptions, train
    from cryoforum.training.lr_finder import RangeTestOptions, learning_rate_range, suggested_rate

_HOMES = {
    "align": "alignment.aligner",
    "AlignmentConfig": "alignment.config",
    "SearchConfig": "alignment.global_search",
    "LocalRefinementConfig": "alignment.local_refinement",
    "load_structure": "molecules.structures",
    "Config": "config",
    "Imperfections": "config",
    "REALISTIC": "config",
    "SimulationConfig": "config",
    "preset": "config",
    "select": "curation.selection",
    "CtfParameters": "dataset.ctf_parameters",
    "ImageGrid": "dataset.image_grid",
    "ParticleSet": "dataset.particle_set",
    "Particles": "dataset.particles",
    "orientation_errors": "dataset.pose_errors",
    "summarise_errors": "dataset.pose_errors",
    "Poses": "dataset.poses",
    "Predictions": "dataset.predictions",
    "Split": "dataset.split",
    "split_rows": "dataset.split",
    "HalfMaps": "dataset.volumes",
    "Volume": "dataset.volumes",
    "OrientationPosterior": "distributions.bingham",
    "InputError": "errors",
    "simulate": "simulation.ideal",
    "simulate_realistic": "simulation.realistic",
    "load_particle_set": "io.particle_files",
    "read_particle_file": "io.particle_files",
    "write_particle_file": "io.particle_files",
    "prediction_columns": "io.predictions",
    "with_predictions": "io.predictions",
    "TrainedModel": "network.model",
    "load_model": "network.model_folder",
    "save_model": "network.model_folder",
    "resampled_to_model": "network.predict",
    "predict": "network.predict",
    "fsc_curve": "reconstruction.fsc",
    "ReconstructionConfig": "reconstruction.inversion",
    "reconstruct": "reconstruction.inversion",
    "Reference": "reconstruction.reference_map",
    "load_reference": "reconstruction.reference_map",
    "reference_from_map": "reconstruction.reference_map",
    "reference_from_particles": "reconstruction.reference_map",
    "write_report": "report.page",
    "Reporter": "runtime.reporter",
    "calibrated": "training.calibration",
    "TrainingOptions": "training.loop",
    "train": "training.loop",
    "RangeTestOptions": "training.lr_finder",
    "learning_rate_range": "training.lr_finder",
    "suggested_rate": "training.lr_finder",
}

__all__ = [
    "AlignmentConfig",
    "Config",
    "CtfParameters",
    "HalfMaps",
    "ImageGrid",
    "Imperfections",
    "InputError",
    "LocalRefinementConfig",
    "OrientationPosterior",
    "ParticleSet",
    "Particles",
    "Poses",
    "Predictions",
    "REALISTIC",
    "RangeTestOptions",
    "ReconstructionConfig",
    "Reference",
    "Reporter",
    "SearchConfig",
    "SimulationConfig",
    "Split",
    "TrainedModel",
    "TrainingOptions",
    "Volume",
    "align",
    "calibrated",
    "fsc_curve",
    "learning_rate_range",
    "load_model",
    "load_particle_set",
    "load_reference",
    "load_structure",
    "orientation_errors",
    "predict",
    "prediction_columns",
    "preset",
    "read_particle_file",
    "reconstruct",
    "reference_from_map",
    "reference_from_particles",
    "resampled_to_model",
    "save_model",
    "select",
    "simulate",
    "simulate_realistic",
    "split_rows",
    "suggested_rate",
    "summarise_errors",
    "train",
    "with_predictions",
    "write_particle_file",
    "write_report",
]


def __dir__() -> list[str]:
    return list(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"cryoforum.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'cryoforum' has no attribute '{name}'")
