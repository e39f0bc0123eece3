"""Images without the ramp that a gradient of the ice, or of the illumination, leaves in them.

A ramp is as strong at the lowest frequencies as the particle itself, and differs from image to image. A plane
is fitted outside the particle and its slope taken off everywhere; the mean of the image stays.
"""

from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from cryoforum.dataset.images import Images, ImagesOnDemand, JoinedImages, SelectedImages
from cryoforum.dataset.particles import Particles
from cryoforum.dataset.resampling import ResampledImages

PARTICLE_RADIUS = 0.8  # of half the box: what lies further out is taken for background


@dataclass(frozen=True)
class LevelledImages(ImagesOnDemand):
    """Images (n, box, box) whose ramps are removed when they are asked for."""

    source: Images

    def __len__(self) -> int:
        return len(self.source)

    def at(self, rows: Tensor) -> Tensor:
        """Those without their ramps."""
        return without_ramp(self.source[rows])

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, box, box)."""
        return self.source.shape

    @property
    def identity(self) -> str:
        """Text that changes with the stacks, and differs from that of images whose ramps are kept."""
        return f"{getattr(self.source, 'identity', '')} without ramps"


def levelled(particles: Particles) -> Particles:
    """The same particles, whose images have their ramps removed before anything else is done to them."""
    return replace(particles, images=_levelled(particles.images))


def _levelled(images: Images) -> Images:
    """Before they are resampled, as the mirror image that goes on outside would make a roof of a ramp."""
    if isinstance(images, ResampledImages | SelectedImages):
        return replace(images, source=_levelled(images.source))
    if isinstance(images, JoinedImages):
        return replace(images, parts=tuple(map(_levelled, images.parts)))
    return LevelledImages(images)


def without_ramp(images: Tensor) -> Tensor:
    """Images (n, box, box) less the slope of the plane that fits them best outside the particle."""
    fit, planes = _planes(images.shape[-1])
    flat = images.flatten(1)
    slopes = flat @ fit.to(flat)
    return torch.addmm(flat, slopes, planes.to(flat), alpha=-1).view_as(images)


@lru_cache(maxsize=4)
def _planes(box: int) -> tuple[Tensor, Tensor]:
    """What finds slopes along x and y, (box², 2), and planes of slope 1 and mean 0, (2, box²); float32."""
    axis = torch.arange(box, dtype=torch.float64)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    planes = torch.stack([x.flatten(), y.flatten()]) - axis.mean()
    outside = (torch.hypot(x - box // 2, y - box // 2) > PARTICLE_RADIUS * box / 2).flatten()
    design = torch.cat([torch.ones(1, box * box, dtype=torch.float64), planes])[:, outside].T
    fit = torch.zeros(box * box, 2, dtype=torch.float64)
    fit[outside] = torch.linalg.pinv(design)[1:].T
    return fit.float(), planes.float()
