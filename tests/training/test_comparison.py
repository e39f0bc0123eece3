"""Configurations beside each other, each once a seed."""

from dataclasses import replace

import pytest

from cryoforum.config import Config, NetworkConfig, PreprocessingConfig, TrainingConfig
from cryoforum.dataset.particles import Particles
from cryoforum.dataset.pose_errors import orientation_errors
from cryoforum.dataset.split import split_rows
from cryoforum.errors import InputError
from cryoforum.molecules.structures import load_structure
from cryoforum.network.predict import predict
from cryoforum.simulation.config import SimulationConfig
from cryoforum.simulation.ideal import simulate
from cryoforum.training.comparison import compare
from cryoforum.training.loop import train
from cryoforum.training.options import TrainingOptions

SMALL = Config(
    PreprocessingConfig(box=16),
    network=NetworkConfig(widths=(4, 8), degree=1),
    training=TrainingConfig(image_passes=999, batch_size=8, grid_nside=2, grid_count=1),
)


@pytest.fixture(scope="module")
def particles() -> Particles:
    return simulate(load_structure("4v5d", 32, 11.2), SimulationConfig(count=40, snr=5.0))


def test_each_row_is_a_training_measured_on_the_test_part(particles: Particles) -> None:
    configs = {"bingham": SMALL, "qcqp": replace(SMALL, network=replace(SMALL.network, head="qcqp"))}
    split = split_rows(40, 0.2, 0.3)
    table = compare(configs, particles, split, image_passes=16, seeds=(3, 4))
    assert list(zip(table["name"], table["seed"], strict=True)) == [
        *(("bingham", 3), ("bingham", 4)),
        *(("qcqp", 3), ("qcqp", 4)),
    ]
    assert (table["count"] == len(split.test)).all() and (table["seconds"] > 0).all()
    config = replace(SMALL, training=replace(SMALL.training, image_passes=16))
    model = train(particles, config, split, TrainingOptions(seed=4))
    found = predict(model, particles.select(split.test)).posterior.mode
    assert particles.poses is not None
    errors = orientation_errors(found, particles.poses.quaternions[split.test])
    assert table["median_rad"][1] == pytest.approx(float(errors.double().quantile(0.5)), rel=1e-4)


def test_without_a_test_part_nothing_is_compared(particles: Particles) -> None:
    with pytest.raises(InputError, match="a split with a test part"):
        compare({"one": SMALL}, particles, split_rows(40, 0.2, 0.0), image_passes=8)
