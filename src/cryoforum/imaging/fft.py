"""Centred Fourier transforms: the origin is pixel n // 2 in real space, index 0 in frequency."""

import torch
from torch import Tensor

from cryoforum.errors import InputError


def frequency_grid(box: int, pixel_size_angstrom: float = 1.0) -> tuple[Tensor, Tensor]:
    """ky (box, 1) and kx (1, box // 2 + 1) of `torch.fft.rfft2`, in cycles per Å (or per pixel)."""
    ky = torch.fft.fftfreq(box, d=pixel_size_angstrom)[:, None]
    kx = torch.fft.rfftfreq(box, d=pixel_size_angstrom)[None, :]
    return ky, kx


def to_fourier(images: Tensor) -> Tensor:
    """Half transform (..., n, n // 2 + 1) of real images (..., n, n), phases relative to n // 2."""
    return torch.fft.rfft2(torch.fft.ifftshift(images, dim=(-2, -1)))


def to_real(transforms: Tensor, box: int) -> Tensor:
    """Real images (..., box, box) of half transforms; the inverse of `to_fourier`."""
    return torch.fft.fftshift(torch.fft.irfft2(transforms, s=(box, box)), dim=(-2, -1))


def crop_or_pad(transforms: Tensor, box: int, new_box: int) -> Tensor:
    """Half transforms at another box of the same field of view: frequencies cut off or zero-filled.

    Scaled so that mean pixel values stay as they are. Both boxes are even; the old Nyquist row
    is dropped when padding and the new one zeroed when cropping, so results are exactly real.
    """
    if box % 2 or new_box % 2:
        raise InputError(f"expected even boxes, found {box} and {new_box}; pad the images to an even box")
    kept = min(box, new_box) // 2
    shape = (*transforms.shape[:-2], new_box, new_box // 2 + 1)
    result = torch.zeros(shape, dtype=transforms.dtype, device=transforms.device)
    result[..., :kept, :kept] = transforms[..., :kept, :kept]
    result[..., -kept + 1 :, :kept] = transforms[..., -kept + 1 :, :kept]
    return result * (new_box / box) ** 2


def phase_shift(transforms: Tensor, shifts_pixel: Tensor) -> Tensor:
    """Transforms (n, box, box // 2 + 1) of the images moved by ``shifts_pixel`` (n, 2), x then y."""
    ky, kx = frequency_grid(transforms.shape[-2])
    phase = kx * shifts_pixel[:, 0, None, None] + ky * shifts_pixel[:, 1, None, None]
    return transforms * torch.exp(-2j * torch.pi * phase)
