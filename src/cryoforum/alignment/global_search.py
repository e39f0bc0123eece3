"""The global search: every image against templates of the reference all over SO(3) × origins.

Low frequencies suffice to say roughly where, so that the whole search is one product of two matrices,
(images · origins × frequencies) · (frequencies × templates), with CTF and noise in the first of them.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Complex, Float
from torch import Tensor

from cryoforum.errors import InputError, require
from cryoforum.fields.settings import settle_settings
from cryoforum.geometry.point_groups import asymmetric_unit, symmetry_group
from cryoforum.geometry.rotations import compose
from cryoforum.geometry.so3_grid import rotation_grid
from cryoforum.imaging.fft import FrequencyPoints, frequency_points
from cryoforum.imaging.likelihood import WhitenedImages
from cryoforum.imaging.projection import slices_at

_SCORES_AT_ONCE = 2**21  # so that a batch of scores stays in the processor's cache
_MOST_STEPS = 64  # from no shift to the largest: the finest grid of origins has 129 × 129
_NEGLIGIBLE = -50.0  # log of what a further origin may add to the likelihood


@dataclass(frozen=True)
class SearchConfig:
    """How the global search looks.

    Parameters
    ----------
    nside
        Of the grid of rotations (4 gives 15° between neighbours, 4608 of them).
    highest_frequency
        Cycles per box up to which images and templates are compared.
    max_shift_pixel
        Largest origin that is searched along x and y.
    candidates, separation_deg
        How many modes are handed on, at least so far apart.
    plausible_margin, plausible_share
        A mode is worth a try where its log density is less than the margin below the best, or less than this
        share of the best's height over the median. (Templates are never quite at an image's orientation, and
        the loss grows with the height.)

    Raises
    ------
    InputError
        Where a setting is out of its range.
    """

    nside: int = 4
    highest_frequency: int = 10
    max_shift_pixel: float = 3.0
    candidates: int = 16
    separation_deg: float = 16.0
    plausible_margin: float = 20.0
    plausible_share: float = 0.2

    def __post_init__(self) -> None:
        settle_settings(self)
        if min(self.nside, self.highest_frequency, self.candidates) < 1:
            raise InputError("expected nside, highest_frequency and candidates of 1 or more")
        largest = self.max_shift_pixel
        require(0 <= largest < math.inf, "a largest shift of 0 or more pixels", largest)


@dataclass(frozen=True)
class Templates:
    """A reference, and slices of it on a grid of rotations, ready to be compared with images.

    Parameters
    ----------
    transform
        `projection.cropped_transform` of the reference.
    config, symmetry, points
        Settings of the search, point group of the reference, frequencies that are compared.
    rotations
        One of each set that symmetry makes equal.
    slices, power
        Real and imaginary parts in turn; and their squares.
    origins_pixel, phases
        The grid of origins, and exp(-2πi k·o) of each.
    """

    transform: Float[Tensor, "z y x 2"]
    config: SearchConfig
    symmetry: str
    points: FrequencyPoints
    rotations: Float[Tensor, "g 4"]
    slices: Float[Tensor, "q g"]
    power: Float[Tensor, "p g"]
    origins_pixel: Float[Tensor, "s 2"]
    phases: Complex[Tensor, "p s"]


def make_templates(
    transform: Tensor, box: int, config: SearchConfig, symmetry: str = "C1", turn: Tensor | None = None
) -> Templates:
    """Templates of a `projection.cropped_transform` whose images have ``box`` pixels.

    ``turn``, a unit quaternion (4,), turns the grid of rotations.
    """
    points = frequency_points(box, config.highest_frequency)
    grid = rotation_grid(config.nside)
    grid = grid if turn is None else compose(turn, grid)
    rotations = asymmetric_unit(grid, symmetry_group(symmetry))
    slices = torch.cat([slices_at(transform, part, points) for part in rotations.split(2048)])
    origins = _origin_grid(config.max_shift_pixel, box / (8 * config.highest_frequency))
    return Templates(
        transform=transform,
        config=config,
        symmetry=symmetry,
        points=points,
        rotations=rotations,
        slices=torch.view_as_real(slices).flatten(1).T.contiguous(),
        power=slices.abs().square().T.contiguous(),
        origins_pixel=origins,
        phases=points.phases(origins).mH,
    )


def log_likelihood_on_grid(templates: Templates, images: WhitenedImages) -> Float[Tensor, "n g"]:
    """Log-likelihood of every template over noise alone, summed over all origins."""
    images = images.within(float(templates.points.radius[-1]))
    weighted = images.transfer * images.values
    phases, slices = templates.phases.T.contiguous(), 2 * templates.slices
    result = -images.transfer.square() @ templates.power
    shape = len(templates.origins_pixel), len(templates.rotations)
    for rows in torch.arange(len(images)).split(max(1, _SCORES_AT_ONCE // (shape[0] * shape[1]))):
        # Moved back by every origin, then all against all: the real part of a complex product.
        moved = torch.view_as_real(weighted[rows, None, :] * phases)
        cross = (moved.view(len(rows) * shape[0], -1) @ slices).view(len(rows), *shape)
        highest = cross.amax(1)
        # logsumexp by hand: where exp underflows it is many times slower, and adds nothing.
        cross.sub_(highest[:, None]).clamp_(min=_NEGLIGIBLE).exp_()
        result[rows] += highest + cross.sum(1).log_()
    return result


@dataclass(frozen=True)
class Candidates:
    """The most probable orientations of each particle, the most probable first.

    Parameters
    ----------
    quaternions
        Unit.
    origins_pixel
        The best of the grid of origins for each.
    plausible
        Which are worth a try.
    """

    quaternions: Float[Tensor, "n m 4"]
    origins_pixel: Float[Tensor, "n m 2"]
    plausible: Bool[Tensor, "n m"]


def candidates(templates: Templates, images: WhitenedImages, log_density: Float[Tensor, "n g"]) -> Candidates:
    """Modes of a log density on the templates' rotations, each with the origin that fits best."""
    rows, height = _separated_peaks(templates, log_density)
    relief = height[:, 0] - log_density.median(dim=1).values
    margin = (templates.config.plausible_share * relief).clamp_min(templates.config.plausible_margin)
    return Candidates(
        templates.rotations[rows],
        template_origins_pixel(templates, images, rows),
        plausible=height >= (height[:, 0] - margin)[:, None],
    )


