"""Batches: shares of simulated images, pairs that are pairs, one domain, and trainings of every head."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from cryoforum.choices import HEADS
from cryoforum.config import AugmentationConfig, Config, NetworkConfig, PreprocessingConfig, TrainingConfig
from cryoforum.dataset.particles import Particles
from cryoforum.dataset.poses import Poses
from cryoforum.dataset.split import Split
from cryoforum.dataset.volumes import Volume
from cryoforum.geometry.point_groups import in_fundamental_domain, symmetric_distance, symmetry_group
from cryoforum.geometry.rotations import geodesic_distance, random_unitquat
from cryoforum.imaging.noise_model import NoiseModel
from cryoforum.molecules.structures import load_structure
from cryoforum.network.preprocessing import Intensity
from cryoforum.reconstruction.reference_map import Reference
from cryoforum.runtime.devices import Compute
from cryoforum.simulation.config import SimulationConfig
from cryoforum.simulation.ideal import simulate
from cryoforum.training.batches import Batch, BatchSource, TrainingImages, simulated_count
from cryoforum.training.data import training_data
from cryoforum.training.loop import train
from cryoforum.training.simulated_images import ImageSimulator, image_simulator

BOX = 16
STILL = AugmentationConfig(rotate=False, mirror=False, max_shift_pixel=0.0)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def config_of(augmentation: AugmentationConfig = STILL, symmetry: str = "C1", **training: Any) -> Config:
    network = NetworkConfig(widths=(4, 8), degree=2, stem_stride=1)
    settings = TrainingConfig(grid_nside=2, grid_count=1, **training)
    return Config(PreprocessingConfig(box=BOX), augmentation, network, settings, symmetry)


@pytest.fixture(scope="module")
def volume() -> Volume:
    return load_structure("4v5d", 32, 11.2)


@pytest.fixture(scope="module")
def particles(volume: Volume) -> Particles:
    return simulate(volume, SimulationConfig(count=60, snr=5.0))


def flat_reference(volume: Volume) -> Reference:
    shells = len(volume.voxels) // 2 + 1
    noise = NoiseModel((), *(torch.ones(1, shells) for _ in range(3)))
    return Reference(volume, None, 12, noise=noise)


@pytest.fixture(scope="module")
def simulator(volume: Volume, particles: Particles) -> ImageSimulator:
    return image_simulator(particles, flat_reference(volume), PreprocessingConfig(box=BOX))


def numbered(config: Config, count: int = 40, simulator: ImageSimulator | None = None) -> BatchSource:
    """Images of which each holds its own number, plus 1, everywhere."""
    images = (torch.arange(count) + 1.0).view(-1, 1, 1).expand(-1, BOX, BOX)
    particles = TrainingImages(images, random_unitquat(count, generator=seeded()), None, 20.0)
    return BatchSource(particles, config, simulator, seeded(1))


def rows_of(batch: Batch) -> Tensor:
    return batch.images[:, 0, 0].long() - 1


@pytest.mark.parametrize("loss", ["likelihood", "regression", "pairs"])
def test_images_keep_their_orientations_and_every_two_form_a_pair(loss: str) -> None:
    source = numbered(config_of(batch_size=10, loss=loss))
    batch = source.next()
    rows = rows_of(batch)
    assert len(rows.unique()) == 10
    assert torch.equal(batch.orientations, source.particles.orientations[rows])
    assert batch.pairs.shape == (2, 45) and bool((batch.pairs[0] < batch.pairs[1]).all())


@pytest.mark.parametrize("pairs", ["random", "stratified"])
@pytest.mark.parametrize("batch_size", [2, 10, 11])
def test_a_batch_of_drawn_pairs_holds_these_alone(pairs: str, batch_size: int) -> None:
    source = numbered(config_of(batch_size=batch_size, loss="pairs", pairs=pairs))
    for _ in range(5):
        batch = source.next()
        rows = rows_of(batch)
        assert len(rows) == 2 * (batch_size // 2)
        assert torch.equal(batch.orientations, source.particles.orientations[rows])
        assert batch.pairs.flatten().sort().values.tolist() == list(range(len(rows)))
        first, second = rows[batch.pairs]
        assert bool((first != second).all())


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("batch_size", [4, 20, 66, 67, 69])
def test_never_more_images_are_simulated_than_a_batch_holds(share: float, batch_size: int) -> None:
    count = simulated_count(config_of(replace(STILL, simulated_share=share), batch_size=batch_size))
    assert count % 2 == 0 and 0 <= count <= batch_size and abs(count - share * batch_size) <= 1


@pytest.mark.parametrize(("loss", "pairs"), [("likelihood", "all"), ("pairs", "all"), ("pairs", "random")])
@pytest.mark.parametrize(("batch_size", "share"), [(20, 0.4), (21, 0.4), (20, 1.0), (21, 1.0)])
def test_simulated_images_have_their_share_of_a_batch(
    simulator: ImageSimulator, loss: str, pairs: str, batch_size: int, share: float
) -> None:
    config = config_of(replace(STILL, simulated_share=share), batch_size=batch_size, loss=loss, pairs=pairs)
    source = numbered(config, simulator=simulator)
    batch = source.next()
    drawn = pairs != "all"
    assert len(batch.images) == len(batch.orientations) == batch_size - drawn * batch_size % 2
    flat = (batch.images == batch.images[:, :1, :1]).all(2).all(1)  # the numbered ones
    simulated = simulated_count(config)
    assert int((~flat).sum()) == simulated == round(share * batch_size / 2) * 2
    rows = rows_of(batch)[flat]
    assert torch.equal(batch.orientations[flat], source.particles.orientations[rows])
    if drawn:
        assert batch.pairs.flatten().sort().values.tolist() == list(range(len(batch.images)))
        assert torch.equal(flat[batch.pairs[0]], flat[batch.pairs[1]])
    else:
        assert batch.pairs.shape[1] == batch_size * (batch_size - 1) // 2


@pytest.mark.parametrize("batch_size", [8, 9])
@pytest.mark.parametrize("pairs", ["all", "random", "stratified"])
def test_all_images_may_be_simulated(simulator: ImageSimulator, pairs: str, batch_size: int) -> None:
    config = config_of(
        AugmentationConfig(simulated_share=1.0), batch_size=batch_size, loss="pairs", pairs=pairs
    )
    batch = numbered(config, simulator=simulator).next()
    assert 8 <= len(batch.images) == len(batch.orientations) <= batch_size
    assert bool(torch.isfinite(batch.images).all()) and int(batch.pairs.max()) == len(batch.images) - 1


@pytest.mark.parametrize("standardise", ["image", "set"])
def test_images_are_made_where_they_are_wanted(
    particles: Particles, volume: Volume, standardise: str
) -> None:
    """On the device that holds no numbers whatever would mix two devices fails, as it would on a GPU."""
    nowhere = torch.device("meta")
    changes = AugmentationConfig(noise=0.3, defocus_angstrom=500.0, contrast=0.1, simulated_share=0.5)
    config = replace(
        config_of(changes, batch_size=12), preprocessing=PreprocessingConfig(box=BOX, standardise=standardise)
    )
    reference, intensity = flat_reference(volume), Intensity(0.0, 1.0)
    simulator = image_simulator(particles, reference, config.preprocessing, intensity, nowhere)
    inputs = replace(numbered(config).particles, ctf=particles.ctf)
    source = BatchSource(inputs, config, simulator, seeded(1), nowhere)
    batch = source.next()
    assert batch.images.device == nowhere and batch.images.shape == (12, BOX, BOX)
    assert batch.orientations.device.type == "cpu"


@pytest.mark.parametrize("symmetry", ["C2", "D2"])
def test_in_one_domain_all_orientations_are_in_it(simulator: ImageSimulator, symmetry: str) -> None:
    turned = AugmentationConfig(simulated_share=0.5)
    group = symmetry_group(symmetry)
    config = config_of(turned, symmetry, batch_size=20)
    batches = {}
    for handling in ("group", "domain"):
        source = numbered(replace(config, symmetry_handling=handling), simulator=simulator)
        batches[handling] = source.next()
    inside, anywhere = (batches[handling].orientations for handling in ("domain", "group"))
    assert torch.equal(batches["domain"].images, batches["group"].images)
    assert float(symmetric_distance(inside, anywhere, group).max()) < 1e-3
    assert float(geodesic_distance(in_fundamental_domain(inside, group), inside).max()) < 1e-3
    assert float(geodesic_distance(inside, anywhere).max()) > 1


@pytest.mark.parametrize(
    ("handling", "augmentation"),
    [("group", STILL), ("domain", STILL), ("group", AugmentationConfig(max_shift_pixel=0.0))],
)
def test_pairs_are_spread_over_the_distances_that_the_loss_sees(
    handling: Any, augmentation: AugmentationConfig
) -> None:
    config = Config(
        PreprocessingConfig(box=8),
        augmentation,
        NetworkConfig(widths=(4,), stem_stride=1, head="qcqp"),
        TrainingConfig(batch_size=640, loss="pairs", pairs="stratified"),
        symmetry="O",
        symmetry_handling=handling,
    )
    poses = Poses(random_unitquat(2000, generator=seeded()), torch.zeros(2000, 2))
    names = tuple(map(str, range(2000)))
    particles = Particles(torch.randn(2000, 8, 8, generator=seeded(1)), 4.0, names, poses)
    rows = torch.arange(2000)
    inputs = training_data(particles, config, Split(rows, rows[:10], rows[:0]), Compute()).particles
    batch = BatchSource(inputs, config, None, seeded(2)).next()
    first, second = batch.orientations[batch.pairs]
    distance = symmetric_distance(first, second, symmetry_group(config.learned_symmetry))
    counts = torch.histc(distance, bins=8, min=0, max=float(distance.max()) * 1.001)
    assert int(counts.min()) > 30 and int(counts.max()) < 50


@pytest.mark.parametrize("head", list(HEADS))
@pytest.mark.parametrize("loss", ["likelihood", "pairs"])
def test_every_head_learns_a_few_images_by_heart(particles: Particles, head: Any, loss: Any) -> None:
    settings = TrainingConfig(
        image_passes=480,
        batch_size=12,
        loss=loss,
        max_learning_rate=1e-2,
        weight_decay=0.0,
        grid_nside=2,
        grid_count=2,
    )
    network = NetworkConfig(widths=(8, 16), head=head, degree=2, head_nside=2)
    config = Config(PreprocessingConfig(box=BOX), STILL, network, settings)
    rows = torch.arange(12)
    model = train(particles, config, Split(rows, rows, rows[:0]))
    assert model.validation_median_rad < 0.3
