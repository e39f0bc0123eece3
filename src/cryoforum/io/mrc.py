"""MRC files: particle stacks that are read slice by slice, and maps."""

import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import mrcfile
import numpy as np
import torch
from mrcfile.dtypes import HEADER_DTYPE
from torch import Tensor

from cryoforum.io.files import replacing
from cryoforum.particles import Volume

MAX_OPEN_STACKS = 32
_MODES = {0: "i1", 1: "i2", 2: "f4", 6: "u2", 12: "f2"}
_LARGEST_WIDTH = 65536  # in the wrong byte order every real width is beyond it


@dataclass(frozen=True)
class _Layout:
    """Where the voxels of an MRC file are; ``modified`` tells a file from one that replaced it."""

    path: Path
    modified: tuple[int, int]
    dtype: np.dtype
    offset: int
    shape: tuple[int, int, int]


class LazyImages:
    """Images in stacks on disk, of which only the wanted slices are read.

    Parameters
    ----------
    paths: n stack files, one for each image.
    indices: n slices in these stacks, counted from 0.
    names: n names that errors give; by default slice@path.
    """

    def __init__(
        self, paths: Sequence[Path], indices: Sequence[int], names: Sequence[str] | None = None
    ) -> None:
        if not len(paths) or len(paths) != len(indices):
            raise ValueError(
                f"expected a stack and a slice for each image, found {len(paths)} and {len(indices)}"
            )
        numbers: dict[Path, int] = {}
        self._stack_of_row = np.array([numbers.setdefault(path, len(numbers)) for path in paths])
        self._slice_of_row = np.asarray(indices, dtype=np.int64)
        self._layouts = [_layout(_read_header(path)) for path in numbers]
        self._box = _common_box(self._layouts)
        counts = np.array([layout.shape[0] for layout in self._layouts])[self._stack_of_row]
        outside = (self._slice_of_row < 0) | (self._slice_of_row >= counts)
        if outside.any():
            row = int(outside.argmax())
            index = self._slice_of_row[row] + 1
            name = f"{index}@{paths[row]}" if names is None else names[row]
            raise ValueError(
                f"image {name} (row {row + 1}): expected a slice from 1 to {counts[row]}, "
                f"as many as {paths[row]} has, found {index}"
            )

    def __len__(self) -> int:
        return len(self._slice_of_row)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(n, box, box)."""
        return (len(self), self._box, self._box)

    @property
    def identity(self) -> str:
        """Text that changes when one of the stacks is replaced or changed."""
        return str([(layout.modified, layout.shape) for layout in self._layouts])

    @property
    def changed_seconds(self) -> float:
        """When the last of the stacks was changed, in the time of `time.time`."""
        return max(layout.modified[1] for layout in self._layouts) / 1e9

    def __getitem__(self, rows: Tensor, /) -> Tensor:
        """Images (len(rows), box, box), float32, in the order asked for."""
        rows_array = rows.cpu().numpy()
        stacks, slices = self._stack_of_row[rows_array], self._slice_of_row[rows_array]
        images = np.empty((len(stacks), self._box, self._box), dtype=np.float32)
        for place in np.lexsort((slices, stacks)):  # the disk likes to be read in its own order
            layout = self._layouts[stacks[place]]
            images[place] = _mapped(layout)[slices[place]]
            if not np.isfinite(images[place]).all():
                raise ValueError(
                    f"{layout.path}, slice {slices[place] + 1}: found pixels that are NaN or infinite; "
                    "leave the particle out or extract it again"
                )
        return torch.from_numpy(images)


def read_volume(path: Path) -> Volume:
    """A cubic map in z, y, x order, whatever the order of the axes in the file."""
    header = _read_header(path)
    layout = _layout(header)
    record = header.record
    axes = [int(record[name]) for name in ("maps", "mapr", "mapc")]
    if sorted(axes) != [1, 2, 3]:
        axes = [3, 2, 1]  # unset in files of some programs
    voxels = np.array(_mapped(layout), dtype=np.float32).transpose([axes.index(axis) for axis in (3, 2, 1)])
    if len(set(voxels.shape)) != 1:
        raise ValueError(
            f"{path}: expected a cubic map, found {voxels.shape} (z, y, x); pad or crop it to a cube"
        )
    if not np.isfinite(voxels).all():
        raise ValueError(f"{path}: found voxels that are NaN or infinite")
    sampling = [int(record[name]) for name in ("mx", "my", "mz")]
    lengths = [float(record["cella"][axis]) for axis in "xyz"]
    sizes = [length / count if count > 0 else 0.0 for length, count in zip(lengths, sampling, strict=True)]
    if min(sizes) <= 0 or max(sizes) - min(sizes) > 1e-3 * max(sizes):
        raise ValueError(
            f"{path}: expected one pixel size > 0 Å for x, y and z, found {sizes}; correct the header"
        )
    return Volume(torch.from_numpy(np.ascontiguousarray(voxels)), sizes[0])


def write_volume(volume: Volume, path: Path) -> None:
    """Write a map as float32 MRC, atomically."""
    voxels = volume.voxels.detach().cpu().to(torch.float32).contiguous().numpy()
    with replacing(path) as temporary, mrcfile.new(temporary) as mrc:
        mrc.set_data(voxels)
        mrc.set_volume()
        mrc.voxel_size = volume.pixel_size_angstrom


def write_stack(path: Path, batches: Iterable[Tensor], count: int, box: int, pixel_size: float) -> None:
    """Write ``count`` images (box, box) that come in batches (b, box, box) as float32, atomically.

    Only a batch at a time is in memory. pixel_size: Å.
    """
    needed, free = 4 * count * box**2, shutil.disk_usage(Path(path).parent).free
    if needed > free:  # writing through a memory map would end the process without a word
        raise ValueError(f"{path}: expected {needed / 1e9:.2f} GB of free disk, found {free / 1e9:.2f} GB")
    with (
        replacing(path) as temporary,
        mrcfile.new_mmap(temporary, shape=(count, box, box), mrc_mode=2) as mrc,
    ):
        _reserve(temporary)
        mrc.set_image_stack()
        mrc.voxel_size = pixel_size
        written, total, total_squares, lowest, highest = 0, 0.0, 0.0, np.inf, -np.inf
        for batch in batches:
            images = batch.detach().cpu().to(torch.float32).numpy()
            if images.shape[1:] != (box, box) or written + len(images) > count:
                raise ValueError(f"{path}: expected {count} images of {box} px, found more or {images.shape}")
            mrc.data[written : written + len(images)] = images
            written += len(images)
            total += images.sum(dtype=np.float64)
            total_squares += np.square(images, dtype=np.float64).sum()
            lowest, highest = min(lowest, images.min()), max(highest, images.max())
        if written != count:
            raise ValueError(f"{path}: expected {count} images, found {written}")
        mean = total / (count * box * box)
        mrc.header.dmin, mrc.header.dmax, mrc.header.dmean = lowest, highest, mean
        mrc.header.rms = np.sqrt(max(total_squares / (count * box * box) - mean**2, 0.0))


def _reserve(path: Path) -> None:
    """OSError where the disk cannot hold all of a sparse file: writing to its map would kill the process."""
    if hasattr(os, "posix_fallocate"):
        with open(path, "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


@dataclass(frozen=True)
class _Header:
    path: Path
    modified: tuple[int, int]
    file_bytes: int
    record: np.ndarray
    byte_order: str


def _read_header(path: Path) -> _Header:
    """The first 1024 bytes, in whichever byte order makes sense of them."""
    if not Path(path).is_file():
        raise ValueError(f"MRC file {path} not found")
    with open(path, "rb") as file:
        start = file.read(HEADER_DTYPE.itemsize)
    status = Path(path).stat()
    if len(start) < HEADER_DTYPE.itemsize:
        raise ValueError(f"{path}: expected an MRC header of 1024 bytes, found a file of {len(start)} bytes")
    for byte_order in "<>":
        record = np.frombuffer(start, dtype=HEADER_DTYPE.newbyteorder(byte_order))[0]
        widths = [int(record[name]) for name in ("nx", "ny")]
        if int(record["mode"]) in _MODES and all(0 < width <= _LARGEST_WIDTH for width in widths):
            modified = (status.st_ino, status.st_mtime_ns)
            return _Header(Path(path), modified, status.st_size, record, byte_order)
    mode, nx, ny = (int.from_bytes(start[at : at + 4], "little", signed=True) for at in (12, 0, 4))
    raise ValueError(
        f"{path}: expected an MRC file of mode 0, 1, 2, 6 or 12, "
        f"found mode {mode} and {nx} × {ny} px in its header"
    )


def _layout(header: _Header) -> _Layout:
    """Where the voxels are; ValueError where the file is shorter than its header says."""
    record = header.record
    dtype = np.dtype(header.byte_order + _MODES[int(record["mode"])])
    nz, ny, nx, extended = (int(record[name]) for name in ("nz", "ny", "nx", "nsymbt"))
    if nz <= 0 or extended < 0:
        raise ValueError(
            f"{header.path}: expected slices in an MRC file, found {nz} (extended header {extended})"
        )
    offset = HEADER_DTYPE.itemsize + extended
    expected = offset + nz * ny * nx * dtype.itemsize
    if header.file_bytes < expected:
        raise ValueError(
            f"{header.path}: file cut off: expected {expected} bytes for {nz} × {ny} × {nx} voxels, "
            f"found {header.file_bytes}; copy it again"
        )
    return _Layout(header.path, header.modified, dtype, offset, (nz, ny, nx))


@lru_cache(maxsize=MAX_OPEN_STACKS)
def _mapped(layout: _Layout) -> np.memmap:
    return np.memmap(layout.path, layout.dtype, "r", layout.offset, layout.shape)


def _common_box(layouts: Sequence[_Layout]) -> int:
    """The one even width of square images in all stacks."""
    first = layouts[0]
    for layout in layouts:
        _, ny, nx = layout.shape
        if nx != ny or nx % 2:
            raise ValueError(f"{layout.path}: expected square images of an even width, found {nx} × {ny} px")
        if layout.shape[1:] != first.shape[1:]:
            raise ValueError(
                f"{layout.path}: expected images of {first.shape[2]} px as in {first.path}, found {nx} px; "
                "extract all particles in one box"
            )
    return first.shape[2]
