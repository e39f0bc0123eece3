"""Images of a map under given poses, without noise."""

import torch
from jaxtyping import Float
from torch import Tensor

from cryoforum.dataset.ctf_parameters import CtfParameters
from cryoforum.dataset.poses import Poses
from cryoforum.dataset.volumes import Volume
from cryoforum.errors import require
from cryoforum.imaging.ctf import ctf_2d
from cryoforum.imaging.fft import phase_shift, to_real
from cryoforum.imaging.projection import cropped_transform
from cryoforum.imaging.projection import project as project_transform

AT_ONCE = 256


def project(volume: Volume, poses: Poses, ctf: CtfParameters | None = None) -> Float[Tensor, "n box box"]:
    """Projections of a map: what its particles show without noise.

    Differentiable in voxels, orientations and shifts where one of them asks for gradients.

    Parameters
    ----------
    volume
        A map of ``box`` voxels along a side.
    poses
        n of them; each image is the projection moved by *minus* the shift, as in RELION.
    ctf
        n CTFs that multiply the transforms; None for 1.

    Returns
    -------
    Tensor
        (n, box, box): sums of voxels along the line of sight, on the scale of the map. Frequencies from half
        a cycle below Nyquist on are 0.

    Raises
    ------
    InputError
        Where there are not as many CTFs as poses, or a quaternion is not of length 1.
    """
    count, box = len(poses), len(volume.voxels)
    require(ctf is None or len(ctf) == count, f"CTF parameters of {count} poses", ctf)
    transform = cropped_transform(volume.voxels)
    images = [volume.voxels.new_zeros(0, box, box)]
    for rows in torch.arange(count).split(AT_ONCE) if count else ():
        slices = project_transform(transform, poses.quaternions[rows], box)
        if ctf is not None:
            slices = slices * ctf_2d(ctf[rows], box, volume.pixel_size_angstrom)
        moved = phase_shift(slices, -poses.shifts_pixel(volume.pixel_size_angstrom)[rows])
        images.append(to_real(moved, box))
    return torch.cat(images)
