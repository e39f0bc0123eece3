"""The paper's network, layer by layer, every part that can take another's place, and its heads."""

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import nn

from cryoforum.choices import BLURS, POOLINGS
from cryoforum.config import PRESETS, NetworkConfig, preset
from cryoforum.distributions.exponential_family import rotation_polynomials
from cryoforum.geometry.point_groups import symmetry_group
from cryoforum.geometry.rotations import compose
from cryoforum.geometry.so3_grid import rotation_grid
from cryoforum.network.backbone import PerElementPReLU, ResidualBackbone, VggBackbone
from cryoforum.network.blur import (
    Blur,
    gaussian_transfer,
    low_pass_cutoffs,
    low_pass_transfer,
    no_transfer,
)
from cryoforum.network.heads import head_of
from cryoforum.network.model import OrientationNetwork
from cryoforum.network.pooling import GeneralisedMeanPooling


@pytest.fixture(scope="module")
def paper_network() -> OrientationNetwork:
    torch.manual_seed(0)
    return OrientationNetwork(preset("paper").network, 128)


def test_blur_cutoffs_are_those_of_the_authors() -> None:
    assert low_pass_cutoffs(128) == (63, 57, 47, 33, 10)


def test_each_blur_passes_its_square_of_frequencies_and_nothing_else() -> None:
    blur = Blur(low_pass_transfer(128))
    impulse = torch.zeros(1, 1, 128, 128)
    impulse[0, 0, 64, 64] = 1
    blurred = blur(impulse)
    assert blurred.shape == (1, 6, 128, 128)
    transfer = torch.fft.fft2(blurred[0]).abs()
    frequency = (torch.fft.fftfreq(128) * 128).abs()
    for channel, cutoff in enumerate((63, 57, 47, 33, 10)):
        inside = (frequency[:, None] <= cutoff) & (frequency[None, :] <= cutoff)
        torch.testing.assert_close(transfer[channel], inside.float(), atol=1e-4, rtol=0)
    assert torch.equal(blurred[:, 5:], impulse)


@pytest.mark.parametrize("box", [8, 16, 32, 64])
def test_blur_at_other_boxes_is_finer_from_filter_to_filter(box: int) -> None:
    cutoffs = low_pass_cutoffs(box)
    assert list(cutoffs) == sorted(cutoffs, reverse=True)
    images = torch.randn(2, 1, box, box)
    power = Blur(low_pass_transfer(box))(images).square().mean((0, 2, 3))
    assert bool((power[:4] >= power[1:5] - 1e-5).all())


