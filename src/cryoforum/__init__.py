"""Poses of cryo-EM particles, each with an uncertainty that means degrees.

The verbs below work on tensors and dataclasses; `cryoforum.commands` does the same on files. Importing this
package is cheap: a name brings its module, and torch, when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what editors and type checkers read; `_NAMES` says the same to Python
    from cryoforum.alignment.aligner import align as align
    from cryoforum.alignment.config import AlignmentConfig as AlignmentConfig
    from cryoforum.alignment.global_search import SearchConfig as SearchConfig
    from cryoforum.alignment.image_likelihood import ImageLikelihood as ImageLikelihood
    from cryoforum.alignment.local_refinement import LocalRefinementConfig as LocalRefinementConfig
    from cryoforum.choices import register_backbone as register_backbone
    from cryoforum.choices import register_head as register_head
    from cryoforum.choices import register_loss as register_loss
    from cryoforum.config import Config as Config
    from cryoforum.config import preset as preset
    from cryoforum.curation.selection import select as select
    from cryoforum.dataset.ctf_parameters import CtfParameters as CtfParameters
    from cryoforum.dataset.image_grid import ImageGrid as ImageGrid
    from cryoforum.dataset.levelling import levelled as levelled
    from cryoforum.dataset.particle_set import ParticleSet as ParticleSet
    from cryoforum.dataset.particles import Particles as Particles
    from cryoforum.dataset.pose_errors import orientation_errors as orientation_errors
    from cryoforum.dataset.pose_errors import summarise_errors as summarise_errors
    from cryoforum.dataset.poses import Poses as Poses
    from cryoforum.dataset.predictions import Predictions as Predictions
    from cryoforum.dataset.split import Split as Split
    from cryoforum.dataset.split import split_rows as split_rows
    from cryoforum.dataset.volumes import HalfMaps as HalfMaps
    from cryoforum.dataset.volumes import Volume as Volume
    from cryoforum.distributions.bingham import OrientationPosterior as OrientationPosterior
    from cryoforum.errors import InputError as InputError
    from cryoforum.geometry.so3_grid import rotation_grid as rotation_grid
    from cryoforum.imaging.ctf import ctf_image as ctf_image
    from cryoforum.imaging.images_of_maps import project as project
    from cryoforum.io.load_and_save import load_map as load_map
    from cryoforum.io.load_and_save import load_particles as load_particles
    from cryoforum.io.load_and_save import predictions_from_file as predictions_from_file
    from cryoforum.io.load_and_save import save_map as save_map
    from cryoforum.io.load_and_save import save_particles as save_particles
    from cryoforum.io.particle_files import load_particle_set as load_particle_set
    from cryoforum.io.particle_files import read_particle_file as read_particle_file
    from cryoforum.io.particle_files import write_particle_file as write_particle_file
    from cryoforum.io.predictions import prediction_columns as prediction_columns
    from cryoforum.io.predictions import with_predictions as with_predictions
    from cryoforum.molecules.structures import load_structure as load_structure
    from cryoforum.network.density import log_density as log_density
    from cryoforum.network.density import modes as modes
    from cryoforum.network.matrix_heads import register_matrix_head as register_matrix_head
    from cryoforum.network.model import TrainedModel as TrainedModel
    from cryoforum.network.model_folder import load_model as load_model
    from cryoforum.network.model_folder import save_model as save_model
    from cryoforum.network.predict import predict as predict
    from cryoforum.network.predict import resampled_to_model as resampled_to_model
    from cryoforum.reconstruction.fsc import fsc_curve as fsc_curve
    from cryoforum.reconstruction.inversion import ReconstructionConfig as ReconstructionConfig
    from cryoforum.reconstruction.inversion import backproject as backproject
    from cryoforum.reconstruction.inversion import reconstruct as reconstruct
    from cryoforum.reconstruction.reference_files import load_reference as load_reference
    from cryoforum.reconstruction.reference_map import Reference as Reference
    from cryoforum.reconstruction.reference_map import reference_from_map as reference_from_map
    from cryoforum.reconstruction.reference_map import reference_from_particles as reference_from_particles
    from cryoforum.refinement.initial_model import InitialModelConfig as InitialModelConfig
    from cryoforum.refinement.initial_model import initial_model as initial_model
    from cryoforum.refinement.refine import RefinementConfig as RefinementConfig
    from cryoforum.refinement.refine import refine as refine
    from cryoforum.report.page import write_report as write_report
    from cryoforum.runtime.reporter import Reporter as Reporter
    from cryoforum.runtime.reporter import TrainingProgress as TrainingProgress
    from cryoforum.simulation.config import REALISTIC as REALISTIC
    from cryoforum.simulation.config import Imperfections as Imperfections
    from cryoforum.simulation.config import SimulationConfig as SimulationConfig
    from cryoforum.simulation.ideal import simulate as simulate
    from cryoforum.simulation.realistic import simulate_realistic as simulate_realistic
    from cryoforum.training.calibration import calibrated as calibrated
    from cryoforum.training.comparison import compare as compare
    from cryoforum.training.loop import train as train
    from cryoforum.training.lr_finder import RangeTestOptions as RangeTestOptions
    from cryoforum.training.lr_finder import learning_rate_range as learning_rate_range
    from cryoforum.training.lr_finder import suggested_rate as suggested_rate
    from cryoforum.training.options import TrainingOptions as TrainingOptions

_NAMES = {  # by module
    "alignment.aligner": "align",
    "alignment.config": "AlignmentConfig",
    "alignment.global_search": "SearchConfig",
    "alignment.image_likelihood": "ImageLikelihood",
    "alignment.local_refinement": "LocalRefinementConfig",
    "choices": "register_backbone register_head register_loss",
    "config": "Config preset",
    "curation.selection": "select",
    "dataset.ctf_parameters": "CtfParameters",
    "dataset.image_grid": "ImageGrid",
    "dataset.particle_set": "ParticleSet",
    "dataset.particles": "Particles",
    "dataset.pose_errors": "orientation_errors summarise_errors",
    "dataset.poses": "Poses",
    "dataset.predictions": "Predictions",
    "dataset.levelling": "levelled",
    "dataset.split": "Split split_rows",
    "dataset.volumes": "HalfMaps Volume",
    "distributions.bingham": "OrientationPosterior",
    "errors": "InputError",
    "geometry.so3_grid": "rotation_grid",
    "imaging.ctf": "ctf_image",
    "imaging.images_of_maps": "project",
    "io.load_and_save": "load_map load_particles predictions_from_file save_map save_particles",
    "io.particle_files": "load_particle_set read_particle_file write_particle_file",
    "io.predictions": "prediction_columns with_predictions",
    "molecules.structures": "load_structure",
    "network.density": "log_density modes",
    "network.matrix_heads": "register_matrix_head",
    "network.model": "TrainedModel",
    "network.model_folder": "load_model save_model",
    "network.predict": "predict resampled_to_model",
    "reconstruction.fsc": "fsc_curve",
    "reconstruction.inversion": "ReconstructionConfig backproject reconstruct",
    "reconstruction.reference_files": "load_reference",
    "reconstruction.reference_map": "Reference reference_from_map reference_from_particles",
    "refinement.initial_model": "InitialModelConfig initial_model",
    "refinement.refine": "RefinementConfig refine",
    "report.page": "write_report",
    "runtime.reporter": "Reporter TrainingProgress",
    "simulation.config": "Imperfections REALISTIC SimulationConfig",
    "simulation.ideal": "simulate",
    "simulation.realistic": "simulate_realistic",
    "training.calibration": "calibrated",
    "training.comparison": "compare",
    "training.loop": "train",
    "training.lr_finder": "RangeTestOptions learning_rate_range suggested_rate",
    "training.options": "TrainingOptions",
}
_HOMES = {name: module for module, names in _NAMES.items() for name in names.split()}

__all__ = sorted(_HOMES)


def __dir__() -> list[str]:
    return list(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"cryoforum.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'cryoforum' has no attribute '{name}'")
