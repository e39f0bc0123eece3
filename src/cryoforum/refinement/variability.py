"""How the molecule varies from particle to particle: the strongest components of its variance.

Each image is that of a mean map plus coordinates times further maps. At known poses
maps and coordinates are found in turn,
by expectation-maximisation at low frequencies (probabilistic principal components, Tipping & Bishop 1999, of
projections as in Punjani & Fleet 2021). What is alike to the mean is left out: strength varies, too.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from cryoforum.imaging.fft import frequency_points
from cryoforum.imaging.likelihood import WhitenedImages
from cryoforum.imaging.projection import cropped_transform, slices_at
from cryoforum.refinement.regularised import Sums, likeliest_map, sums_of_slices

NOISE = 0.5  # variance of one real number of a whitened image
MEAN_STEPS = 3
WEAK_PRIOR = 0.01  # of the mean weight: hardly anything beside the data
EXPECTED_SHARE = 0.1  # of the power of the mean: what a component is expected to have


def strongest_components(
    images: WhitenedImages,
    quaternions: Float[Tensor, "n 4"],
    origins_pixel: Float[Tensor, "n 2"],
    mask: Float[Tensor, "m m m"],
    count: int = 1,
    steps: int = 12,
    seed: int = 0,
) -> Float[Tensor, "n c"]:
    """Coordinates of particles at known poses along the strongest components, each of variance 1.

    Parameters
    ----------
    images
        n, whitened, up to the frequency to which components are looked for.
    quaternions, origins_pixel
        Their poses.
    mask
        Where the molecule may vary, in a box of m pixels with the field of view of the images.
    count
        Components, each of what the ones before leave.
    steps
        Of expectation-maximisation for each.
    seed
        Of the coordinates at the start.
    """
    points, box = images.points, len(mask)
    frequency = int(points.radius[-1])
    small = frequency_points(box, frequency)  # the same points, in a box that is no larger than it must be
    values = images.values * points.phases(origins_pixel).conj()
    transfer, power = images.transfer, images.transfer.square()

    def projected(voxels: Tensor) -> Tensor:
        return transfer * slices_at(cropped_transform(voxels, frequency), quaternions, small)

    def summed(coordinates: Tensor, squares: Tensor) -> Sums:
        weighted = coordinates[:, None] * transfer * values, squares[:, None] * power
        return sums_of_slices(*weighted, small, quaternions)

    scale, whole = torch.ones(len(images)), torch.ones_like(mask)
    for _ in range(MEAN_STEPS):  # what a wrong mean leaves of strong images would be a component
        sums = summed(scale, scale.square())
        prior = 1 / (WEAK_PRIOR * sums[1].mean()).expand(box + 1)
        mean, mean_power = likeliest_map(sums, box, prior, frequency, whole)
        model = projected(mean)
        strength = model.abs().square().sum(1).clamp_min(torch.finfo(torch.float32).tiny)
        scale = _products(values, model) / strength
    values = values - scale[:, None] * model

    found, generator = [], torch.Generator().manual_seed(seed)
    for _ in range(count):
        coordinates, prior = torch.randn(len(images), generator=generator), EXPECTED_SHARE * mean_power
        squares = coordinates.square()
        for _ in range(steps):
            voxels, _ = likeliest_map(summed(coordinates, squares), box, prior, frequency, mask)
            change = projected(voxels)
            change = change - (_products(change, model) / strength)[:, None] * model
            information = change.abs().square().sum(1) + NOISE
            coordinates = _products(values, change) / information
            variance = (coordinates.square() + NOISE / information).mean()
            squares = (coordinates.square() + NOISE / information) / variance
            coordinates = coordinates / variance.sqrt()
        values = values - (_products(values, change) / information)[:, None] * change
        found.append(coordinates)
    return torch.stack(found, dim=1)


def _products(first: Tensor, second: Tensor) -> Float[Tensor, " n"]:
    """Real scalar products of rows."""
    return (first * second.conj()).real.sum(1)
