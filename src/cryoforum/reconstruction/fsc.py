"""How good are the poses and the maps: orientation errors, Fourier shell correlation, resolution."""

import math
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd
import torch
from scipy import ndimage
from torch import Tensor

from cryoforum.dataset.particles import HalfMaps, Volume
from cryoforum.geometry.point_groups import symmetric_distance, symmetry_group

# Rosenthal & Henderson (2003): half-map FSC where the full map correlates 0.5 with a perfect one.
SMALLEST_REGION = 0.1  # of a molecule in a map, as a share of the largest
FSC_THRESHOLD = 0.143


@dataclass(frozen=True)
class ErrorSummary:
    """Orientation errors in short: radians as fields, degrees as properties."""

    count: int
    median_rad: float
    mean_rad: float
    lower_quartile_rad: float
    upper_quartile_rad: float
    share_above_0_3_rad: float

    @property
    def median_deg(self) -> float:
        """Median in degrees."""
        return math.degrees(self.median_rad)

    @property
    def mean_deg(self) -> float:
        """Mean in degrees."""
        return math.degrees(self.mean_rad)

    @property
    def lower_quartile_deg(self) -> float:
        """Lower quartile in degrees."""
        return math.degrees(self.lower_quartile_rad)

    @property
    def upper_quartile_deg(self) -> float:
        """Upper quartile in degrees."""
        return math.degrees(self.upper_quartile_rad)

    def to_dict(self) -> dict[str, float]:
        """All numbers by name, in radians and in degrees."""
        names = ("median_deg", "mean_deg", "lower_quartile_deg", "upper_quartile_deg")
        return {**asdict(self), **{name: getattr(self, name) for name in names}}


def orientation_errors(
    predicted_quaternions: Tensor, true_quaternions: Tensor, symmetry: str = "C1"
) -> Tensor:
    """Geodesic angle in radians (n,) between predicted and true orientations (n, 4).

    The smallest over all equivalents in the point group ``symmetry``.
    """
    if predicted_quaternions.shape != true_quaternions.shape:
        raise ValueError(
            f"expected as many predicted as true orientations, found shapes "
            f"{tuple(predicted_quaternions.shape)} and {tuple(true_quaternions.shape)}; match the rows first"
        )
    return symmetric_distance(predicted_quaternions, true_quaternions, symmetry_group(symmetry))


def summarise_errors(errors: Tensor) -> ErrorSummary:
    """Median, mean, quartiles and the share above 0.3 rad of ``errors`` (n,) in radians."""
    if len(errors) == 0:
        raise ValueError(
            "expected at least one orientation error, found none; check the selection of particles"
        )
    values = errors.detach().double().cpu().numpy()
    lower, median, upper = np.quantile(values, [0.25, 0.5, 0.75])
    return ErrorSummary(
        count=len(values),
        median_rad=float(median),
        mean_rad=float(values.mean()),
        lower_quartile_rad=float(lower),
        upper_quartile_rad=float(upper),
        share_above_0_3_rad=float((values > 0.3).mean()),
    )


