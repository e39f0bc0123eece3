"""The network: blur → backbone → pooling → dense layer; a head turns its numbers into beliefs."""

from torch import Tensor, nn

from cryoforum.config import NetworkConfig
from cryoforum.network.backbone import ResidualBackbone, VggBackbone
from cryoforum.network.blur import TRANSFERS, Blur
from cryoforum.network.heads import head_of
from cryoforum.network.pooling import POOLINGS

BACKBONES: dict[str, type[VggBackbone] | type[ResidualBackbone]] = {
    "vgg": VggBackbone,
    "residual": ResidualBackbone,
}
DENSITY_HEADS = ("exponential_family", "softmax_grid")
DENSITY_START = 0.3  # about the deviation of a new network's log density


class OrientationNetwork(nn.Module):
    """Images (b, m, m) to the numbers (b, k) that a head reads."""

    def __init__(self, config: NetworkConfig, box: int, symmetry: str = "C1") -> None:
        super().__init__()
        self.blur = Blur(TRANSFERS[config.blur](box))
        self.backbone = BACKBONES[config.backbone](self.blur.channels, box, config)
        channels, side = self.backbone.output_shape(box)
        pooling_of, size_of = POOLINGS[config.pooling]
        self.pooling: nn.Module = pooling_of(channels)
        self.dense = nn.Linear(size_of(channels, side**2), head_of(config, symmetry).size)
        nn.init.kaiming_normal_(self.dense.weight)
        if config.head in DENSITY_HEADS:
            # Near the uniform density: large coefficients would be confidently wrong, zeros have no mode.
            self.dense.weight.data *= DENSITY_START / self.dense.out_features**0.5
        nn.init.zeros_(self.dense.bias)

    def forward(self, images: Tensor) -> Tensor:
        return self.dense(self.pooling(self.backbone(self.blur(images[:, None]))))
