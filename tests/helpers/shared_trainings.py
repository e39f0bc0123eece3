"""A few steps of several trainings, for `test_distributed`: run by one process, or by several that share batches.

As a script it writes what its process found to ``<argument>-<rank>.pt``.
"""

import math
import sys
import time
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch

from cryoforum.config import AugmentationConfig, Config, NetworkConfig, PreprocessingConfig, TrainingConfig
from cryoforum.dataset.particles import Particles
from cryoforum.dataset.split import Split
from cryoforum.imaging.noise_model import NoiseModel
from cryoforum.molecules.structures import load_structure
from cryoforum.network.model import TrainedModel
from cryoforum.reconstruction.reference_map import Reference
from cryoforum.runtime.devices import Compute
from cryoforum.runtime.distributed import process_rank_and_count
from cryoforum.simulation.config import SimulationConfig
from cryoforum.simulation.ideal import simulate
from cryoforum.training import loop as training
from cryoforum.training import trainer
from cryoforum.training.data import training_data
from cryoforum.training.loop import train
from cryoforum.training.options import TrainingOptions
from cryoforum.training.trainer import Trainer

BOX, COUNT, STEPS = 16, 41, 4
EVERY_CHANGE = AugmentationConfig(noise=0.3, defocus_angstrom=500.0, contrast=0.1, simulated_share=0.5)
RESIDUAL = NetworkConfig(widths=(8, 16), degree=2)
VGG = NetworkConfig(backbone="vgg", widths=(8, 12, 16), head="qcqp", pooling="gem", activation="prelu")
SETTINGS = TrainingConfig(batch_size=12, grid_nside=2, grid_count=2)
PREPROCESSING = PreprocessingConfig(box=BOX)

TRAININGS = {
    "likelihood": Config(PREPROCESSING, EVERY_CHANGE, RESIDUAL, SETTINGS),
    "all pairs": Config(PREPROCESSING, AugmentationConfig(), VGG, replace(SETTINGS, loss="pairs")),
    "drawn pairs": Config(
        replace(PREPROCESSING, standardise="set"),
        EVERY_CHANGE,
        replace(RESIDUAL, head="svd"),
        replace(SETTINGS, loss="pairs", pairs="stratified", auxiliary="constant", l2=1e-3),
        symmetry="C2",
    ),
    "regression": Config(
        PREPROCESSING,
        replace(EVERY_CHANGE, simulated_share=1.0),
        replace(RESIDUAL, head="gram_schmidt"),
        replace(SETTINGS, loss="regression"),
    ),
}


def some_particles() -> tuple[Particles, Reference]:
    """Simulated ones, and their map with noise."""
    volume = load_structure("4v5d", 32, 11.2)
    flat = torch.ones(1, 17)
    reference = Reference(volume, None, 12, noise=NoiseModel((), 100 * flat, flat, flat))
    return simulate(volume, SimulationConfig(count=COUNT, snr=5.0)), reference


def first_steps(config: Config) -> dict[str, Any]:
    """Losses, gradients and statistics of the first steps, the last weights and the validation errors."""
    particles, reference = some_particles()
    rows = torch.arange(COUNT)
    split = Split(rows[:30], rows[30:], rows[:0])
    data = training_data(particles, config, split, Compute(), reference=reference)
    one = Trainer(config, data, Compute(), TrainingOptions(seed=5))
    found: dict[str, Any] = {"losses": [], "gradients": [], "statistics": []}
    for step in range(STEPS):
        found["losses"].append(one.step(one.batches.next(), 1e-3, 0.9, step / STEPS))
        found["gradients"].append([w.grad.clone() for w in one.network.parameters() if w.grad is not None])
        found["statistics"].append([values.clone() for values in one.network.buffers()])
    found["weights"] = one.network.state_dict()
    found["validation"] = one.validate(1.0)
    return found


def train_for_a_moment(hurry: float, seed: int = 0) -> TrainedModel:
    """A training of half a second by a clock that is ``hurry`` times too fast."""
    particles, _ = some_particles()
    config = replace(TRAININGS["regression"], augmentation=AugmentationConfig())
    rows, clock = torch.arange(COUNT), time.monotonic
    training.time = SimpleNamespace(  # type: ignore[assignment]
        monotonic=lambda: hurry * clock(), thread_time=time.thread_time
    )
    return train(
        particles, config, Split(rows[:30], rows[30:], rows[:0]), TrainingOptions(seed, max_minutes=0.5 / 60)
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    trainer.GRADIENT_NORM_LIMIT = math.inf  # which would hide a wrong factor of the gradient
    rank, _ = process_rank_and_count()
    found: dict[str, Any] = {name: first_steps(config) for name, config in TRAININGS.items()}
    found["log by the clock"] = train_for_a_moment(hurry=1 + 2 * rank).log
    try:
        train_for_a_moment(hurry=1, seed=rank)
    except ValueError as error:
        found["refused"] = str(error)
    torch.save(found, f"{sys.argv[1]}-{rank}.pt")