def test_gaussian_blurs_are_those_of_scipy() -> None:
    images = torch.randn(2, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    blurred = Blur(gaussian_transfer(64))(images)
    assert blurred.shape == (2, 6, 64, 64)
    assert torch.equal(blurred[:, 5:], images)
    for channel, deviation in enumerate(np.geomspace(0.1, 10, 5)):
        for image, found in zip(images[:, 0].double(), blurred[:, channel].double(), strict=True):
            theirs = np.fft.ifft2(ndimage.fourier_gaussian(np.fft.fft2(image), deviation)).real
            np.testing.assert_allclose(found, theirs, atol=1e-5)
            if deviation >= 1:  # below, a Gaussian sampled at whole pixels is not one
                sampled = ndimage.gaussian_filter(image.numpy(), deviation, mode="wrap", truncate=8)
                np.testing.assert_allclose(found, sampled, atol=0.01 if deviation == 1 else 1e-5)


def test_no_blur_is_the_image() -> None:
    images = torch.randn(2, 1, 16, 16)
    blur = Blur(no_transfer(16))
    assert blur.channels == 1 and torch.equal(blur(images), images)


@pytest.mark.parametrize("name", list(BLURS))
def test_blurs_keep_the_mean_and_turn_with_the_image(name: str) -> None:
    images = torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    blur = Blur(BLURS.chosen(name)(32))
    blurred = blur(images)
    assert blurred.shape[1] == blur.channels
    mean = images.mean((2, 3)).expand(-1, blur.channels)
    torch.testing.assert_close(blurred.mean((2, 3)), mean, atol=1e-5, rtol=0)
    torch.testing.assert_close(blur(images.rot90(1, (2, 3))), blurred.rot90(1, (2, 3)), atol=1e-5, rtol=0)
    torch.testing.assert_close(blur(images.roll(5, 3)), blurred.roll(5, 3), atol=1e-5, rtol=0)


def test_maximum_and_mean_are_exact() -> None:
    features = torch.randn(3, 4, 5, 6)
    poolings = {name: POOLINGS.chosen(name) for name in POOLINGS}
    pooled = {name: make(4)(features) for name, make in poolings.items()}
    most, mean = (torch.from_numpy(of(features.numpy(), axis=(2, 3))) for of in (np.max, np.mean))
    assert torch.equal(pooled["max"], most)
    torch.testing.assert_close(pooled["max_average"], torch.cat([most, mean], dim=1))
    assert torch.equal(pooled["flatten"], features.reshape(3, -1))
    sizes = {name: numbers.shape[1] for name, numbers in pooled.items()}
    assert sizes == {"flatten": 120, "max": 4, "max_average": 8, "gem": 4}


def test_pooling_goes_from_mean_to_maximum() -> None:
    features = torch.randn(3, 4, 5, 5) * 10
    pooled = {p: GeneralisedMeanPooling(4, exponent=p)(features) for p in (1.0, 6.0, 300.0)}
    torch.testing.assert_close(pooled[1.0], features.mean((2, 3)), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(pooled[300.0], features.amax((2, 3)), atol=0.3, rtol=0.03)
    assert bool((pooled[1.0] <= pooled[6.0]).all() and (pooled[6.0] <= pooled[300.0]).all())


def test_pooling_moves_with_its_input_and_keeps_a_constant() -> None:
    pooling = GeneralisedMeanPooling(2)
    features = torch.randn(3, 2, 4, 4)
    torch.testing.assert_close(pooling(features - 7), pooling(features) - 7, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(pooling(torch.full((1, 2, 4, 4), -3.0)), torch.full((1, 2), -3.0))


@pytest.mark.parametrize("scale", [0.0, 1.0, 1e6])
def test_pooling_has_finite_gradients_for_any_sign_and_size(scale: float) -> None:
    pooling = GeneralisedMeanPooling(2)
    features = (scale * torch.randn(3, 2, 2, 2)).requires_grad_()
    pooling(features).sum().backward()
    assert features.grad is not None and pooling.exponent.grad is not None
    assert bool(torch.isfinite(features.grad).all() and torch.isfinite(pooling.exponent.grad).all())


def test_paper_layers_are_those_of_its_table(paper_network: OrientationNetwork) -> None:
    layers = list(paper_network.backbone.layers)
    convolutions = [layer for layer in layers if isinstance(layer, nn.Conv2d)]
    assert [(c.in_channels, c.out_channels, c.kernel_size[0]) for c in convolutions] == [
        (6, 32, 7),
        (32, 64, 5),
        (64, 128, 3),
        (128, 128, 3),
        (128, 256, 3),
        (256, 256, 3),
        (256, 512, 3),
        (512, 512, 3),
        (512, 1024, 3),
        (1024, 1024, 3),
    ]
    assert all(c.bias is None for c in convolutions)
    slopes = [tuple(layer.slope.shape) for layer in layers if isinstance(layer, PerElementPReLU)]
    assert [side for _, side, _ in slopes] == [128, 64, 32, 32, 16, 16, 8, 8, 4, 4]
    assert sum(isinstance(layer, nn.MaxPool2d) for layer in layers) == 6
    assert [layer.p for layer in layers if isinstance(layer, nn.Dropout)] == [0.3] * 10
    assert paper_network.backbone.output_shape(128) == (1024, 2)
    assert (paper_network.dense.in_features, paper_network.dense.out_features) == (1024, 10)


def test_paper_network_has_as_many_parameters_as_the_authors(paper_network: OrientationNetwork) -> None:
    """Their Keras model has 20,181,578: ours, the blur's buffer and moving statistics, but no exponents."""
    exponents = paper_network.pooling.exponent.numel()
    trainable = sum(parameter.numel() for parameter in paper_network.parameters())
    moving = sum(
        buffer.numel()
        for name, buffer in paper_network.named_buffers()
        if name.split(".")[-1][:7] == "running"
    )
    assert exponents == 1024 and moving == 7_872
    assert trainable == 20_157_322 + 1_024
    assert trainable - exponents + moving + 128 * 128 == 20_181_578


def test_paper_network_starts_as_keras_does(paper_network: OrientationNetwork) -> None:
    for convolution in (layer for layer in paper_network.backbone.layers if isinstance(layer, nn.Conv2d)):
        fan_in = convolution.in_channels * convolution.kernel_size[0] ** 2
        assert float(convolution.weight.detach().std()) == pytest.approx((2 / fan_in) ** 0.5, rel=0.05)
    assert float(paper_network.dense.weight.detach().std()) == pytest.approx((2 / 1024) ** 0.5, rel=0.05)
    assert not paper_network.dense.bias.any()
    assert set(paper_network.pooling.exponent.tolist()) == {6.0}


def test_slopes_act_below_zero_only() -> None:
    layer = PerElementPReLU(1, 2)
    features = torch.tensor([[[[-2.0, 2.0], [-1.0, 1.0]]]])
    torch.testing.assert_close(layer(features), features.relu())
    nn.init.constant_(layer.slope, 0.5)
    torch.testing.assert_close(layer(features), torch.tensor([[[[-1.0, 2.0], [-0.5, 1.0]]]]))


@pytest.mark.parametrize("name", list(PRESETS))
def test_every_preset_builds_a_network(name: str) -> None:
    config = preset(name)
    network = OrientationNetwork(config.network, config.preprocessing.box)
    images = torch.randn(2, config.preprocessing.box, config.preprocessing.box)
    with torch.no_grad():
        assert network.eval()(images).shape == (2, head_of(config.network).size)


def test_the_expedited_network_is_the_papers_without_its_last_two_convolutions(
    paper_network: OrientationNetwork,
) -> None:
    expedited = OrientationNetwork(preset("expedited").network, 128)
    shapes, whole = (
        [tuple(weight.shape) for weight in network.backbone.parameters() if weight.ndim == 4]
        for network in (expedited, paper_network)
    )
    assert shapes == whole[:8] and len(whole) == 10
    assert expedited.backbone.output_shape(128) == (512, 4) and expedited.dense.in_features == 512


@pytest.mark.parametrize("activation", ["relu", "prelu"])
@pytest.mark.parametrize(
    ("stem_stride", "depth", "widths"), [(1, 1, (4, 8)), (2, 3, (4,)), (4, 2, (4, 6, 8))]
)
def test_the_residual_backbone_is_as_large_and_as_deep_as_it_says(
    stem_stride: int, depth: int, widths: tuple[int, ...], activation: str
) -> None:
    config = NetworkConfig(widths=widths, stem_stride=stem_stride, depth=depth, activation=activation)
    backbone = ResidualBackbone(2, 32, config)
    features = backbone(torch.randn(2, 2, 32, 32))
    assert tuple(features.shape[1:3]) == backbone.output_shape(32)
    assert features.shape[2] == features.shape[3] == 32 // stem_stride // 2 ** (len(widths) - 1)
    threes = [
        layer for layer in backbone.modules() if isinstance(layer, nn.Conv2d) and layer.padding == (1, 1)
    ]
    assert len([layer for layer in threes if layer.in_channels != 2]) == 2 * depth * len(widths)
    kinds = {"relu": nn.ReLU, "prelu": PerElementPReLU}
    for name, kind in kinds.items():
        count = sum(isinstance(layer, kind) for layer in backbone.modules())
        assert count == (1 + 2 * depth * len(widths) if name == activation else 0)


@pytest.mark.parametrize("box", [32, 40, 64])
def test_the_paper_backbone_is_as_large_as_it_says(box: int) -> None:
    backbone = VggBackbone(1, box, preset("paper").network).eval()
    with torch.no_grad():
        features = backbone(torch.zeros(1, 1, box, box))
    assert tuple(features.shape[1:3]) == backbone.output_shape(box)


SIZES = {
    "quaternion": 4,
    "gram_schmidt": 6,
    "qcqp": 10,
    "symmetric": 10,
    "svd": 9,
    "softmax_grid": 72,
    "exponential_family": 35,
}


@pytest.mark.parametrize("head", list(SIZES))
@pytest.mark.parametrize("pooling", list(POOLINGS))
@pytest.mark.parametrize("blur", list(BLURS))
@pytest.mark.parametrize("backbone", ["residual", "vgg"])
def test_parts_can_be_combined_and_have_finite_gradients(
    head: str, pooling: str, blur: str, backbone: str
) -> None:
    parts = {"head": head, "pooling": pooling, "blur": blur, "backbone": backbone}
    config = NetworkConfig(widths=(4, 8), degree=2, head_nside=1, **parts)
    network = OrientationNetwork(config, 16)
    numbers = network(torch.randn(3, 16, 16))
    assert numbers.shape == (3, head_of(config).size) == (3, SIZES[head])
    numbers.square().sum().backward()
    gradients = [parameter.grad for parameter in network.parameters()]
    assert all(gradient is not None and bool(torch.isfinite(gradient).all()) for gradient in gradients)


def test_the_paper_head_is_positive_semidefinite_and_its_mode_differentiable() -> None:
    numbers = torch.randn(50, 10, generator=torch.Generator().manual_seed(0)).requires_grad_()
    posterior = head_of(NetworkConfig(head="qcqp")).posterior(numbers)
    eigenvalues = torch.linalg.eigvalsh(posterior.concentration)
    assert float(eigenvalues.detach().min()) > -1e-5
    posterior.mode.sum().backward()
    assert numbers.grad is not None and bool(torch.isfinite(numbers.grad).all())


@pytest.mark.parametrize("start", [0.0, 1.0])
def test_equal_eigenvalues_give_finite_gradients(start: float) -> None:
    numbers = torch.zeros(2, 10)
    numbers[:, [0, 2, 5, 9]] = start  # A is a multiple of the identity: every rotation is a mode
    numbers.requires_grad_()
    head_of(NetworkConfig(head="qcqp")).posterior(numbers).mode[:, 0].sum().backward()
    assert numbers.grad is not None and bool(torch.isfinite(numbers.grad).all())


@pytest.mark.parametrize("head", ["softmax_grid", "exponential_family"])
def test_heads_of_densities_know_next_to_nothing_at_first(head: str) -> None:
    torch.manual_seed(0)
    config = NetworkConfig(widths=(4, 8), degree=2, head_nside=2, head=head)
    numbers = OrientationNetwork(config, 16)(torch.randn(4, 16, 16)).detach()
    chosen = head_of(config)
    scores = chosen.log_density(numbers, chosen.features(rotation_grid(2)))
    assert float(scores.std(1).min()) > 1e-3 and float(scores.std(1).max()) < 1
    assert bool(torch.isfinite(chosen.posterior(numbers).concentration).all())


def test_the_density_of_a_symmetric_network_does_not_change_under_its_group() -> None:
    config = NetworkConfig(widths=(4, 8), degree=4)
    network = OrientationNetwork(config, 16, "O")
    nn.init.normal_(network.dense.weight)
    numbers = network(torch.randn(3, 16, 16)).detach()
    polynomials, group = rotation_polynomials(4, "O"), symmetry_group("O")
    assert numbers.shape == (3, polynomials.size) == (3, head_of(config, "O").size)
    mode = head_of(config, "O").posterior(numbers).mode
    values = numbers @ polynomials.features(mode).T
    for element in group:
        turned = numbers @ polynomials.features(compose(element, mode)).T
        torch.testing.assert_close(turned, values, atol=1e-3 * float(values.abs().max()), rtol=0)
    # and each image's own mode is its best of many
    best = (numbers @ polynomials.features(rotation_grid(4)).T).amax(-1)
    assert bool((values.diagonal() >= best - 1e-3 * best.abs()).all())
