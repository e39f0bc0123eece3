"""Models that know nothing."""

from pathlib import Path

import torch

from cryoforum.config import Config, NetworkConfig, PreprocessingConfig
from cryoforum.network.model import OrientationNetwork, TrainedModel
from cryoforum.network.model_folder import save_model

SMALL = Config(PreprocessingConfig(box=32), network=NetworkConfig(widths=(8, 16), degree=2))


def untrained_model(box: int, pixel_size_angstrom: float, folder: Path) -> Path:
    """A model folder whose network knows nothing; enough to carry real images through every step."""
    torch.manual_seed(0)
    network = OrientationNetwork(SMALL.network, SMALL.preprocessing.box)
    torch.nn.init.normal_(network.dense.weight)
    log = [{"step": 1, "images": 1, "seconds": 1.0}]
    model = TrainedModel(network, SMALL, box, pixel_size_angstrom, 1.0, log, {"nothing": "train"})
    save_model(model, folder)
    return folder
