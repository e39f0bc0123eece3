"""Maps in MRC and CCP4 files.

The centre of a map is voxel n // 2 along each axis, whatever its header says of nstart and origin: in RELION
and cryoSPARC particles turn about the centre of the box, too.
"""

import logging
import math
from pathlib import Path

import mrcfile
import numpy as np
import torch

from cryoforum.dataset.volumes import Volume
from cryoforum.errors import InputError
from cryoforum.io.mrc.header import Header, Layout, read_header, unpacked_voxels
from cryoforum.storage.files import replacing

logger = logging.getLogger(__name__)

_MOST_ELONGATED = 4  # longest over shortest edge of what can still be a map of a molecule
_VOLUME_STACKS = range(401, 631)  # ispg of MRC2014: 400 + space group
_RIGHT_ANGLES = (0.0, 90.0)  # 0: unset


def read_volume(path: Path, pixel_size_angstrom: float | None = None) -> Volume:
    """A map in z, y, x order, whatever the order of the axes in the file.

    A box that is not an even cube is padded to one with the mean of its border, its centre kept.
    pixel_size_angstrom: to use whatever the header says. InputError where the file is no map.
    """
    header, pixel_size = _checked_header(path, pixel_size_angstrom)
    voxels = _voxels(header.layout).astype(np.float32).transpose(_order_of_axes(header.record))
    if not np.isfinite(voxels).all():
        raise InputError(f"{path}: found voxels that are NaN or infinite")
    _give_notice(header)
    cube = _padded_to_even_cube(voxels)
    if cube.shape != voxels.shape:
        logger.warning(
            f"{path}: padded from {_product(voxels.shape[::-1])} voxels to {_product(cube.shape)} with the "
            "mean of its border; its centre stays"
        )
    return Volume(torch.from_numpy(np.ascontiguousarray(cube)), pixel_size)


def check_volume(path: Path, pixel_size_angstrom: float | None = None) -> float:
    """The pixel size in Å; InputError where `read_volume` would refuse the header. Asked before long work."""
    return _checked_header(path, pixel_size_angstrom)[1]


def write_volume(volume: Volume, path: Path) -> None:
    """Write a map as float32 MRC, atomically."""
    voxels = volume.voxels.detach().cpu().to(torch.float32).contiguous().numpy()
    with replacing(path) as temporary, mrcfile.new(temporary) as mrc:
        mrc.set_data(voxels)
        mrc.set_volume()
        mrc.voxel_size = volume.pixel_size_angstrom


def _checked_header(path: Path, given_pixel_size: float | None) -> tuple[Header, float]:
    """The header of a map and its pixel size in Å."""
    header = read_header(path)
    _refuse_other_kinds(header)
    pixel_size = _pixel_size(header) if given_pixel_size is None else given_pixel_size
    if not 0 < pixel_size < math.inf:
        raise InputError(f"{path}: expected a pixel size above 0 Å, found {pixel_size}")
    return header, pixel_size


def _refuse_other_kinds(header: Header) -> None:
    """InputError where the file holds images, several maps or a crystal's cell."""
    path, shape, record = header.layout.path, header.layout.shape, header.record
    nz, ny, nx = shape
    group = int(record["ispg"])
    found = None
    if nz == 1:
        found = f"a single image of {nx} × {ny} px"
    elif group == 0 and int(record["mz"]) == 1:
        found = f"a stack of {nz} images of {nx} × {ny} px"
    elif group in _VOLUME_STACKS:
        found = f"a stack of several maps ({nz} sections of {nx} × {ny})"
    elif max(shape) > _MOST_ELONGATED * min(shape):
        found = f"{nx} × {ny} × {nz} voxels, which looks like a stack of images"
    angles = [float(record["cellb"][name]) for name in ("alpha", "beta", "gamma")]
    if not all(any(abs(angle - right) < 0.01 for right in _RIGHT_ANGLES) for angle in angles):
        found = f"a cell of angles {', '.join(f'{angle:g}' for angle in angles)}°, not 90°"
    if found is not None:
        raise InputError(f"{path}: expected the map of one molecule, found {found}")


def _pixel_size(header: Header) -> float:
    """The one pixel size in Å of a header."""
    sampling = [int(header.record[name]) for name in ("mx", "my", "mz")]
    lengths = [float(header.record["cella"][axis]) for axis in "xyz"]
    sizes = [length / count if count > 0 else 0.0 for length, count in zip(lengths, sampling, strict=True)]
    found = f"found {', '.join(f'{size:g}' for size in sizes)}"
    path = header.layout.path
    if not all(0 < size < math.inf for size in sizes):
        raise InputError(
            f"{path}: expected a pixel size > 0 Å in the header, {found}; correct the header or give the "
            "size with --map-pixel-size"
        )
    if max(sizes) - min(sizes) > 1e-3 * max(sizes):
        raise InputError(
            f"{path}: expected one pixel size for x, y and z, {found} Å; resample the map, or, where only "
            "the header is wrong, give the size with --map-pixel-size"
        )
    return sizes[0]


def _voxels(layout: Layout) -> np.ndarray:
    if layout.is_packed:
        return unpacked_voxels(layout)
    count = math.prod(layout.shape)
    return np.fromfile(layout.path, layout.dtype, count, offset=layout.offset).reshape(layout.shape)


def _order_of_axes(record: np.void) -> list[int]:
    """Which axes of the file are z, y and x."""
    axes = [int(record[name]) for name in ("maps", "mapr", "mapc")]
    if sorted(axes) != [1, 2, 3]:
        axes = [3, 2, 1]  # unset in files of some programs
    return [axes.index(axis) for axis in (3, 2, 1)]


def _padded_to_even_cube(voxels: np.ndarray) -> np.ndarray:
    """Voxel n // 2 of every axis comes to voxel width // 2."""
    width = max(voxels.shape) + max(voxels.shape) % 2
    if voxels.shape == (width,) * 3:
        return voxels
    inner = voxels[1:-1, 1:-1, 1:-1]
    border = voxels.sum(dtype=np.float64) - inner.sum(dtype=np.float64)
    cube = np.full((width,) * 3, border / (voxels.size - inner.size), dtype=np.float32)
    starts = [width // 2 - count // 2 for count in voxels.shape]
    place = tuple(slice(start, start + count) for start, count in zip(starts, voxels.shape, strict=True))
    cube[place] = voxels
    return cube


def _give_notice(header: Header) -> None:
    """Warn of what the header lacks, or says and nobody follows."""
    path, record = header.layout.path, header.record
    if not header.is_stamped:
        logger.warning(f"{path}: lacks the stamp MAP of an MRC file; read all the same")
    start = [int(record[f"n{axis}start"]) for axis in "xyz"]
    if any(start) and start != [-(count // 2) for count in header.layout.shape[::-1]]:
        logger.warning(
            f"{path}: begins at voxel {', '.join(map(str, start))} of a larger map by its header; the centre "
            "of its own box counts as that of the molecule"
        )


def _product(shape: tuple[int, ...]) -> str:
    return " × ".join(map(str, shape))
