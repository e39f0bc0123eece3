"""A head and a loss from outside the package: this one file adds them, trains with them and keeps the model."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from helpers.untyped import untyped
from torch import Tensor

from cryoforum.choices import HEADS, LOSSES, register_head, register_loss
from cryoforum.config import Config, NetworkConfig, PreprocessingConfig, TrainingConfig, with_settings
from cryoforum.dataset.particles import Particles
from cryoforum.dataset.split import split_rows
from cryoforum.distributions.bingham import OrientationPosterior
from cryoforum.errors import InputError
from cryoforum.geometry.rotations import geodesic_distance
from cryoforum.molecules.structures import load_structure
from cryoforum.network.heads import Likelihood, mean_posterior
from cryoforum.network.matrix_heads import procrustes_matrix, register_matrix_head
from cryoforum.network.model_folder import load_model, save_model
from cryoforum.network.predict import predict
from cryoforum.runtime.devices import Compute
from cryoforum.simulation.config import SimulationConfig
from cryoforum.simulation.ideal import simulate
from cryoforum.training.loop import train
from cryoforum.training.losses import Loss


@dataclass(frozen=True)
class CertainHead:
    """Four numbers, which are a quaternion once normalised; every answer is equally certain."""

    size: int = 4
    starts_small: bool = False

    def orientation(self, numbers: Tensor) -> Tensor:
        return torch.nn.functional.normalize(numbers, dim=-1)

    def posterior(self, numbers: Tensor) -> OrientationPosterior:
        mode = self.orientation(numbers)
        return OrientationPosterior(10 * (torch.eye(4) - mode[:, :, None] * mode[:, None, :]))

    def posterior_of_copies(self, numbers: Sequence[Tensor], turns: Tensor) -> OrientationPosterior:
        return mean_posterior([self.posterior(one) for one in numbers], turns, "C1")

    def expected_error(
        self, numbers: Sequence[Tensor], turns: Tensor, posterior: OrientationPosterior, sharpness: float
    ) -> Tensor:
        return posterior.root_mean_square_angle

    def features(self, rotations: Tensor) -> Tensor:
        return rotations

    def log_density(self, numbers: Tensor, features: Tensor) -> Tensor:
        return 10 * (self.orientation(numbers) @ features.T).square()

    def normalised_log_density(self, numbers: Tensor, rotations: Tensor) -> Tensor:
        raise NotImplementedError

    def likelihood(
        self, settings: TrainingConfig, generator: torch.Generator, compute: Compute
    ) -> Likelihood:
        raise NotImplementedError


def squared_error(config: Config, generator: torch.Generator, compute: Compute) -> Loss:
    head = HEADS.chosen(config.network.head)(config.network, config.symmetry)

    def loss(numbers: Tensor, truth: Tensor, pairs: Tensor, progress: float, step: int) -> Tensor:
        return geodesic_distance(head.orientation(numbers), truth).square().mean()

    return loss


@pytest.fixture
def added() -> Iterator[None]:
    register_head("certain", lambda config, symmetry: CertainHead())
    register_loss("squared", squared_error)
    yield
    del HEADS["certain"], LOSSES["squared"]


@pytest.fixture(scope="module")
def particles() -> Particles:
    return simulate(load_structure("4v5d", 32, 11.2), SimulationConfig(count=20, snr=5.0))


@pytest.mark.usefixtures("added")
def test_a_head_and_a_loss_from_outside_train_and_are_kept(particles: Particles, tmp_path: Path) -> None:
    network = NetworkConfig(widths=(4, 8), head="certain")
    settings = TrainingConfig(image_passes=16, batch_size=8, loss="squared")
    config = Config(PreprocessingConfig(box=16), network=network, training=settings)
    model = train(particles, config, split_rows(20))
    assert model.log[-1]["step"] == 2
    save_model(model, tmp_path / "model")
    loaded = load_model(tmp_path / "model")
    assert isinstance(loaded.head, CertainHead) and loaded.config == config
    before, after = (predict(one, particles).posterior.concentration for one in (model, loaded))
    assert torch.equal(before, after)
    assert with_settings(Config(), ["network.head=certain"]).network.head == "certain"


def test_a_model_whose_head_is_not_there_is_refused_by_its_name(
    particles: Particles, tmp_path: Path, added: None
) -> None:
    config = Config(PreprocessingConfig(box=16), network=NetworkConfig(widths=(4, 8), head="certain"))
    settings = replace(config.training, image_passes=8, batch_size=8, loss="squared")
    save_model(train(particles, replace(config, training=settings), split_rows(20)), tmp_path / "model")
    del HEADS["certain"]
    try:
        with pytest.raises(ValueError, match="register 'certain' first, by register_head"):
            load_model(tmp_path / "model")
    finally:
        HEADS["certain"] = None


def test_a_matrix_head_of_nine_numbers_is_one_line(particles: Particles, tmp_path: Path) -> None:
    register_matrix_head("mine", 9, procrustes_matrix)
    try:
        network = NetworkConfig(widths=(4, 8), head="mine")
        settings = TrainingConfig(image_passes=16, batch_size=8)
        model = train(
            particles, Config(PreprocessingConfig(box=16), network=network, training=settings), split_rows(20)
        )
        save_model(model, tmp_path / "model")
        assert load_model(tmp_path / "model").head.size == 9
    finally:
        del HEADS["mine"]


def test_names_that_are_taken_and_wrong_matrices_are_refused() -> None:
    with pytest.raises(InputError, match="another name for a head than quaternion"):
        register_head("qcqp", lambda config, symmetry: CertainHead())
    with pytest.raises(InputError, match="matrices .n, 4, 4. of head 'flat', found shape"):
        register_matrix_head("flat", 4, lambda numbers: numbers)
    with pytest.raises(InputError, match="symmetric matrices of head 'askew'"):
        register_matrix_head("askew", 16, lambda numbers: numbers.view(-1, 4, 4))
    with pytest.raises(InputError, match="what makes the loss 'none', found NoneType"):
        register_loss("none", untyped(None))
    assert not {"flat", "askew"} & HEADS.keys() and "none" not in LOSSES
