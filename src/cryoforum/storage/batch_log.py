"""An append-only file of finished batches, from which a killed run goes on.

One line of JSON (format, fingerprint, columns, rows) and then blocks of float32 records, one a row. Before
each block are the number of its first row, its number of rows and a checksum of all of it, so that it is
known for what it is wherever it lies: a kill may tear the last block, and where a file system has no locks
two runs may write one log. Whatever follows the last whole block in order counts as not written.
"""

import json
import os
import struct
import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cryoforum.errors import InputError
from cryoforum.storage.files import make_folder_of
from cryoforum.storage.locks import lock

FORMAT = "cryo-forum batches 2"
SYNC_SECONDS = 1.0  # what a power cut may cost; a kill costs nothing that was appended
_DTYPE = np.dtype("<f4")
_HEADER_ALIGNMENT = 64
_BLOCK = struct.Struct("<QII")  # first row, number of rows, checksum of these two and the records
_BLOCK_WITHOUT_CHECKSUM = struct.Struct("<QI")


class _Content(NamedTuple):
    """What a log holds: blocks of records (rows, columns) in order, the last of which ends at ``stop``."""

    fingerprint: str
    columns: list[str]
    blocks: list[np.ndarray]
    stop: int

    @property
    def row_count(self) -> int:
        """Rows of all blocks."""
        return sum(map(len, self.blocks))


class BatchLog(AbstractContextManager["BatchLog"]):
    """Batches of ``batch_size`` consecutive rows (the last may be shorter) out of ``row_count``.

    A file with the same fingerprint is gone on with: ``rows_done`` says how many rows it holds. Any other
    is started anew, and ``rows_discarded`` says how many that held. As a context it closes itself, and a
    log without a finished batch leaves no file.
    InputError where another process is writing the same log: at once by its lock, or, where a file system has
    none, at the first batch that does not find the log as the one before left it.
    """

    def __init__(self, path: Path, fingerprint: str, row_count: int, batch_size: int) -> None:
        self.path = Path(path)
        self.rows_done = self.rows_discarded = 0
        self._fingerprint, self._row_count, self._batch_size = fingerprint, row_count, batch_size
        self._columns: list[str] | None = None
        self._synced, self._end = time.monotonic(), 0
        make_folder_of(self.path)
        self._file = open(self.path, "a+b", buffering=0)  # noqa: SIM115
        try:
            lock(self._file, self._refusal)
            self._go_on()
        except BaseException:
            self._file.close()
            raise

    def append(self, table: Mapping[str, np.ndarray]) -> None:
        """Add the next batch: columns (b,) of finite numbers, which reach the disk as float32."""
        if self._columns is None:
            self._columns = list(table)
            self._append(_header(self._fingerprint, self._columns, self._row_count))
        if list(table) != self._columns:
            raise InputError(f"{self.path}: expected columns {self._columns}, found {list(table)}; delete it")
        records = np.stack([np.asarray(table[name], dtype=_DTYPE) for name in self._columns], axis=-1)
        wrong = np.argwhere(~np.isfinite(records))
        if len(wrong):
            row, column = wrong[0]
            raise InputError(
                f"expected numbers, found {records[row, column]} for {self._columns[column]} of row "
                f"{self.rows_done + row + 1}"
            )
        self._append(_block(self.rows_done, records))
        self.rows_done += len(records)
        if time.monotonic() - self._synced > SYNC_SECONDS:
            os.fsync(self._file.fileno())
            self._synced = time.monotonic()

    def __exit__(self, *error: object) -> None:
        """Close the file; without a finished batch, remove it, unless another run is writing it."""
        if self.rows_done:
            os.fsync(self._file.fileno())
        elif self._is_as_we_left_it():
            self.path.unlink(missing_ok=True)
        self._file.close()

    @property
    def _refusal(self) -> str:
        return f"{self.path}: another run is writing it; wait for it or end it"

    def _go_on(self) -> None:
        """Keep the whole batches of an earlier run with the same fingerprint, cut off all else."""
        found = _content(self.path)
        if found is None or found.fingerprint != self._fingerprint:
            self.rows_discarded = 0 if found is None else found.row_count
            self._file.truncate(0)
            return
        self._columns, self._end = found.columns, found.stop
        self.rows_done = found.row_count
        self._file.truncate(self._end)

    def _append(self, content: bytes) -> None:
        """InputError where somebody else has written to the log, or has put another in its place."""
        if not self._is_as_we_left_it():
            raise InputError(self._refusal)
        self._write(content)
        self._end += len(content)

    def _is_as_we_left_it(self) -> bool:
        own = os.fstat(self._file.fileno())
        try:
            return own.st_size == self._end and os.path.samestat(own, self.path.stat())
        except FileNotFoundError:
            return False

    def _write(self, content: bytes) -> None:
        left = memoryview(content)
        while left:
            left = left[self._file.write(left) :]


def read_batches(path: Path, fingerprint: str, row_count: int) -> dict[str, np.ndarray]:
    """The columns (row_count,) float32 of a finished log.

    InputError where the log is not finished or not of this ``fingerprint``.
    """
    found = _content(path)
    if found is None or found.fingerprint != fingerprint:
        raise InputError(f"expected finished batches of the same run at {path}, found none")
    if found.row_count < row_count:
        raise InputError(f"{path}: expected {row_count} finished rows, found {found.row_count}")
    records = np.concatenate(found.blocks)
    return {name: records[:row_count, at] for at, name in enumerate(found.columns)}


def _header(fingerprint: str, columns: list[str], row_count: int) -> bytes:
    values = {"format": FORMAT, "fingerprint": fingerprint, "columns": columns, "rows": row_count}
    text = json.dumps(values).encode()
    return text + b" " * (-(len(text) + 1) % _HEADER_ALIGNMENT) + b"\n"


def _content(path: Path) -> _Content | None:
    """None where there is no whole header."""
    try:
        with open(path, "rb") as file:
            line = file.readline()
        values = json.loads(line)
        if not line.endswith(b"\n") or values["format"] != FORMAT:
            return None
        fingerprint, columns = values["fingerprint"], values["columns"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    blocks, stop = [], len(line)
    for records, end in _blocks(path, len(line), len(columns)):
        blocks.append(records)
        stop = end
    return _Content(fingerprint, columns, blocks, stop)


def _block(first_row: int, records: np.ndarray) -> bytes:
    """Records (rows, columns) with what they are known by."""
    content = records.tobytes()
    checksum = zlib.crc32(_BLOCK_WITHOUT_CHECKSUM.pack(first_row, len(records)) + content)
    return _BLOCK.pack(first_row, len(records), checksum) + content


def _blocks(path: Path, offset: int, column_count: int) -> Iterator[tuple[np.ndarray, int]]:
    """The records (rows, columns) of each whole block in order of rows, and where it ends in the file.

    A block that two runs wrote is taken once.
    """
    content, next_row = memoryview(Path(path).read_bytes()), 0
    while offset + _BLOCK.size <= len(content):
        first_row, row_count, checksum = _BLOCK.unpack_from(content, offset)
        start = offset + _BLOCK.size
        offset = start + row_count * column_count * _DTYPE.itemsize
        known_by = _BLOCK_WITHOUT_CHECKSUM.pack(first_row, row_count)
        if (
            offset > len(content)
            or not row_count
            or zlib.crc32(content[start:offset], zlib.crc32(known_by)) != checksum
            or first_row > next_row
        ):
            return
        if first_row == next_row:
            next_row += row_count
            records = np.frombuffer(content[start:offset], _DTYPE)
            yield records.reshape(row_count, column_count), offset