def best_origins_pixel(
    transform: Tensor, images: WhitenedImages, quaternions: Float[Tensor, "n 4"], config: SearchConfig
) -> Float[Tensor, "n 2"]:
    """Origin in pixels at which the slice along each of ``quaternions`` fits best.

    To half a pixel where the largest shift is at most 32 pixels.
    """
    images = images.within(config.highest_frequency)
    points = images.points
    origins = _origin_grid(config.max_shift_pixel, max(0.5, config.max_shift_pixel / _MOST_STEPS))
    product = images.transfer * images.values * slices_at(transform, quaternions, points).conj()
    return _highest(product, origins, points.phases(origins).mH)


def _separated_peaks(templates: Templates, log_density: Tensor) -> tuple[Tensor, Tensor]:
    """Grid rows (n, m) of the highest rotation, of the highest one far enough from it, and so on."""
    group = symmetry_group(templates.symmetry)
    threshold = torch.cos(torch.deg2rad(torch.tensor(templates.config.separation_deg)) / 2)
    remaining = log_density.clone()
    found, heights = [], []
    for _ in range(min(templates.config.candidates, log_density.shape[1])):
        height, best = remaining.max(1)  # -inf where no rotation is left
        found.append(best)
        heights.append(height)
        for element in group:
            turned = compose(element, templates.rotations[best])
            remaining.masked_fill_((turned @ templates.rotations.T).abs() > threshold, -torch.inf)
    return torch.stack(found, dim=1), torch.stack(heights, dim=1)


def template_origins_pixel(templates: Templates, images: WhitenedImages, rows: Tensor) -> Tensor:
    """Origin (n, m, 2) of the grid at which each template (n, m) fits its image best."""
    images = images.within(float(templates.points.radius[-1]))
    slices = torch.view_as_complex(templates.slices.T.contiguous().view(len(templates.rotations), -1, 2))
    product = (images.transfer * images.values)[:, None] * slices[rows].conj()
    return _highest(product, templates.origins_pixel, templates.phases)


def _highest(product: Tensor, origins: Tensor, phases: Tensor) -> Tensor:
    """The one of ``origins`` (s, 2) at which the real part of ``product`` · ``phases`` (p, s) is highest."""
    by_parts = torch.stack([phases.real, -phases.imag], dim=1).flatten(0, 1)  # of numbers side by side
    return origins[(torch.view_as_real(product).flatten(-2) @ by_parts).argmax(-1)]


def _origin_grid(largest: float, step: float) -> Tensor:
    """Origins (s, 2) on a square grid about 0 that reaches ``largest`` pixels, ``step`` or less apart."""
    count = int(torch.ceil(torch.tensor(largest / step - 1e-6)).clamp_min(0))
    axis = torch.linspace(-largest, largest, 2 * count + 1) if count else torch.zeros(1)
    x, y = torch.meshgrid(axis, axis, indexing="xy")
    return torch.stack([x.flatten(), y.flatten()], dim=1)
