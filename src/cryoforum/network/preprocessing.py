"""From particle images to network inputs."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from cryoforum.config import PreprocessingConfig
from cryoforum.dataset.ctf_parameters import CtfParameters
from cryoforum.dataset.particles import Particles, loaded_batches
from cryoforum.errors import InputError
from cryoforum.imaging.ctf import ctf_2d
from cryoforum.imaging.fft import crop_or_pad, to_fourier, to_real
from cryoforum.imaging.masks import circular_mask

INTENSITY_SAMPLE = 1000


@dataclass(frozen=True)
class Intensity:
    """Mean and deviation of a set of images after resizing, inside their mask."""

    mean: float
    deviation: float


def prepare(
    images: Tensor,
    ctf: CtfParameters | None,
    pixel_size_angstrom: float,
    config: PreprocessingConfig,
    intensity: Intensity | None = None,
) -> Tensor:
    """Network inputs of particle images: phase flip, resize, standardise, mask.

    Parameters
    ----------
    images : Tensor
        (b, n, n).
    ctf : CtfParameters, optional
        Of each image, for the phase flip.
    pixel_size_angstrom : float
        Of the images.
    config : PreprocessingConfig
        Resizing to ``config.box`` cuts frequencies; the field of view stays. Images are standardised one by
        one, so that contrast and background of a micrograph cancel, or with ``standardise`` "set" all alike.
    intensity : Intensity, optional
        What a set is standardised by.

    Returns
    -------
    Tensor
        (b, m, m), m being ``config.box``.

    Raises
    ------
    InputError
        Where a set has no intensity.
    """
    resized = _flipped_and_resized(images, ctf, pixel_size_angstrom, config)
    return masked_and_standardised(resized, config, intensity)


def _flipped_and_resized(
    images: Tensor, ctf: CtfParameters | None, pixel_size_angstrom: float, config: PreprocessingConfig
) -> Tensor:
    box = images.shape[-1]
    transforms = to_fourier(images)
    if config.phase_flip and ctf is not None:
        transforms = transforms * torch.sign(ctf_2d(ctf, box, pixel_size_angstrom))
    if box != config.box:
        transforms = crop_or_pad(transforms, box, config.box)
    return to_real(transforms, config.box)


def masked_and_standardised(
    images: Tensor, config: PreprocessingConfig, intensity: Intensity | None = None
) -> Tensor:
    """Images (b, m, m) less their mean, over their deviation, both inside the soft mask; 0 outside."""
    mask = circular_mask(config.box, config.mask_inner, config.mask_outer).to(images)
    if config.standardise == "set":
        if intensity is None:
            raise InputError("expected the intensity of a set to standardise by, found none")
        return (images - intensity.mean) * mask / intensity.deviation
    mean, variance = _masked_moments(images, mask)
    return (images - mean) * mask / variance.sqrt().clamp_min(1e-12)


def set_intensity(particles: Particles, config: PreprocessingConfig) -> Intensity:
    """Mean and deviation of all images together, inside the mask; from `INTENSITY_SAMPLE` of them."""
    rows = torch.linspace(0, len(particles) - 1, min(INTENSITY_SAMPLE, len(particles))).round().long()
    chosen = particles.select(rows)
    mask = circular_mask(config.box, config.mask_inner, config.mask_outer)
    moments = []
    for batch in loaded_batches(chosen, 256):
        images = batch.images[torch.arange(len(batch))]
        images = _flipped_and_resized(images, batch.ctf, batch.pixel_size_angstrom, config)
        moments.append(torch.stack(_masked_moments(images, mask)).flatten(1))
    means, variances = torch.cat(moments, dim=1)
    deviation = (variances.mean() + means.var(correction=0)).sqrt().clamp_min(1e-12)
    return Intensity(float(means.mean()), float(deviation))


def _masked_moments(images: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of each image inside the mask, (b, 1, 1) each."""
    mean = (images * mask).sum((1, 2), keepdim=True) / mask.sum()
    return mean, ((images - mean).square() * mask).sum((1, 2), keepdim=True) / mask.sum()


def prepare_all(
    particles: Particles,
    config: PreprocessingConfig,
    *,
    intensity: Intensity | None = None,
    batch_size: int = 256,
    progress: Callable[[int], None] = lambda count: None,
) -> Tensor:
    """Network inputs of every particle, (n, m, m) float32; images are read batch by batch.

    ``intensity`` as in `prepare`; ``progress`` is called with the number of images of each batch.
    """
    result = torch.empty(len(particles), config.box, config.box)
    done = 0
    for batch in loaded_batches(particles, batch_size) if len(particles) else ():
        images = batch.images[torch.arange(len(batch))]
        prepared = prepare(images, batch.ctf, particles.pixel_size_angstrom, config, intensity)
        result[done : done + len(batch)] = prepared
        done += len(batch)
        progress(len(batch))
    return result
