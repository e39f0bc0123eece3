"""The network: blur → backbone → pooling → dense layer; a head turns its numbers into beliefs."""

from torch import Tensor, nn

from cryoforum.config import NetworkConfig
from cryoforum.network.backbone import ResidualBackbone, VggBackbone
from cryoforum.network.blur import LowPassBlur
from cryoforum.network.heads import head_size
from cryoforum.network.pooling import GeneralisedMeanPooling


class OrientationNetwork(nn.Module):
    """Images (b, m, m) to the numbers (b, k) that a head reads."""

    def __init__(self, config: NetworkConfig, box: int, symmetry: str = "C1") -> None:
        super().__init__()
        self.blur = LowPassBlur(box) if config.blur == "low_pass" else nn.Identity()
        channels = LowPassBlur.CHANNELS if config.blur == "low_pass" else 1
        self.backbone = (
            VggBackbone(channels, box, config.dropout)
            if config.backbone == "vgg"
            else ResidualBackbone(channels, config.widths, config.dropout)
        )
        features, side = self.backbone.output_shape(box)
        if config.pooling == "generalised_mean":
            self.pooling: nn.Module = GeneralisedMeanPooling(features)
        else:
            self.pooling, features = nn.Flatten(), features * side**2
        self.dense = nn.Linear(features, head_size(config, symmetry))
        if config.head == "qcqp":
            nn.init.kaiming_normal_(self.dense.weight)
        else:
            # Start from the uniform density: large random coefficients would be confidently wrong.
            nn.init.zeros_(self.dense.weight)
        nn.init.zeros_(self.dense.bias)

    def forward(self, images: Tensor) -> Tensor:
        return self.dense(self.pooling(self.backbone(self.blur(images[:, None]))))
