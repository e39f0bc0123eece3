"""Particle stacks: any number of MRC files of which only the wanted slices are read, and writing one."""

import copy
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import mrcfile
import numpy as np
import torch
from torch import Tensor

from cryoforum.dataset.images import ImagesOnDemand
from cryoforum.errors import InputError
from cryoforum.io.mrc.header import MOST_UNPACKED_BYTES, Header, Layout, read_header, unpacked_voxels
from cryoforum.storage.files import replacing

logger = logging.getLogger(__name__)

_READ_BYTES = 2**18  # at a time: a few images
_HEADER_READERS = 8  # at a time: a network disk answers slowly, but answers many


class LazyImages(ImagesOnDemand):
    """Images in stacks on disk, of which only the wanted slices are read.

    A stack is open only while it is read, so that any number of them needs one file handle. Compressed
    ones are decompressed into memory as a whole when they are first asked for.

    Parameters
    ----------
    paths: n stack files, one for each image.
    indices: n slices in these stacks, counted from 0.
    signs: n factors 1 or -1 of the pixels, -1 where the contrast is to be inverted; by default 1.
    name_of: what errors call an image by its place among the n; by default slice@path and its row.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        indices: Sequence[int],
        signs: np.ndarray | None = None,
        name_of: Callable[[int], str] | None = None,
    ) -> None:
        if not len(paths) or len(paths) != len(indices):
            raise InputError(
                f"expected a stack and a slice for each image, found {len(paths)} and {len(indices)}"
            )
        numbers: dict[Path, int] = {}
        self._stack_of_row = np.array([numbers.setdefault(path, len(numbers)) for path in paths])
        with ThreadPoolExecutor(_HEADER_READERS) as readers:
            headers = list(readers.map(read_header, numbers))
        self._layouts = [header.layout for header in headers]
        self._box = _common_box(self._layouts)
        self._unpacked: dict[int, np.ndarray] = {}
        counts = np.array([layout.shape[0] for layout in self._layouts])[self._stack_of_row]
        wrong = (row for row, index in enumerate(indices) if not 0 <= index < counts[row])
        if (row := next(wrong, None)) is not None:
            name = name_of(row) if name_of else f"{indices[row] + 1}@{paths[row]} (row {row + 1})"
            raise InputError(
                f"image {name}: expected a slice from 1 to {counts[row]}, "
                f"as many as {paths[row]} has, found {indices[row] + 1}"
            )
        self._slice_of_row = np.asarray(indices, dtype=np.int64)
        self._signs = None if signs is None else np.asarray(signs, dtype=np.float32)
        _give_notice(headers)

    def __len__(self) -> int:
        return len(self._slice_of_row)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(n, box, box)."""
        return (len(self), self._box, self._box)

    @property
    def identity(self) -> str:
        """Text that changes when one of the stacks does; copies have that of their originals."""
        return str([(layout.modified, layout.shape) for layout in self._layouts])

    def layouts(self, rows: Tensor) -> list[Layout]:
        """Those of the stacks that images of these rows are in."""
        return [self._layouts[stack] for stack in np.unique(self._stack_of_row[rows.cpu().numpy()])]

    def moved(self, copies: Mapping[Path, Path]) -> "LazyImages":
        """The same images, of which some stacks are read from (decompressed) copies: original → copy."""
        images = copy.copy(self)
        images._layouts = [
            replace(layout, path=copies[layout.path], is_packed=False) if layout.path in copies else layout
            for layout in self._layouts
        ]
        return images

    def at(self, rows: Tensor) -> Tensor:
        """Images (len(rows), box, box), float32, in the order asked for."""
        rows_array = rows.cpu().numpy()
        stacks, slices = self._stack_of_row[rows_array], self._slice_of_row[rows_array]
        images = np.empty((len(stacks), self._box, self._box), dtype=np.float32)
        order = np.lexsort((slices, stacks))  # the disk likes to be read in its own order
        for places in np.split(order, np.flatnonzero(np.diff(stacks[order])) + 1):
            if len(places):
                self._read(int(stacks[places[0]]), slices[places], places, images)
        if self._signs is not None:
            images *= self._signs[rows_array, None, None]
        return torch.from_numpy(images)

    def _read(self, stack: int, slices: np.ndarray, places: np.ndarray, images: np.ndarray) -> None:
        """Read rising slices of one stack to these places of ``images`` (n, box, box)."""
        layout, done = self._layouts[stack], 0
        read = self._unpacked_slices(stack, slices) if layout.is_packed else _read_slices(layout, slices)
        for found in read:
            part = slice(done, done + len(found))
            images[places[part]] = found
            if found.dtype.kind == "f" and not np.isfinite(found).all():
                wrong = ~np.isfinite(found).all(axis=(1, 2))
                raise InputError(
                    f"{layout.path}, slice {slices[part][int(wrong.argmax())] + 1}: found pixels that are "
                    "NaN or infinite; leave the particle out or extract it again"
                )
            done += len(found)

    def _unpacked_slices(self, stack: int, slices: np.ndarray) -> Iterator[np.ndarray]:
        """The same slices (k, box, box) of a stack that is decompressed when it is first asked for."""
        if stack not in self._unpacked:
            total = _packed_bytes(self._layouts)
            if total > MOST_UNPACKED_BYTES:
                raise InputError(
                    f"{self._layouts[stack].path}: expected compressed stacks of at most "
                    f"{MOST_UNPACKED_BYTES / 1e9:.1f} GB in all, as they are decompressed into memory, found "
                    f"{total / 1e9:.1f} GB; decompress them or add --scratch"
                )
            self._unpacked[stack] = unpacked_voxels(self._layouts[stack])
        yield self._unpacked[stack][slices]