@dataclass(frozen=True)
class FscCurve:
    """Agreement of two half maps per integer shell 0 … box // 2; see `fsc_curve`."""

    box: int
    pixel_size_angstrom: float
    unmasked: Tensor
    masked: Tensor

    @property
    def unmasked_resolution_angstrom(self) -> float:
        """Where the FSC of the whole boxes falls below 0.143."""
        return resolution_angstrom(self.unmasked, self.box, self.pixel_size_angstrom)

    @property
    def masked_resolution_angstrom(self) -> float:
        """Where the FSC inside the mask falls below 0.143."""
        return resolution_angstrom(self.masked, self.box, self.pixel_size_angstrom)

    def table(self) -> pd.DataFrame:
        """One row a shell; the resolution of shell 0 is infinite."""
        shell = np.arange(self.box // 2 + 1)
        frequency = shell / (self.box * self.pixel_size_angstrom)
        return pd.DataFrame(
            {
                "shell": shell,
                "frequency_per_angstrom": frequency,
                "resolution_angstrom": np.divide(
                    1, frequency, out=np.full(len(shell), np.inf), where=shell > 0
                ),
                "fsc_unmasked": self.unmasked.numpy(),
                "fsc_masked": self.masked.numpy(),
            }
        )


def fsc_curve(half_maps: HalfMaps, mask: Tensor | None = None) -> FscCurve:
    """FSC of two half maps, as they are and multiplied by ``mask`` (n, n, n), by default `soft_mask`.

    The mask is soft and loose, but what it shares between the halves still lifts the masked curve a
    little. Where ``half_maps.independent`` is false both curves are optimistic.
    """
    first, second = half_maps.half1, half_maps.half2
    if mask is None:
        mask = soft_mask(half_maps.full)
    masked = [Volume(half.voxels * mask, half.pixel_size_angstrom) for half in (first, second)]
    return FscCurve(
        box=first.voxels.shape[0],
        pixel_size_angstrom=first.pixel_size_angstrom,
        unmasked=fourier_shell_correlation(first, second),
        masked=fourier_shell_correlation(*masked),
    )


def fourier_shell_correlation(first: Volume, second: Volume) -> Tensor:
    """Correlation of two maps per integer shell 0 … n // 2, (n // 2 + 1,) float64; 0 where one is empty."""
    if first.voxels.shape != second.voxels.shape:
        raise ValueError(
            f"expected two maps of one box, found {tuple(first.voxels.shape)} and "
            f"{tuple(second.voxels.shape)}; resample one of them"
        )
    box = first.voxels.shape[0]
    a, b = (torch.fft.rfftn(volume.voxels.float()) for volume in (first, second))
    # Columns strictly between zero and Nyquist stand for their mates at -kx as well.
    column = torch.arange(box // 2 + 1)
    mates = torch.where((column == 0) | (2 * column == box), 1.0, 2.0)
    shell = _shell_index(box)
    kept = shell <= box // 2
    cross, power_a, power_b = (
        torch.bincount(shell[kept], (product * mates)[kept].double(), minlength=box // 2 + 1)
        for product in ((a * b.conj()).real, a.abs().square(), b.abs().square())
    )
    norm = (power_a * power_b).sqrt()
    return torch.where(norm > 0, cross / norm.clamp_min(torch.finfo(norm.dtype).tiny), 0.0)


def filter_shells(voxels: Tensor, weight: Tensor) -> Tensor:
    """A map (n, n, n) whose Fourier shells are multiplied by ``weight`` (n // 2 + 1,); 0 in the corners."""
    box = voxels.shape[0]
    shell = _shell_index(box)
    factor = torch.where(shell < len(weight), weight.to(voxels)[shell.clamp_max(len(weight) - 1)], 0.0)
    return torch.fft.irfftn(torch.fft.rfftn(voxels) * factor, s=(box,) * 3)


def resolution_angstrom(
    fsc: Tensor, box: int, pixel_size_angstrom: float, threshold: float = FSC_THRESHOLD
) -> float:
    """Resolution in Å where ``fsc`` (box // 2 + 1,) first falls below ``threshold``.

    Linear between shells; Nyquist when it never does; at worst the first shell, the whole field of view.
    """
    below = (fsc < threshold).nonzero().flatten()
    if len(below) == 0:
        return 2 * pixel_size_angstrom
    shell = int(below[0])
    if shell <= 1:
        return box * pixel_size_angstrom
    before, after = float(fsc[shell - 1]), float(fsc[shell])
    position = shell - 1 + (before - threshold) / (before - after)
    return box * pixel_size_angstrom / position


def soft_spherical_mask(box: int, radius_pixel: float, edge_pixel: float = 5.0) -> Tensor:
    """Ball around voxel box // 2, (box, box, box): 1 within the radius, then a cosine edge down to 0."""
    axis = (torch.arange(box) - box // 2).float()
    radius = (axis[:, None, None] ** 2 + axis[None, :, None] ** 2 + axis**2).sqrt()
    return _cosine_edge(radius - radius_pixel, edge_pixel)


def soft_mask(
    average: Volume,
    low_pass_angstrom: float | None = None,
    extend_pixel: float = 3.0,
    edge_pixel: float = 6.0,
) -> Tensor:
    """Soft mask (n, n, n) around the molecule in a map of all particles.

    The map is low-passed (default: 8 shells of its box, or 15 Å where that is coarser). The molecule is what
    lies above a tenth of the maximum and three standard deviations of the box's corners, but for regions
    smaller than a tenth of the largest: subunits may seem apart, specks of noise are small. It grows by
    ``extend_pixel`` and ends in a cosine of ``edge_pixel``.
    """
    box = average.voxels.shape[0]
    extent = box * average.pixel_size_angstrom
    cutoff_angstrom = low_pass_angstrom or max(15.0, extent / 8)
    frequency = _shell_radius(box) / extent
    gaussian = torch.exp(-math.log(2) / 2 * (frequency * cutoff_angstrom) ** 2)
    smooth = torch.fft.irfftn(torch.fft.rfftn(average.voxels.float()) * gaussian, s=(box,) * 3)
    corners = smooth[soft_spherical_mask(box, box / 2, 1) == 0]
    threshold = max(0.1 * float(smooth.max()), float(corners.mean() + 3 * corners.std()))
    regions, count = ndimage.label((smooth > threshold).numpy())
    if count == 0:
        return soft_spherical_mask(box, box / 2 - edge_pixel, edge_pixel)
    sizes = np.bincount(regions.ravel())
    sizes[0] = 0  # what lies below the threshold
    is_molecule = (sizes >= SMALLEST_REGION * sizes.max())[regions]
    distance = ndimage.distance_transform_edt(~is_molecule)
    return _cosine_edge(torch.from_numpy(distance).float() - extend_pixel, edge_pixel)


def _cosine_edge(distance_pixel: Tensor, edge_pixel: float) -> Tensor:
    """1 where the distance is ≤ 0, 0 from ``edge_pixel`` on, a half cosine between."""
    return (torch.cos(torch.pi * (distance_pixel / edge_pixel).clamp(0, 1)) + 1) / 2


def _shell_radius(box: int) -> Tensor:
    """|k| in shells (cycles per box) of every element of `torch.fft.rfftn`, (n, n, n // 2 + 1)."""
    full = torch.fft.fftfreq(box, d=1 / box)
    half = torch.fft.rfftfreq(box, d=1 / box)
    return (full[:, None, None] ** 2 + full[None, :, None] ** 2 + half**2).sqrt()


def _shell_index(box: int) -> Tensor:
    """Integer shell |k| · n, rounded, of every element of `torch.fft.rfftn`."""
    return torch.round(_shell_radius(box)).long()
