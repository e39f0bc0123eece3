"""Centred Fourier transforms: the origin is pixel n // 2 in real space, index 0 in frequency."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from cryoforum.errors import require


def frequency_grid(
    box: int, pixel_size_angstrom: float = 1.0
) -> tuple[Float[Tensor, "box 1"], Float[Tensor, "1 half"]]:
    """ky (box, 1) and kx (1, box // 2 + 1) of `torch.fft.rfft2`, in cycles per Å (or per pixel)."""
    ky = torch.fft.fftfreq(box, d=pixel_size_angstrom)[:, None]
    kx = torch.fft.rfftfreq(box, d=pixel_size_angstrom)[None, :]
    return ky, kx


def to_fourier(images: Float[Tensor, "*n box box"]) -> Complex[Tensor, "*n box half"]:
    """Half transform (..., n, n // 2 + 1) of real images (..., n, n), phases relative to n // 2."""
    return torch.fft.rfft2(torch.fft.ifftshift(images, dim=(-2, -1)))


def to_real(transforms: Complex[Tensor, "*n box half"], box: int) -> Float[Tensor, "*n box box"]:
    """Real images (..., box, box) of half transforms; the inverse of `to_fourier`."""
    return torch.fft.fftshift(torch.fft.irfft2(transforms, s=(box, box)), dim=(-2, -1))


def crop_or_pad(
    transforms: Complex[Tensor, "*n box half"], box: int, new_box: int
) -> Complex[Tensor, "*n new newhalf"]:
    """Half transforms at another box of the same field of view: frequencies cut off or zero-filled.

    Scaled so that mean pixel values stay as they are. Both boxes are even; the old Nyquist row
    is dropped when padding and the new one zeroed when cropping, so results are exactly real.
    """
    found = f"{box} and {new_box}; pad the images to an even box"
    require(box % 2 == new_box % 2 == 0, "even boxes", found)
    kept = min(box, new_box) // 2
    shape = (*transforms.shape[:-2], new_box, new_box // 2 + 1)
    result = torch.zeros(shape, dtype=transforms.dtype, device=transforms.device)
    result[..., :kept, :kept] = transforms[..., :kept, :kept]
    result[..., -kept + 1 :, :kept] = transforms[..., -kept + 1 :, :kept]
    return result * (new_box / box) ** 2


def phase_shift(
    transforms: Complex[Tensor, "n box half"], moves_pixel: Float[Tensor, "n 2"]
) -> Complex[Tensor, "n box half"]:
    """Transforms (n, box, box // 2 + 1) of the images moved by ``moves_pixel`` (n, 2), x then y.

    An image moves by minus its particle's origin or shift: see `dataset.poses.Poses`.
    """
    ky, kx = frequency_grid(transforms.shape[-2])
    phase = kx * moves_pixel[:, 0, None, None] + ky * moves_pixel[:, 1, None, None]
    return transforms * torch.exp(-2j * torch.pi * phase)


@dataclass(frozen=True)
class FrequencyPoints:
    """Frequencies at which transforms of real images are read, compared or inserted.

    box: pixels along a side of the images. kx, ky: (p,) float32 in cycles per box, kx ≥ 0.
    """

    box: int
    kx: Float[Tensor, " p"]
    ky: Float[Tensor, " p"]

    @property
    def radius(self) -> Float[Tensor, " p"]:
        """Distance from zero in cycles per box, (p,)."""
        return torch.hypot(self.kx, self.ky)

    @property
    def shell(self) -> Int[Tensor, " p"]:
        """Distance from zero, rounded, (p,) int64."""
        return self.radius.round().long()

    def per_angstrom(self, pixel_size_angstrom: float) -> tuple[Float[Tensor, " p"], Float[Tensor, " p"]]:
        """kx and ky, (p,) each, in cycles per Å where the images have this pixel size."""
        extent = self.box * pixel_size_angstrom
        return self.kx / extent, self.ky / extent

    def phases(self, origins_pixel: Float[Tensor, "m 2"]) -> Complex[Tensor, "m p"]:
        """exp(2πi k·o) of origins (m, 2) in pixels, (m, p): what moves a centred slice to where they are."""
        kx, ky = self.kx.to(origins_pixel.device), self.ky.to(origins_pixel.device)
        angle = 2 * math.pi / self.box * (kx * origins_pixel[:, :1] + ky * origins_pixel[:, 1:])
        return torch.polar(torch.ones_like(angle), angle)

    def values_of(self, transforms: Complex[Tensor, "*n box half"]) -> Complex[Tensor, "*n p"]:
        """The values (..., p) that half transforms (..., box, box // 2 + 1) have at the points."""
        return transforms[..., self.ky.long() % self.box, self.kx.long()]

    def half_transforms(self, values: Complex[Tensor, "*n p"]) -> Complex[Tensor, "*n box half"]:
        """Half transforms (..., box, box // 2 + 1) of values (..., p) at the points; 0 elsewhere."""
        result = values.new_zeros(*values.shape[:-1], self.box, self.box // 2 + 1)
        result[..., self.ky.long() % self.box, self.kx.long()] = values
        return result

    def within(self, radius: float) -> "FrequencyPoints":
        """The points up to ``radius``, of points in order of their distance."""
        count = int((self.radius <= radius).sum())
        return FrequencyPoints(self.box, self.kx[:count], self.ky[:count])


def frequency_points(box: int, radius: int) -> FrequencyPoints:
    """All distinct frequencies from 1 to ``radius`` cycles per box, by growing distance from zero.

    Of k and -k, which say the same of a real image, only one is here. InputError where ``radius`` is not
    between 0 and box / 2.
    """
    require(0 < radius < box / 2, f"a frequency from 1 to below {box // 2} cycles per box", radius)
    axis = torch.arange(-radius, radius + 1).float()
    ky, kx = torch.meshgrid(axis, axis, indexing="ij")
    distance = torch.hypot(kx, ky)
    chosen = (distance <= radius) & ((kx > 0) | (kx == 0) & (ky > 0))
    order = torch.argsort(distance[chosen], stable=True)
    return FrequencyPoints(box, kx[chosen][order], ky[chosen][order])


def half_transform_points(box: int, radius: float | None = None) -> FrequencyPoints:
    """Everything in a half transform up to ``radius`` cycles per box, row by row.

    Zero is among the points, and at kx = 0 both k and -k. The default radius is (box - 1) / 2, half a cycle
    below Nyquist: as far as all eight neighbours exist in a map's transform.
    """
    ky, kx = ((box * axis).round() for axis in frequency_grid(box))
    chosen = torch.hypot(kx, ky) <= ((box - 1) / 2 if radius is None else radius)
    row, column = chosen.nonzero().unbind(1)
    return FrequencyPoints(box, kx[0, column], ky[row, 0])
