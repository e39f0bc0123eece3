"""Random changes of training images."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from cryoforum.config import AugmentationConfig
from cryoforum.dataset.ctf_parameters import CtfParameters
from cryoforum.fields.rows import take
from cryoforum.geometry.rotations import compose, rotation_about_view_axis
from cryoforum.imaging.ctf import ctf_2d
from cryoforum.imaging.fft import to_fourier, to_real


@dataclass(frozen=True)
class Changes:
    """How each of b network inputs is changed; None where nothing of that kind is.

    Attributes
    ----------
    defocus_angstrom : Tensor, optional
        Errors in defocus, (b,).
    angles_rad, mirrored, moves_pixel : Tensor, optional
        (b,), (b,) and (b, 2), as in `turn_and_shift`.
    noise : Tensor, optional
        (b, m, m) of deviation 1.
    factors : Tensor, optional
        On the whole image, (b,).
    """

    defocus_angstrom: Tensor | None
    angles_rad: Tensor | None
    mirrored: Tensor | None
    moves_pixel: Tensor | None
    noise: Tensor | None
    factors: Tensor | None

    def __getitem__(self, rows: Tensor) -> "Changes":
        return take(self, rows)


def draw_changes(
    count: int,
    box: int,
    config: AugmentationConfig,
    generator: torch.Generator,
    turned_alike: int = 1,
    has_ctf: bool = True,
) -> Changes:
    """Changes of network inputs, at random.

    Parameters
    ----------
    count, box : int
        How many inputs, and their width in pixels.
    config : AugmentationConfig
        How large changes are.
    generator : torch.Generator
    turned_alike : int
        2 where the batch holds the first images of pairs, then the second ones: both of a pair turn alike, so
        that their distance stays.
    has_ctf : bool
        Without a CTF there is no error in defocus.
    """
    defocus = angles = mirrored = shifts = noise = factors = None
    if config.defocus_angstrom and has_ctf:
        defocus = config.defocus_angstrom * torch.randn(count, generator=generator)
    if config.rotate or config.mirror or config.max_shift_pixel:
        own = count // turned_alike
        angles = config.rotate * 2 * math.pi * torch.rand(own, generator=generator).repeat(turned_alike)
        mirrored = (torch.rand(own, generator=generator) < 0.5 * config.mirror).repeat(turned_alike)
        shifts = (2 * torch.rand(count, 2, generator=generator) - 1) * config.max_shift_pixel
    if config.noise:
        noise = torch.randn(count, box, box, generator=generator)
    if config.contrast:
        factors = torch.exp(config.contrast * torch.randn(count, generator=generator))
    return Changes(defocus, angles, mirrored, shifts, noise, factors)


def changed_images(
    images: Tensor,
    changes: Changes,
    config: AugmentationConfig,
    ctf: CtfParameters | None = None,
    pixel_size_angstrom: float = 1.0,
) -> Tensor:
    """Network inputs (b, m, m) after changes of `draw_changes`, on the device where they are.

    ``ctf`` and the pixel size of the inputs are needed for an error in defocus alone.
    """
    if len(images) == 0:  # all images of the batch are simulated
        return images
    if changes.defocus_angstrom is not None and ctf is not None:
        flipped = with_defocus_error(images, ctf, changes.defocus_angstrom, pixel_size_angstrom)
        images = torch.where(images == 0, 0.0, flipped)  # 0 is what is outside the mask
    if changes.angles_rad is not None and changes.mirrored is not None and changes.moves_pixel is not None:
        images = turn_and_shift(images, changes.angles_rad, changes.mirrored, changes.moves_pixel)
    if changes.noise is not None:
        # Only inside the mask, where every image has something; the deviation stays what it was.
        noise = config.noise * changes.noise.to(images) * (images != 0)
        images = (images + noise) / math.hypot(1, config.noise)
    if changes.factors is not None:
        images = images * changes.factors.to(images)[:, None, None]
    return images


def changed_orientations(quaternions: Tensor, changes: Changes) -> Tensor:
    """Orientations (b, 4) of images after changes of `draw_changes`.

    Turning and mirroring are exact for projections: turning the image by α about the view axis makes the
    orientation R Rz(-α); mirroring y shows the molecule from behind, R Rx(π).
    """
    if changes.angles_rad is None or changes.mirrored is None:
        return quaternions
    return turn_orientations(quaternions, changes.angles_rad, changes.mirrored)


def with_defocus_error(
    images: Tensor, ctf: CtfParameters, change_angstrom: Tensor, pixel_size_angstrom: float
) -> Tensor:
    """Images (b, m, m) as if their defocus were off by ``change_angstrom`` (b,).

    Phases are flipped where the CTF at that defocus has another sign, which is what such an error does to an
    image that is phase-flipped, or will be.
    """
    box = images.shape[-1]
    right = ctf_2d(ctf, box, pixel_size_angstrom)
    wrong = ctf_2d(ctf.defocused_by(change_angstrom), box, pixel_size_angstrom)
    flips = torch.where(right * wrong < 0, -1.0, 1.0).to(images)
    return to_real(to_fourier(images) * flips, box)


def turn_orientations(quaternions: Tensor, angles_rad: Tensor, mirrored: Tensor) -> Tensor:
    """Orientations (b, 4) of images that were mirrored in y where said, then turned by ``angles_rad``."""
    half_turn_about_x = quaternions.new_tensor([1.0, 0.0, 0.0, 0.0])
    mirrored_pose = compose(quaternions, half_turn_about_x)
    start = torch.where(mirrored[:, None], mirrored_pose, quaternions)
    return compose(start, rotation_about_view_axis(-angles_rad).to(quaternions))


def turn_and_shift(images: Tensor, angles_rad: Tensor, mirrored: Tensor, moves_pixel: Tensor) -> Tensor:
    """Images (b, m, m) mirrored in y, turned by ``angles_rad`` from x to y, then shifted; bilinear."""
    box = images.shape[-1]
    cosine, sine = torch.cos(angles_rad), torch.sin(angles_rad)
    flip = torch.where(mirrored, -1.0, 1.0)
    # Output position p reads the input at F Rz(-α) (p - shift); positions relative to pixel box // 2.
    rows = torch.stack([cosine, sine], -1), torch.stack([-sine * flip, cosine * flip], -1)
    matrix = torch.stack(rows, dim=1)
    origin = torch.tensor([1 / box, 1 / box])  # pixel box // 2 in coordinates where edges are ±1
    moved = -(matrix @ (origin + 2 * moves_pixel / box)[..., None])[..., 0] + origin
    theta = torch.cat([matrix, moved[..., None]], dim=-1).to(images)
    grid = affine_grid(theta, [len(images), 1, box, box], align_corners=False)
    return grid_sample(images[:, None], grid, align_corners=False)[:, 0]
