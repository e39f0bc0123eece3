"""How likely an image is under a pose: the one model that matching and local refinement share.

A whitened image y = X / σ at a distinct frequency k is the slice of the reference, times
c = scale · CTF / σ, times a phase for the origin o, plus complex noise of power 1:

    y(k) = c(k) F(R k) exp(2πi k·o) + noise,    log p = const - Σ |y - c F e|².

What is called the gain is log p minus that of an image without signal, 2 Re⟨y, m⟩ - ⟨m, m⟩.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from cryoforum.dataset.ctf_parameters import CtfParameters
from cryoforum.errors import InputError
from cryoforum.geometry.rotations import unitquat_to_rotmat
from cryoforum.imaging.ctf import ctf_at
from cryoforum.imaging.fft import to_fourier
from cryoforum.imaging.projection import PADDING, radius_of_cropped

PARAMETERS = 5  # three rotations about the axes of the view (x, y, z), then the origin's x and y
_UPPER = torch.triu_indices(PARAMETERS, PARAMETERS)


@dataclass(frozen=True)
class FrequencyPoints:
    """Distinct frequencies of a real image of ``box`` pixels, without zero, by growing distance.

    kx, ky: (p,) in cycles per box. Of k and -k, which say the same, only one is here.
    """

    box: int
    kx: Tensor
    ky: Tensor

    @property
    def radius(self) -> Tensor:
        """Distance from zero in cycles per box, (p,)."""
        return torch.hypot(self.kx, self.ky)

    @property
    def shell(self) -> Tensor:
        """Integer shell, (p,)."""
        return self.radius.round().long()

    def phases(self, origins_pixel: Tensor) -> Tensor:
        """exp(2πi k·o) of origins (m, 2) in pixels, (m, p): what moves a centred slice to where they are."""
        kx, ky = self.kx.to(origins_pixel.device), self.ky.to(origins_pixel.device)
        angle = 2 * math.pi / self.box * (kx * origins_pixel[:, :1] + ky * origins_pixel[:, 1:])
        return torch.polar(torch.ones_like(angle), angle)

    def count_within(self, radius: float) -> int:
        """How many points, from the first on, lie within ``radius`` cycles per box."""
        return int((self.radius <= radius).sum())

    def within(self, radius: float) -> "FrequencyPoints":
        """The points up to ``radius``."""
        count = self.count_within(radius)
        return FrequencyPoints(self.box, self.kx[:count], self.ky[:count])


def frequency_points(box: int, radius: int) -> FrequencyPoints:
    """All distinct frequencies from 1 to ``radius`` cycles per box; radius below box / 2."""
    if not 0 < radius < box / 2:
        raise InputError(f"expected a frequency from 1 to below {box // 2} cycles per box, found {radius}")
    axis = torch.arange(-radius, radius + 1).float()
    ky, kx = torch.meshgrid(axis, axis, indexing="ij")
    distance = torch.hypot(kx, ky)
    chosen = (distance <= radius) & ((kx > 0) | (kx == 0) & (ky > 0))
    order = torch.argsort(distance[chosen], stable=True)
    return FrequencyPoints(box, kx[chosen][order], ky[chosen][order])


@dataclass(frozen=True)
class WhitenedImages:
    """Images divided by the deviation of their noise, at some frequencies.

    values: (n, p) complex64, y. transfer: (n, p) float32, c = scale · CTF / σ.
    """

    points: FrequencyPoints
    values: Tensor
    transfer: Tensor

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, rows: Tensor) -> "WhitenedImages":
        return WhitenedImages(self.points, self.values[rows], self.transfer[rows])

    def within(self, radius: float) -> "WhitenedImages":
        """The same images up to ``radius`` cycles per box."""
        points = self.points.within(radius)
        count = len(points.kx)
        return WhitenedImages(
            points, self.values[:, :count].contiguous(), self.transfer[:, :count].contiguous()
        )


def whiten(
    images: Tensor,
    ctf: CtfParameters | None,
    pixel_size_angstrom: float,
    points: FrequencyPoints,
    noise_power: Tensor,
    scale: Tensor,
) -> WhitenedImages:
    """Whitened transforms of images (n, box, box), whose noise and scale at the points are (n, p)."""
    row, column = points.ky.long() % points.box, points.kx.long()
    inverse_deviation = noise_power.rsqrt()
    transfer = scale * inverse_deviation
    if ctf is not None:
        extent = points.box * pixel_size_angstrom
        transfer = transfer * ctf_at(ctf, points.kx / extent, points.ky / extent)
    return WhitenedImages(points, to_fourier(images)[:, row, column] * inverse_deviation, transfer)


@dataclass(frozen=True)
class Evaluation:
    """The likelihood of m (image, pose) pairs and how it changes with the pose.

    cross: (m,) Re⟨y, model⟩; power: (m,) ⟨model, model⟩;
    gradient: (m, 5) of the gain; information: (m, 5, 5) Fisher information. Rotations are about the
    axes of the view, in radians (R becomes R exp[ω]×), origins in pixels.
    """

    cross: Tensor
    power: Tensor
    gradient: Tensor
    information: Tensor

    def __getitem__(self, chosen: Tensor) -> "Evaluation":
        return Evaluation(
            self.cross[chosen], self.power[chosen], self.gradient[chosen], self.information[chosen]
        )

    @property
    def gain(self) -> Tensor:
        """Log-likelihood over that of an image without signal, (m,)."""
        return 2 * self.cross - self.power


def evaluate(
    transform: Tensor, images: WhitenedImages, rows: Tensor, quaternions: Tensor, origins_pixel: Tensor
) -> Evaluation:
    """Likelihood of the images of ``rows`` (m,) under poses (m, 4) and origins (m, 2) in pixels.

    ``transform`` is a `cropped_transform` that reaches as far as the images' points. On the CPU the
    compiled kernel does the work, elsewhere `evaluate_plainly`, its twin.
    """
    _check_reach(transform, images.points)
    if transform.device.type != "cpu":
        return evaluate_plainly(transform, images, rows, quaternions, origins_pixel)
    from cryoforum.imaging.kernels import accumulate  # compiling takes seconds: only for those who need it

    rotations = unitquat_to_rotmat(quaternions.double()).float()
    sums = accumulate(
        transform.numpy(),
        images.points.kx.numpy(),
        images.points.ky.numpy(),
        images.points.box,
        images.values.numpy(),
        images.transfer.numpy(),
        rows.numpy(),
        rotations.numpy(),
        origins_pixel.float().numpy(),
    )
    return _unpacked(torch.from_numpy(sums))


def evaluate_plainly(
    transform: Tensor, images: WhitenedImages, rows: Tensor, quaternions: Tensor, origins_pixel: Tensor
) -> Evaluation:
    """What `evaluate` does, in tensor operations for any device; differentiable in the pose."""
    points = images.points
    kx, ky = points.kx.to(transform.device), points.ky.to(transform.device)
    value, slope = _sampled(transform, unitquat_to_rotmat(quaternions), kx, ky)
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


def slices_at(transform: Tensor, quaternions: Tensor, points: FrequencyPoints) -> Tensor:
    """Central slices (m, p) complex of a `cropped_transform` along ``quaternions`` (m, 4)."""
    _check_reach(transform, points)
    kx, ky = points.kx.to(transform.device), points.ky.to(transform.device)
    return _sampled(transform, unitquat_to_rotmat(quaternions), kx, ky)[0]


def _check_reach(transform: Tensor, points: FrequencyPoints) -> None:
    """The kernel does not look where it reads, so nothing may be asked for that is not there."""
    reach, highest = radius_of_cropped(transform), float(points.radius[-1])
    if highest > reach:
        raise InputError(
            f"expected frequencies up to the transform's {reach} cycles per box, found {highest:.1f}"
        )


def _sampled(transform: Tensor, rotations: Tensor, kx: Tensor, ky: Tensor) -> tuple[Tensor, Tensor]:
    """Trilinear values (m, p) at R (kx, ky, 0), and their slopes (m, 3, p) along the axes of the view."""
    height, _, width, _ = transform.shape
    centre = height // 2
    position = PADDING * (rotations[:, :, 0, None] * kx + rotations[:, :, 1, None] * ky)
    mirrored = position[:, 0] < 0
    position = torch.where(mirrored[:, None], -position, position)
    corner = position.detach().floor()
    x, y, z = (position - corner).unbind(1)
    ix, iy, iz = corner.long().unbind(1)
    first = ((iz + centre) * height + iy + centre) * width + ix
    flat = torch.view_as_complex(transform).view(-1)
    v = [[[flat[first + (a * height + b) * width + c] for c in (0, 1)] for b in (0, 1)] for a in (0, 1)]
    along_x = [[v[a][b][0] + x * (v[a][b][1] - v[a][b][0]) for b in (0, 1)] for a in (0, 1)]
    along_y = [along_x[a][0] + y * (along_x[a][1] - along_x[a][0]) for a in (0, 1)]
    value = along_y[0] + z * (along_y[1] - along_y[0])
    slope_z = along_y[1] - along_y[0]
    steps_y = [along_x[a][1] - along_x[a][0] for a in (0, 1)]
    slope_y = steps_y[0] + z * (steps_y[1] - steps_y[0])
    steps_x = [[v[a][b][1] - v[a][b][0] for b in (0, 1)] for a in (0, 1)]
    rows_x = [steps_x[a][0] + y * (steps_x[a][1] - steps_x[a][0]) for a in (0, 1)]
    slope_x = rows_x[0] + z * (rows_x[1] - rows_x[0])
    slope = PADDING * torch.stack([slope_x, slope_y, slope_z], dim=1)
    # F(-k) is the conjugate of F(k): its slope is the conjugate's, with the other sign.
    value = torch.where(mirrored, value.conj(), value)
    slope = torch.where(mirrored[:, None], -slope.conj(), slope)
    return value, torch.einsum("mji,mjp->mip", rotations.to(slope.dtype), slope)


def _unpacked(sums: Tensor) -> Evaluation:
    """The kernel's 22 sums of each pair: cross, power, five of the gradient, fifteen of the information."""
    information = sums.new_empty(len(sums), PARAMETERS, PARAMETERS)
    row, column = _UPPER
    information[:, row, column] = sums[:, 7:]
    information[:, column, row] = sums[:, 7:]
    return Evaluation(sums[:, 0], sums[:, 1], sums[:, 2:7], information)
