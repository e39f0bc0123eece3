"""Network inputs and orientations changed at random, as a training does."""

import torch
from torch import Tensor

from cryoforum.config import AugmentationConfig
from cryoforum.dataset.ctf_parameters import CtfParameters
from cryoforum.network.augmentation import changed_images, changed_orientations, draw_changes


def augment(
    images: Tensor,
    quaternions: Tensor,
    config: AugmentationConfig,
    generator: torch.Generator,
    ctf: CtfParameters | None = None,
    pixel_size_angstrom: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Network inputs (b, m, m) changed at random, and their orientations (b, 4)."""
    changes = draw_changes(len(images), images.shape[-1], config, generator, has_ctf=ctf is not None)
    images = changed_images(images, changes, config, ctf, pixel_size_angstrom)
    return images, changed_orientations(quaternions, changes)
