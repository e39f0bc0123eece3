"""The resolution to publish, and the map to look at.

The resolution is that of the masked FSC without what the mask itself adds (Chen et al. 2013).

A mask convolves the transforms of both half maps in the same way, so even noise correlates inside it. How
much, phases show that are drawn at random beyond the shell where the maps stop agreeing well, in each half
by itself: nothing but the mask correlates there.
"""

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from cryoforum.dataset.volumes import HalfMaps, Volume
from cryoforum.imaging.masks import soft_mask
from cryoforum.imaging.shells import filter_shells, mean_by_shell, shell_index
from cryoforum.reconstruction.fsc import (
    FSC_THRESHOLD,
    FscCurve,
    fourier_shell_correlation,
    fsc_curve,
    resolution_angstrom,
)

# As RELION: phases are drawn from the first shell on whose unmasked FSC is below the first number, and the
# curve is corrected from two shells later on, as the mask mixes neighbouring shells.
RANDOMISED_BELOW, SHELLS_LATER = 0.8, 2
# Where amplitudes of proteins fall as those of their B factor: from here to the resolution (Rosenthal &
# Henderson 2003). Fewer shells tell nothing.
GUINIER_FROM_ANGSTROM, FEWEST_OF_GUINIER = 10.0, 4


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
    randomised = randomised_fsc(half_maps, mask, first, seed)
    corrected = without_randomised(curve.masked, randomised, first + SHELLS_LATER)
    return CorrectedFsc(curve, mask, randomised, corrected, first)


def randomised_fsc(half_maps: HalfMaps, mask: Tensor, first_shell: int, seed: int = 0) -> Float[Tensor, " s"]:
    """The masked FSC of halves whose phases are random from a shell on: what the mask carries there."""
    generator = torch.Generator().manual_seed(seed)
    halves = (
        Volume(mask * phases_randomised(half.voxels, first_shell, generator), half.pixel_size_angstrom)
        for half in (half_maps.half1, half_maps.half2)
    )
    return fourier_shell_correlation(*halves)


def without_randomised(masked: Tensor, randomised: Tensor, first_shell: int) -> Float[Tensor, " s"]:
    """The masked FSC, from a shell on without what the mask adds."""
    true = (masked - randomised) / (1 - randomised).clamp_min(torch.finfo(randomised.dtype).eps)
    return torch.where(torch.arange(len(true)) >= first_shell, true, masked)


def phases_randomised(voxels: Tensor, first_shell: int, generator: torch.Generator) -> Tensor:
    """A map (n, n, n) with its amplitudes, and phases of white noise from ``first_shell`` on."""
    transform = torch.fft.rfftn(voxels.float())
    noise = torch.fft.rfftn(torch.randn(voxels.shape, generator=generator))
    drawn = torch.polar(transform.abs(), noise.angle())
    random = shell_index(len(voxels)) >= first_shell
    return torch.fft.irfftn(torch.where(random, drawn, transform), s=voxels.shape)


@dataclass(frozen=True)
class PostprocessedMap:
    """A map to look at and to build in.

    Parameters
    ----------
    volume
        Weighted by its FSC, sharpened, and cut at the resolution; without a mask.
    b_factor_angstrom2
        By which amplitudes had fallen off, negative as it is taken away; None where the resolution is too
        low to tell.
    """

    volume: Volume
    b_factor_angstrom2: float | None


def postprocessed(half_maps: HalfMaps, fsc: CorrectedFsc) -> PostprocessedMap:
    """The full map weighted by √(2 FSC / (1 + FSC)) and sharpened by the B factor of a Guinier plot.

    Rosenthal & Henderson 2003; the corrected FSC is used, as far as it is above 0.143 from the start.
    """
    full, shells = half_maps.full, torch.arange(len(fsc.corrected))
    extent = len(full.voxels) * full.pixel_size_angstrom
    below = (fsc.corrected[1:] < FSC_THRESHOLD).nonzero()
    highest = int(below[0]) if len(below) else len(shells) - 1
    curve = fsc.corrected.clamp(0, 1)
    weight = (2 * curve / (1 + curve)).sqrt()
    power = mean_by_shell(
        torch.fft.rfftn(full.voxels * fsc.mask).abs().square(), shell_index(len(full.voxels))
    )
    square = (shells / extent).square()
    seen = (shells >= extent / GUINIER_FROM_ANGSTROM) & (shells <= highest)
    b_factor = None
    if int(seen.sum()) >= FEWEST_OF_GUINIER:
        amplitude = weight * power[: len(shells)].sqrt()
        slope, _ = np.polyfit(square[seen].numpy(), amplitude[seen].log().numpy(), 1)
        b_factor = 4 * float(slope)
    sharpening = torch.exp(-(b_factor or 0.0) / 4 * square)
    factor = torch.where(shells <= highest, weight * sharpening, 0.0).float()
    return PostprocessedMap(replace(full, voxels=filter_shells(full.voxels, factor)), b_factor)
