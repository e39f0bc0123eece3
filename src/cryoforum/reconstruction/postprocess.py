"""The resolution to publish: the masked FSC without what the mask itself adds (Chen et al. 2013).

A mask convolves the transforms of both half maps in the same way, so even noise correlates inside it. How
much, phases show that are drawn at random beyond the shell where the maps stop agreeing well, in each half
by itself: nothing but the mask correlates there.
"""

from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor

from cryoforum.dataset.volumes import HalfMaps, Volume
from cryoforum.imaging.masks import soft_mask
from cryoforum.imaging.shells import shell_index
from cryoforum.reconstruction.fsc import FscCurve, fourier_shell_correlation, fsc_curve, resolution_angstrom

# As RELION: phases are drawn from the first shell on whose unmasked FSC is below the first number, and the
# curve is corrected from two shells later on, as the mask mixes neighbouring shells.
RANDOMISED_BELOW, SHELLS_LATER = 0.8, 2


@dataclass(frozen=True)
class CorrectedFsc:
    """An FSC with its correction, per integer shell 0 … box // 2.

    Parameters
    ----------
    curve
        Unmasked and masked.
    mask
        (n, n, n), from 0 to 1.
    randomised
        (box // 2 + 1,) masked, of maps with random phases from ``first_shell`` on.
    corrected
        (box // 2 + 1,) what of the masked one is not the mask's.
    first_shell
        None where the maps agree so well up to Nyquist that nothing can be randomised.
    """

    curve: FscCurve
    mask: Tensor
    randomised: Tensor
    corrected: Tensor
    first_shell: int | None

    @property
    def resolution_angstrom(self) -> float:
        """Where the corrected FSC falls below 0.143."""
        return resolution_angstrom(self.corrected, self.curve.box, self.curve.pixel_size_angstrom)

    def table(self) -> pd.DataFrame:
        """One row a shell, as of `FscCurve.table`, with the randomised and the corrected FSC."""
        further = {"fsc_randomised": self.randomised.numpy(), "fsc_corrected": self.corrected.numpy()}
        return self.curve.table().assign(**further)


def corrected_fsc(half_maps: HalfMaps, mask: Tensor | None = None, seed: int = 0) -> CorrectedFsc:
    """The FSC of two half maps inside a mask, corrected by phase randomisation.

    Parameters
    ----------
    half_maps
        Of one box.
    mask
        (n, n, n); None for `soft_mask` of the full map.
    seed
        Of the phases.

    Raises
    ------
    InputError
        Where the boxes differ.
    """
    if mask is None:
        mask = soft_mask(half_maps.full)
    curve = fsc_curve(half_maps, mask)
    low = (curve.unmasked[1:] < RANDOMISED_BELOW).nonzero()
    if not len(low):
        return CorrectedFsc(curve, mask, curve.masked, curve.masked, None)
    first = 1 + int(low[0])
    generator = torch.Generator().manual_seed(seed)
    halves = (
        Volume(mask * phases_randomised(half.voxels, first, generator), half.pixel_size_angstrom)
        for half in (half_maps.half1, half_maps.half2)
    )
    randomised = fourier_shell_correlation(*halves)
    true = (curve.masked - randomised) / (1 - randomised).clamp_min(torch.finfo(randomised.dtype).eps)
    is_corrected = torch.arange(len(true)) >= first + SHELLS_LATER
    return CorrectedFsc(curve, mask, randomised, torch.where(is_corrected, true, curve.masked), first)


def phases_randomised(voxels: Tensor, first_shell: int, generator: torch.Generator) -> Tensor:
    """A map (n, n, n) with its amplitudes, and phases of white noise from ``first_shell`` on."""
    transform = torch.fft.rfftn(voxels.float())
    noise = torch.fft.rfftn(torch.randn(voxels.shape, generator=generator))
    drawn = torch.polar(transform.abs(), noise.angle())
    random = shell_index(len(voxels)) >= first_shell
    return torch.fft.irfftn(torch.where(random, drawn, transform), s=voxels.shape)
