"""The whole density of a network, judged by sums over all rotations and by two modes that were put in."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

import cryoforum as cf
from cryoforum.config import Config, NetworkConfig, PreprocessingConfig
from cryoforum.geometry.point_groups import symmetry_group
from cryoforum.geometry.rotations import compose, geodesic_distance, random_unitquat
from cryoforum.network.model import OrientationNetwork

BOX = 16


class Said(torch.nn.Module):
    """In place of a network: the same numbers whatever the image."""

    def __init__(self, numbers: torch.Tensor) -> None:
        super().__init__()
        self.numbers = torch.nn.Parameter(numbers)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.numbers[: len(images)]


def model(head: str, symmetry: str = "C1", sharpness: float = 1.0) -> cf.TrainedModel:
    network = NetworkConfig(head=head, widths=(4, 8), degree=3, head_nside=3)
    config = Config(PreprocessingConfig(box=BOX), network=network, symmetry=symmetry)
    torch.manual_seed(0)
    made = OrientationNetwork(network, BOX, config.learned_symmetry)
    torch.nn.init.normal_(made.dense.weight, std=0.05)
    return cf.TrainedModel(made, config, BOX, 4.0, 1.0, [], {}, sharpness=sharpness)


def particles(count: int = 3) -> cf.Particles:
    return cf.Particles.from_arrays(
        torch.randn(count, BOX, BOX, generator=torch.Generator().manual_seed(1)), 4.0
    )


@pytest.mark.parametrize(
    ("head", "symmetry", "sharpness"),
    [
        ("exponential_family", "C1", 1.0),
        ("exponential_family", "C2", 2.0),
        ("qcqp", "C1", 0.5),
        ("qcqp", "C3", 1.0),
        ("softmax_grid", "C1", 1.5),
        ("softmax_grid", "D2", 1.0),
    ],
)
def test_densities_have_mean_one_and_equal_values_at_equivalents(
    head: str, symmetry: str, sharpness: float
) -> None:
    asked = model(head, symmetry, sharpness)
    density = cf.log_density(asked, particles(), 8)
    torch.testing.assert_close(density.exp().mean(1), torch.ones(3), rtol=0.01, atol=0)
    assert density.std() > 0.05
    some = random_unitquat(5, generator=torch.Generator().manual_seed(3))
    expected = cf.log_density(asked, particles(), some)
    for element in symmetry_group(symmetry):
        found = cf.log_density(asked, particles(), compose(element, some))
        torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)


def test_a_single_mode_is_that_of_the_posterior() -> None:
    asked = model("qcqp", sharpness=3.0)
    posterior = cf.predict(asked, particles(), tta=1).posterior
    some = random_unitquat(5, generator=torch.Generator().manual_seed(3))
    expected = posterior.log_density(some.expand(3, -1, -1))
    torch.testing.assert_close(cf.log_density(asked, particles(), some), expected)
    table = cf.modes(asked, particles())
    assert table["mode"].tolist() == [1, 1, 1]
    assert table["probability"].tolist() == pytest.approx([1, 1, 1], abs=1e-4)
    angles = table[["rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi"]].to_numpy()
    found = Rotation.from_euler("ZYZ", angles, degrees=True)
    assert (found * Rotation.from_quat(posterior.mode.numpy()).inv()).magnitude().max() < np.radians(0.5)


@pytest.mark.parametrize("symmetry", ["C1", "C2"])
def test_two_modes_are_found_with_their_probabilities(symmetry: str) -> None:
    """Log densities that are highest at two known rotations, the second one lower."""
    asked = model("exponential_family", symmetry)
    polynomials = asked.head.polynomials  # type: ignore[attr-defined]
    first, second = Rotation.from_euler("ZYZ", [[20, 50, 70], [100, 110, -60]], degrees=True)
    places = torch.from_numpy(np.stack([first.as_quat(), second.as_quat()])).float()
    height = polynomials.features(places)
    ratio = torch.tensor([[1.0, 0.9], [1.0, 1.0]]) * 0.12
    asked = replace(asked, network=Said(ratio @ height))
    table = cf.modes(asked, particles(2), count=2)
    assert table["particle"].tolist() == [0, 0, 1, 1] and table["rlnImageName"][2] == "000002@images"
    assert (table.groupby("particle")["probability"].sum() <= 1 + 1e-5).all()
    grid = cf.rotation_grid(9)
    density = cf.log_density(asked, particles(2), grid).exp()
    group = symmetry_group(symmetry)
    to_each = torch.stack(
        [geodesic_distance(compose(group, place)[:, None], grid).amin(0) for place in places]
    )
    for row in (0, 1):
        own = table[table["particle"] == row]
        angles = own[["rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi"]].to_numpy()
        tops = torch.from_numpy(Rotation.from_euler("ZYZ", angles, degrees=True).as_quat()).float()
        found = torch.stack([geodesic_distance(compose(group, p)[:, None], tops).amin(0) for p in places])
        assert (found.amin(0) < 0.15).all() and set(found.argmin(0).tolist()) == {0, 1}
        values = cf.log_density(asked, particles(2), tops)[row]
        torch.testing.assert_close(torch.tensor(own["log_density"].tolist()), values, atol=1e-3, rtol=0)
        near = to_each.argmin(0)
        share = float(density[row][near == 0].sum() / density[row].sum())
        of_first = float(own["probability"].iloc[int(found[0].argmin())])
        rest = 1 - float(own["probability"].sum())
        assert of_first == pytest.approx(share, abs=0.03 + rest)
    first_row = table[table["particle"] == 0]["probability"].tolist()
    assert first_row[0] > first_row[1] + 0.02


def test_what_does_not_fit_is_refused() -> None:
    asked = model("qcqp")
    other = cf.Particles.from_arrays(torch.zeros(1, BOX, BOX), 8.0)
    for wrong in (
        lambda: cf.log_density(asked, particles(), torch.ones(3, 4)),
        lambda: cf.log_density(asked, particles(), torch.zeros(0, 4)),
        lambda: cf.log_density(asked, particles(), torch.zeros(4)),
        lambda: cf.log_density(asked, other, 2),
        lambda: cf.modes(asked, other),
        lambda: cf.modes(asked, particles(), count=0),
    ):
        with pytest.raises(cf.InputError, match="expect.*, found"):
            wrong()
