"""Defocus of single particles: those that lie higher or lower in the ice than their micrograph says."""

import torch
from jaxtyping import Float
from torch import Tensor

from cryoforum.dataset.ctf_parameters import CtfParameters
from cryoforum.imaging.ctf import ctf_at, ctf_defocus_slope_at
from cryoforum.imaging.likelihood import WhitenedImages
from cryoforum.imaging.projection import slices_at

PRIOR_ANGSTROM = 500.0  # standard deviation of what is looked for: ice is 200 to 1000 Å thick
STEPS, LARGEST_STEP_ANGSTROM = 6, 200.0


def defocus_change(
    transform: Tensor,
    images: WhitenedImages,
    weight: Float[Tensor, "n p"],
    ctf: CtfParameters,
    pixel_size_angstrom: float,
    quaternions: Float[Tensor, "n 4"],
    origins_pixel: Float[Tensor, "n 2"],
) -> Float[Tensor, " n"]:
    """Most probable change of each particle's defocus at its pose, in Å of underfocus.

    Gauss-Newton from no change, under a normal prior of `PRIOR_ANGSTROM`; never less probable than that.

    Parameters
    ----------
    transform
        `projection.cropped_transform` of the reference.
    images, weight
        Whitened images, and their transfer without the CTF.
    ctf, pixel_size_angstrom
        CTF parameters as they are given.
    quaternions, origins_pixel
        Pose of each particle.
    """
    points = images.points
    kx, ky = points.per_angstrom(pixel_size_angstrom)
    projection = weight * slices_at(transform, quaternions, points) * points.phases(origins_pixel)
    # All that is needed of image and projection, whatever the defocus: Re⟨y, F⟩ and |F|² of every frequency.
    cross, power = (images.values * projection.conj()).real, projection.abs().square()
    change = best = torch.zeros(len(images))
    highest = torch.full_like(change, -torch.inf)
    for _ in range(STEPS + 1):
        moved = ctf.defocused_by(change)
        transfer, slope = ctf_at(moved, kx, ky), ctf_defocus_slope_at(moved, kx, ky)
        prior = (change / PRIOR_ANGSTROM).square() / 2
        probability = (2 * transfer * cross - transfer.square() * power).sum(1) - prior
        better = probability > highest
        highest, best = torch.where(better, probability, highest), torch.where(better, change, best)
        gradient = 2 * (slope * (cross - transfer * power)).sum(1) - change / PRIOR_ANGSTROM**2
        information = 2 * (slope.square() * power).sum(1) + PRIOR_ANGSTROM**-2
        step = (gradient / information).clamp(-LARGEST_STEP_ANGSTROM, LARGEST_STEP_ANGSTROM)
        change = change + step
    return best
