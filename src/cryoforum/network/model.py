"""The network, and a trained one with all it needs to be used."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from cryoforum.choices import BACKBONES, BLURS, POOLINGS
from cryoforum.config import Config, NetworkConfig
from cryoforum.network.backbone import Backbone
from cryoforum.network.blur import Blur
from cryoforum.network.heads import Head, head_of
from cryoforum.network.preprocessing import Intensity
from cryoforum.network.training_record import TrainingRecord, doubts, has_learned
from cryoforum.runtime.devices import Compute

DENSITY_START = 0.3  # about the deviation of a new network's log density


class OrientationNetwork(nn.Module):
    """From images (b, m, m) to the numbers (b, k) that a head reads.

    Parameters
    ----------
    config : NetworkConfig
    box : int
        Width m of the images.
    symmetry : str
        Point group that the head knows of.
    """

    def __init__(self, config: NetworkConfig, box: int, symmetry: str = "C1") -> None:
        super().__init__()
        head = head_of(config, symmetry)
        self.blur = Blur(BLURS.chosen(config.blur)(box))
        self.backbone: Backbone = BACKBONES.chosen(config.backbone)(self.blur.channels, box, config)
        channels, side = self.backbone.output_shape(box)
        self.pooling: nn.Module = POOLINGS.chosen(config.pooling)(channels)
        pooled = self.pooling(torch.zeros(1, channels, side, side))
        self.dense = nn.Linear(pooled.shape[1], head.size)
        nn.init.kaiming_normal_(self.dense.weight)
        if head.starts_small:
            # Not at 0, where a density has no mode.
            self.dense.weight.data *= DENSITY_START / self.dense.out_features**0.5
        nn.init.zeros_(self.dense.bias)

    def forward(self, images: Tensor) -> Tensor:
        return self.dense(self.pooling(self.backbone(self.blur(images[:, None]))))


def number_count(config: NetworkConfig, box: int, symmetry: str = "C1") -> int:
    """How many numbers a network learns, found without making it; arguments as of `OrientationNetwork`."""
    head, channels = head_of(config, symmetry), Blur(BLURS.chosen(config.blur)(box)).channels
    with torch.device("meta"):  # shapes alone
        backbone: Backbone = BACKBONES.chosen(config.backbone)(channels, box, config)
        channels, side = backbone.output_shape(box)
        pooling: nn.Module = POOLINGS.chosen(config.pooling)(channels)
        features = pooling(torch.zeros(1, channels, side, side)).shape[1]
    learned = [*backbone.parameters(), *pooling.parameters()]
    return sum(weight.numel() for weight in learned) + (features + 1) * head.size


@dataclass(frozen=True)
class TrainedModel:
    """A network with all it needs to be used on other particles of the same molecule.

    Attributes
    ----------
    network : Module
        An `OrientationNetwork`, or a caller's own.
    config : Config
    box : int
        Of the training particles, in pixels.
    pixel_size_angstrom : float
        Of the training particles.
    validation_median_rad : float
        Median orientation error of the weights.
    log : sequence of mapping
        Lines of `log.csv`.
    parts : mapping
        From image name to part of the split.
    intensity : Intensity, optional
        Of the training set, where it was standardised as a whole.
    sources : mapping
        From `Particles.sources` to part of the split, for images read from disk.
    sharpness : float
        Factor of all concentrations; see `training.calibration.calibrated`.
    compute : Compute
        Device and precision of the training.
    record : TrainingRecord
        How the training went.
    """

    network: nn.Module
    config: Config
    box: int
    pixel_size_angstrom: float
    validation_median_rad: float
    log: Sequence[Mapping[str, float]]
    parts: Mapping[str, str]
    intensity: Intensity | None = None
    sources: Mapping[int, str] = field(default_factory=dict)
    sharpness: float = 1.0
    compute: Compute = Compute()
    record: TrainingRecord = TrainingRecord()

    @property
    def has_learned(self) -> bool:
        """Whether the network is clearly better than a guess; true where nobody has measured it."""
        return has_learned(self.validation_median_rad, self.record)

    @property
    def doubts(self) -> list[str]:
        """What a user has to know before the network is used; empty where all is well."""
        return doubts(self.validation_median_rad, self.record)

    @property
    def head(self) -> Head:
        """What reads the network's numbers."""
        return head_of(self.config.network, self.config.learned_symmetry)
