"""An append-only file of finished batches, from which a killed run goes on.

One line of JSON (format, fingerprint, columns, rows) and then float32 records, one a row, in order.
A kill may tear the last batch; whatever follows the last whole one counts as not written.
"""

import json
import os
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cryoforum.errors import InputError
from cryoforum.storage.files import make_folder_of
from cryoforum.storage.locks import lock

FORMAT = "cryo-forum batches 1"
SYNC_SECONDS = 1.0  # what a power cut may cost; a kill costs nothing that was appended
_DTYPE = np.dtype("<f4")
_HEADER_ALIGNMENT = 64


class _Content(NamedTuple):
    """What a log holds; records: (whole rows, columns), mapped from disk, where they begin at ``offset``."""

    fingerprint: str
    columns: list[str]
    offset: int
    records: np.ndarray


class BatchLog(AbstractContextManager["BatchLog"]):
    """Batches of ``batch_size`` consecutive rows (the last may be shorter) out of ``row_count``.

    A file with the same fingerprint is gone on with: ``rows_done`` says how many rows it holds. Any other
    is started anew, and ``rows_discarded`` says how many that held. As a context it closes itself, and a
    log without a finished batch leaves no file.
    InputError where another process is writing the same log.
    """

    def __init__(self, path: Path, fingerprint: str, row_count: int, batch_size: int) -> None:
        self.path = Path(path)
        self.rows_done = self.rows_discarded = 0
        self._fingerprint, self._row_count, self._batch_size = fingerprint, row_count, batch_size
        self._columns: list[str] | None = None
        self._synced = time.monotonic()
        make_folder_of(self.path)
        self._file = open(self.path, "a+b", buffering=0)  # noqa: SIM115
        try:
            lock(self._file, f"{self.path}: another run is writing it; wait for it or end it")
            self._go_on()
        except BaseException:
            self._file.close()
            raise

    def append(self, table: Mapping[str, np.ndarray]) -> None:
        """Add the next batch: columns (b,) of finite numbers, which reach the disk as float32."""
        if self._columns is None:
            self._columns = list(table)
            self._write(_header(self._fingerprint, self._columns, self._row_count))
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
        self._write(records.tobytes())
        self.rows_done += len(records)
        if time.monotonic() - self._synced > SYNC_SECONDS:
            os.fsync(self._file.fileno())
            self._synced = time.monotonic()

    def __exit__(self, *error: object) -> None:
        """Close the file; without a finished batch, remove it."""
        if self.rows_done:
            os.fsync(self._file.fileno())
        else:
            self.path.unlink(missing_ok=True)
        self._file.close()

    def _go_on(self) -> None:
        """Keep the whole batches of an earlier run with the same fingerprint, cut off all else."""
        found = _content(self.path)
        if found is None or found.fingerprint != self._fingerprint:
            self.rows_discarded = 0 if found is None else len(found.records)
            self._file.truncate(0)
            return
        self._columns = found.columns
        written = found.records.any(axis=1)  # after a power cut a file may be long and still hold zeros
        whole = int(written.argmin()) if not written.all() else len(found.records)
        if whole < self._row_count:
            whole -= whole % self._batch_size
        self.rows_done = min(whole, self._row_count)
        self._file.truncate(found.offset + self.rows_done * len(self._columns) * _DTYPE.itemsize)

    def _write(self, content: bytes) -> None:
        left = memoryview(content)
        while left:
            left = left[self._file.write(left) :]


def read_batches(path: Path, fingerprint: str, row_count: int) -> dict[str, np.ndarray]:
    """The columns (row_count,) float32 of a finished log, mapped from disk.

    InputError where the log is not finished or not of this ``fingerprint``.
    """
    found = _content(path)
    if found is None or found.fingerprint != fingerprint:
        raise InputError(f"expected finished batches of the same run at {path}, found none")
    if len(found.records) < row_count:
        raise InputError(f"{path}: expected {row_count} finished rows, found {len(found.records)}")
    return {name: found.records[:row_count, at] for at, name in enumerate(found.columns)}


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
    shape = (Path(path).stat().st_size - len(line)) // (len(columns) * _DTYPE.itemsize), len(columns)
    records = np.memmap(path, _DTYPE, "r", len(line), shape) if shape[0] else np.empty(shape, _DTYPE)
    return _Content(fingerprint, columns, len(line), records)
