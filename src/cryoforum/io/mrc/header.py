"""The header of an MRC file (MRC2014, Cheng et al. 2015): what is in the file, where, as which numbers."""

import bz2
import gzip
import math
import os
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
from mrcfile.dtypes import HEADER_DTYPE

from cryoforum.errors import InputError

HEADER_BYTES = HEADER_DTYPE.itemsize
MOST_UNPACKED_BYTES = 2 * 2**30  # of compressed files in memory: more belongs on a disk, decompressed
_MODES = {0: "i1", 1: "i2", 2: "f4", 6: "u2", 12: "f2"}
_DTYPES = {order: HEADER_DTYPE.newbyteorder(order) for order in "<>"}
_LARGEST_WIDTH = 65535  # in the wrong byte order every real width is beyond it
_IMOD_STAMP, _IMOD_SIGNED = 1146047817, 1
_OPENERS: Mapping[bytes, Callable[[Path], object]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open}
_CHUNK_BYTES = 16 * 2**20


@dataclass(frozen=True)
class Layout:
    """Where the voxels of an MRC file are.

    modified: inode and time, which tell a file from one that replaced it. is_packed: by gzip or bzip2.
    shape: sections, rows, columns.
    """

    path: Path
    modified: tuple[int, int]
    is_packed: bool
    dtype: np.dtype
    offset: int
    shape: tuple[int, int, int]

    @property
    def voxel_bytes(self) -> int:
        """As many bytes as all voxels take."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def file_bytes(self) -> int:
        """As many bytes as the whole file has at least, once decompressed."""
        return self.offset + self.voxel_bytes


@dataclass(frozen=True)
class Header:
    """The 1024 bytes as named fields, and what follows from them.

    is_stamped: whether they hold "MAP ". lacks_extension: whether they announce an extended header that is
    not there, as programs leave it that copy the one and not the other.
    """

    record: np.void
    layout: Layout
    is_stamped: bool
    lacks_extension: bool = False


def read_header(path: Path) -> Header:
    """The header in whichever byte order makes sense of it; InputError where this is no whole MRC file."""
    path = Path(path)
    if not os.path.isfile(path):  # unlike Path's, false for a name that is too long
        found = "a folder" if os.path.isdir(path) else "nothing"
        raise InputError(f"MRC file {path} not found: there is {found} of that name")
    start: bytes | bytearray
    with open(path, "rb") as file:
        start, status = file.read(HEADER_BYTES), os.fstat(file.fileno())
    is_packed = _opener(start) is not None
    if is_packed:
        start = _unpacked_bytes(path, HEADER_BYTES)
    if len(start) < HEADER_BYTES:
        raise InputError(f"{path}: expected an MRC header of 1024 bytes, found a file of {len(start)} bytes")
    record, byte_order = _record(path, start)
    mode, dimensions = int(record["mode"]), tuple(int(record[name]) for name in ("nz", "ny", "nx"))
    kind = "u1" if mode == 0 and _bytes_are_unsigned(record, byte_order) else _MODES[mode]
    extended = int(record["nsymbt"])
    if dimensions[0] <= 0 or extended < 0:
        raise InputError(
            f"{path}: expected slices in an MRC file, found {dimensions[0]} (extended header {extended})"
        )
    layout = Layout(
        path=path,
        modified=(status.st_ino, status.st_mtime_ns),
        is_packed=is_packed,
        dtype=np.dtype(byte_order + kind),
        offset=HEADER_BYTES + extended,
        shape=cast(tuple[int, int, int], dimensions),
    )
    lacks_extension = extended > 0 and status.st_size == HEADER_BYTES + layout.voxel_bytes
    if lacks_extension and not is_packed:
        layout = replace(layout, offset=HEADER_BYTES)
    if not is_packed:
        _refuse_cut_off(layout, status.st_size)
    return Header(record, layout, bytes(record["map"]).startswith(b"MAP"), lacks_extension)


def unpacked_voxels(layout: Layout) -> np.ndarray:
    """All voxels (nz, ny, nx) of a compressed file, in its numbers; only as many bytes as there are."""
    if layout.file_bytes > MOST_UNPACKED_BYTES:
        raise InputError(
            f"{layout.path}: expected at most {MOST_UNPACKED_BYTES / 1e9:.1f} GB once decompressed, found "
            f"{layout.voxel_bytes / 1e9:.1f} GB; decompress it"
        )
    content = _unpacked_bytes(layout.path, layout.file_bytes)
    _refuse_cut_off(layout, len(content))
    return np.frombuffer(content, layout.dtype, offset=layout.offset).reshape(layout.shape)


def unpack(layout: Layout, copy: Path) -> None:
    """Write a compressed file decompressed to ``copy``; no more of it than its header says."""
    with open(copy, "wb") as file:
        file.writelines(_unpacked_chunks(layout.path, layout.file_bytes))
    _refuse_cut_off(layout, copy.stat().st_size)


def _unpacked_bytes(path: Path, count: int) -> bytearray:
    """The first ``count`` bytes, or as many as there are, of a compressed file."""
    content = bytearray()
    for chunk in _unpacked_chunks(path, count):
        content += chunk
    return content


def _unpacked_chunks(path: Path, count: int) -> Iterator[bytes]:
    """The same in parts: the count is what a header claims, and may be anything."""
    with open(path, "rb") as start:
        opener = _opener(start.read(HEADER_BYTES))
    if opener is None:
        raise InputError(f"{path}: expected a file compressed by gzip or bzip2; it has changed")
    try:
        with cast(BinaryIO, opener(path)) as packed:
            while count and (chunk := packed.read(min(count, _CHUNK_BYTES))):
                yield chunk
                count -= len(chunk)
    except (EOFError, OSError, ValueError, zlib.error) as error:
        raise InputError(
            f"{path}: expected a file that can be decompressed, found: {error}; copy it again"
        ) from error


def _opener(start: bytes) -> Callable[[Path], object] | None:
    """What opens a compressed file; its first bytes count, not its name."""
    return next((opener for magic, opener in _OPENERS.items() if start.startswith(magic)), None)


def _record(path: Path, start: bytes | bytearray) -> tuple[np.void, str]:
    """The fields of a header and the byte order that makes sense of them."""
    for byte_order, dtype in _DTYPES.items():
        record = np.frombuffer(start, dtype)[0]
        widths = [int(record[name]) for name in ("nx", "ny")]
        if int(record["mode"]) in _MODES and all(0 < width <= _LARGEST_WIDTH for width in widths):
            return record, byte_order
    mode, nx, ny = (int.from_bytes(start[at : at + 4], "little", signed=True) for at in (12, 0, 4))
    raise InputError(
        f"{path}: expected an MRC file of mode 0, 1, 2, 6 or 12, "
        f"found mode {mode} and {nx} × {ny} px in its header"
    )


def _bytes_are_unsigned(record: np.void, byte_order: str) -> bool:
    """Whether mode 0 means 0 … 255. MRC2014 says -128 … 127, but IMOD wrote the other before 4.2.23.

    IMOD's stamp comes with a flag for it; without one only a largest value beyond 127 tells.
    """
    stamp, flags = np.frombuffer(record["extra2"], dtype=byte_order + "i4", count=2, offset=40)
    if int(stamp) == _IMOD_STAMP:
        return not int(flags) & _IMOD_SIGNED
    return bool(record["dmin"] >= 0 and record["dmax"] > 127)


def _refuse_cut_off(layout: Layout, found_bytes: int) -> None:
    """InputError where a file of so many bytes is shorter than its header says."""
    if found_bytes < layout.file_bytes:
        nz, ny, nx = layout.shape
        raise InputError(
            f"{layout.path}: file cut off: expected {layout.file_bytes} bytes for {nz} × {ny} × {nx} voxels, "
            f"found {found_bytes}; copy it again"
        )