def write_stack(path: Path, batches: Iterable[Tensor], count: int, box: int, pixel_size: float) -> None:
    """Write ``count`` images (box, box) that come in batches (b, box, box) as float32, atomically.

    Only a batch at a time is in memory. pixel_size: Å.
    """
    needed, free = 4 * count * box**2, shutil.disk_usage(Path(path).parent).free
    if needed > free:  # writing through a memory map would end the process without a word
        raise InputError(f"{path}: expected {needed / 1e9:.2f} GB of free disk, found {free / 1e9:.2f} GB")
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
                raise InputError(f"{path}: expected {count} images of {box} px, found more or {images.shape}")
            mrc.data[written : written + len(images)] = images
            written += len(images)
            total += images.sum(dtype=np.float64)
            total_squares += np.square(images, dtype=np.float64).sum()
            lowest, highest = min(lowest, images.min()), max(highest, images.max())
        if written != count:
            raise InputError(f"{path}: expected {count} images, found {written}")
        mean = total / (count * box * box)
        mrc.header.dmin, mrc.header.dmax, mrc.header.dmean = lowest, highest, mean
        mrc.header.rms = np.sqrt(max(total_squares / (count * box * box) - mean**2, 0.0))


def _reserve(path: Path) -> None:
    """OSError where the disk cannot hold all of a sparse file: writing to its map would kill the process."""
    if hasattr(os, "posix_fallocate"):
        with open(path, "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


def _read_slices(layout: Layout, slices: np.ndarray) -> Iterator[np.ndarray]:
    """Rising slices in parts (k, ny, nx) that stay in the processor's cache, neighbours in one go.

    Read, not mapped: of a file that somebody cuts off meanwhile a map would end the process without a word.
    """
    _, rows, columns = layout.shape
    size = rows * columns * layout.dtype.itemsize
    most = max(1, _READ_BYTES // size)
    buffer = np.empty((most, rows, columns), layout.dtype)
    with open(layout.path, "rb") as file:
        for run in np.split(slices, np.flatnonzero(np.diff(slices) != 1) + 1):
            file.seek(layout.offset + int(run[0]) * size)
            for start in range(0, len(run), most):
                images = buffer[: min(most, len(run) - start)]
                if file.readinto(images.data) < images.nbytes:
                    raise InputError(
                        f"{layout.path}: the file became shorter while it was read; run again when whole"
                    )
                yield images


def _common_box(layouts: Sequence[Layout]) -> int:
    """The one width of square images in all stacks."""
    first = layouts[0]
    for layout in layouts:
        _, ny, nx = layout.shape
        if nx != ny or nx < 2:
            raise InputError(f"{layout.path}: expected square images of 2 px or more, found {nx} × {ny} px")
        if layout.shape[1:] != first.shape[1:]:
            raise InputError(
                f"{layout.path}: expected images of {first.shape[2]} px as in {first.path}, found {nx} px; "
                "extract all particles in one box"
            )
    return first.shape[2]


def _packed_bytes(layouts: Sequence[Layout]) -> int:
    return sum(layout.voxel_bytes for layout in layouts if layout.is_packed)


def _give_notice(headers: Sequence[Header]) -> None:
    """One warning for all stacks of a kind, whatever their number."""
    unstamped = [header.layout.path for header in headers if not header.is_stamped]
    if unstamped:
        logger.warning(
            f"{len(unstamped)} of {len(headers)} stacks lack the stamp MAP of an MRC file, first "
            f"{unstamped[0]}; read all the same"
        )
    short = [header.layout.path for header in headers if header.lacks_extension]
    if short:
        logger.warning(
            f"{len(short)} of {len(headers)} stacks announce an extended header that is not there, first "
            f"{short[0]}; read without it, as their length fits"
        )
    packed = [header.layout for header in headers if header.layout.is_packed]
    if packed:
        logger.warning(
            f"{len(packed)} of {len(headers)} stacks are compressed, first {packed[0].path}; decompressed "
            f"they take {_packed_bytes(packed) / 1e9:.2f} GB of memory, or of disk with --scratch"
        )
