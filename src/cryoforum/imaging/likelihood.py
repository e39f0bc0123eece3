"""How likely an image is under a pose: the one model that the global search and local refinement share.

A whitened image y = X / σ at a distinct frequency k is the slice of the reference, times
c = scale · CTF / σ, times a phase for the origin o, plus complex noise of power 1:

    y(k) = c(k) F(R k) exp(2πi k·o) + noise,    log p = const - Σ |y - c F e|².

What is called the gain is log p minus that of an image without signal, 2 Re⟨y, m⟩ - ⟨m, m⟩.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from cryoforum.dataset.ctf_parameters import CtfParameters
from cryoforum.fields.rows import take
from cryoforum.geometry.rotations import unitquat_to_rotmat
from cryoforum.imaging.ctf import ctf_at
from cryoforum.imaging.fft import FrequencyPoints, to_fourier
from cryoforum.imaging.projection import check_reach, checked_rotations, values_and_slopes

PARAMETERS = 5  # three rotations about the axes of the view (x, y, z), then the origin's x and y
_UPPER = torch.triu_indices(PARAMETERS, PARAMETERS)


@dataclass(frozen=True)
class WhitenedImages:
    """Images divided by the deviation of their noise, at some frequencies.

    values: (n, p) complex64, y. transfer: (n, p) float32, c = scale · CTF / σ.
    """

    points: FrequencyPoints
    values: Complex[Tensor, "n p"]
    transfer: Float[Tensor, "n p"]

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, rows: Tensor) -> "WhitenedImages":
        return WhitenedImages(self.points, self.values[rows], self.transfer[rows])

    def within(self, radius: float) -> "WhitenedImages":
        """The same images up to ``radius`` cycles per box."""
        points = self.points.within(radius)
        values, transfer = (of[:, : len(points.kx)].contiguous() for of in (self.values, self.transfer))
        return WhitenedImages(points, values, transfer)


def whiten(
    images: Float[Tensor, "n box box"],
    ctf: CtfParameters | None,
    pixel_size_angstrom: float,
    points: FrequencyPoints,
    noise_power: Float[Tensor, "n p"],
    scale: Float[Tensor, "n p"],
) -> WhitenedImages:
    """Whitened transforms of images (n, box, box), whose noise and scale at the points are (n, p)."""
    inverse_deviation = noise_power.rsqrt()
    transfer = scale * inverse_deviation
    if ctf is not None:
        transfer = transfer * ctf_at(ctf, *points.per_angstrom(pixel_size_angstrom))
    return WhitenedImages(points, points.values_of(to_fourier(images)) * inverse_deviation, transfer)


@dataclass(frozen=True)
class Evaluation:
    """The likelihood of m (image, pose) pairs and how it changes with the pose.

    cross: (m,) Re⟨y, model⟩; power: (m,) ⟨model, model⟩;
    gradient: (m, 5) of the gain; information: (m, 5, 5) Fisher information. Rotations are about the
    axes of the view, in radians (R becomes R exp[ω]×), origins in pixels.
    """

    cross: Float[Tensor, " m"]
    power: Float[Tensor, " m"]
    gradient: Float[Tensor, "m 5"]
    information: Float[Tensor, "m 5 5"]

    def __getitem__(self, chosen: Tensor) -> "Evaluation":
        return take(self, chosen)

    @property
    def gain(self) -> Float[Tensor, " m"]:
        """Log-likelihood over that of an image without signal, (m,)."""
        return 2 * self.cross - self.power


def evaluate(
    transform: Float[Tensor, "z y x 2"],
    images: WhitenedImages,
    rows: Int[Tensor, " m"],
    quaternions: Float[Tensor, "m 4"],
    origins_pixel: Float[Tensor, "m 2"],
) -> Evaluation:
    """Likelihood of the images of ``rows`` (m,) under poses (m, 4) and origins (m, 2) in pixels.

    ``transform`` is a `projection.cropped_transform` that reaches as far as the images' points. On the CPU a
    compiled loop does the work, elsewhere `evaluate_plainly`, its twin. InputError where the transform does
    not reach that far or a quaternion is not of length 1.
    """
    if transform.device.type != "cpu":
        return evaluate_plainly(transform, images, rows, quaternions, origins_pixel)
    rotations = checked_rotations(transform, quaternions, images.points)
    from cryoforum.imaging.kernels import accumulate  # importing numba takes a second: only on first use

    points, pairs = images.points, (rows, rotations, origins_pixel.float())
    sums = accumulate(transform, points.kx, points.ky, points.box, images.values, images.transfer, *pairs)
    return _unpacked(sums)


def evaluate_plainly(
    transform: Float[Tensor, "z y x 2"],
    images: WhitenedImages,
    rows: Int[Tensor, " m"],
    quaternions: Float[Tensor, "m 4"],
    origins_pixel: Float[Tensor, "m 2"],
) -> Evaluation:
    """What `evaluate` does, in tensor operations for any device; differentiable in the pose."""
    points = images.points
    kx, ky = points.kx.to(transform.device), points.ky.to(transform.device)
    check_reach(transform, points)
    value, slope = values_and_slopes(transform, unitquat_to_rotmat(quaternions), kx, ky)
    transfer, data = images.transfer[rows], images.values[rows]
    angle = 2 * math.pi / points.box
    data = data * points.phases(origins_pixel).conj()
    model = transfer * value
    gx, gy, gz = (transfer * part for part in slope.unbind(1))
    derivatives = torch.stack(
        [ky * gz, -kx * gz, kx * gy - ky * gx, 1j * angle * kx * model, 1j * angle * ky * model], dim=1
    )
    return Evaluation(
        cross=(data.conj() * model).real.sum(-1),
        power=model.abs().square().sum(-1),
        gradient=2 * torch.einsum("mip,mp->mi", derivatives.conj(), data - model).real,
        information=2 * torch.einsum("mip,mjp->mij", derivatives.conj(), derivatives).real,
    )


def _unpacked(sums: Tensor) -> Evaluation:
    """The kernel's 22 sums of each pair: cross, power, five of the gradient, fifteen of the information."""
    information = sums.new_empty(len(sums), PARAMETERS, PARAMETERS)
    row, column = _UPPER
    information[:, row, column] = sums[:, 7:]
    information[:, column, row] = sums[:, 7:]
    return Evaluation(sums[:, 0], sums[:, 1], sums[:, 2:7], information)
