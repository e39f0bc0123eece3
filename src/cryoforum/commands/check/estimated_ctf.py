"""Whether images carry a CTF that their file does not describe.

Each particle gets the defocus that fits one half of its Fourier points best. The log-likelihood of the other
half then shows whether this CTF explains more than none; images without a CTF cannot gain by it.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cryoforum.commands.check.interpretations import (
    Interpretation,
    Sample,
    Support,
    interpreted,
    shell_sums,
    support,
    support_by_maps_of,
)
from cryoforum.dataset.ctf_parameters import CtfParameters
from cryoforum.imaging.ctf import ctf_at

# The microscope is unknown; a wrong voltage or Cs acts as another defocus here.
VOLTAGE_KV, SPHERICAL_MM, AMPLITUDE_CONTRAST = 300.0, 2.7, 0.1
DEFOCUS_ANGSTROM = torch.logspace(3.5, 4.7, 60)  # 0.3 to 5 µm
ROUNDS, INNER_ROUNDS = 2, 5
LEAST_MEAN_CTF = 0.1  # of a shell, below which the map made without a CTF holds no signal


@dataclass(frozen=True)
class EstimatedCtf:
    """The defocus that the images themselves imply.

    Attributes
    ----------
    gains_without, gains_with
        (n,) log-likelihoods without and with a CTF, of the points that chose no defocus.
    median_angstrom
        Median defocus of the particles.
    """

    gains_without: Tensor
    gains_with: Tensor
    median_angstrom: float


def estimated_ctf(sample: Sample, plain: Support) -> EstimatedCtf:
    """Give each particle a defocus, and compare with no CTF.

    Parameters
    ----------
    sample
        Particles without CTF parameters.
    plain
        The interpretation without a CTF whose orientations and origins fit.
    """
    is_choosing = torch.arange(len(sample.points.kx)) % 2 == 0
    choosing, judging = replace(sample, used=is_choosing), replace(sample, used=~is_choosing)
    shells = int(sample.points.shell.max()) + 1
    radius = torch.arange(shells) / sample.extent_angstrom
    curves = ctf_at(_ctf_parameters(DEFOCUS_ANGSTROM), radius, torch.zeros(shells))
    # The map without a CTF is the molecule times the mean CTF.
    mean = curves.mean(0)
    scale = torch.where(mean.abs() > LEAST_MEAN_CTF, mean / mean.square(), 0.0)
    found, without = plain, support_by_maps_of(plain, judging, plain.interpretation)
    defocus = torch.empty(0)
    for _ in range(ROUNDS):
        _, centred, transfer = interpreted(replace(choosing, ctf=None), plain.interpretation)
        cross, power = shell_sums(choosing, centred, transfer * found.slices)
        for _ in range(INNER_ROUNDS):
            gains = cross @ (2 * scale * curves).T - power @ (scale * curves).square().T
            best = curves[gains.argmax(1)]
            scale = (best * cross).sum(0) / (best.square() * power).sum(0).clamp_min(1e-30)
        defocus = DEFOCUS_ANGSTROM[gains.argmax(1)]
        interpretation = Interpretation(
            plain.interpretation.inverse_rotation, origin_factor=plain.interpretation.origin_factor
        )
        found = support(replace(judging, ctf=_ctf_parameters(defocus)), interpretation)
        scale = torch.ones(shells)
    return EstimatedCtf(without, found.gains, float(defocus.median()))


def _ctf_parameters(defocus_angstrom: Tensor) -> CtfParameters:
    zeros = torch.zeros_like(defocus_angstrom)
    microscope = zeros + VOLTAGE_KV, zeros + SPHERICAL_MM, zeros + AMPLITUDE_CONTRAST
    return CtfParameters(defocus_angstrom, defocus_angstrom, zeros, *microscope, phase_shift_deg=zeros)
