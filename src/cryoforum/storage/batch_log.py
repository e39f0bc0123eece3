"""An append-only file of finished batches, from which a killed run goes on.

One line of JSON (format, fingerprint, columns, rows) and then float32 records, one a row, in order.
A kill may tear the last batch; whatever follows the last whole one counts as not written.
"""

import fcntl
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from cryoforum.errors import InputError

FORMAT = "cryo-forum batches 1"
SYNC_SECONDS = 1.0  # what a power cut may cost; a kill costs nothing that was appended
_DTYPE = np.dtype("<f4")
_HEADER_ALIGNMENT = 64


class BatchLog:
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
        self._file = open(self.path, "a+b", buffering=0)  # noqa: SIM115
        try:
            self._lock()
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

    def close(self) -> None:
        """Close the file; without a finished batch, remove it."""
        if self._file.closed:
            return
        if self.rows_done:
            os.fsync(self._file.fileno())
        else:
            self.path.unlink(missing_ok=True)
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _go_on(self) -> None:
        """Keep the whole batches of an earlier run with the same fingerprint, cut off all else."""
        found = _parsed_header(self.path)
        if found is not None and found[0] != self._fingerprint:
            self.rows_discarded = len(_records(self.path, found))
        if found is None or found[0] != self._fingerprint:
            self._file.truncate(0)
            return
        self._columns = found[1]
        records = _records(self.path, found)
        written = records.any(axis=1)  # after a power cut a file may be long already and still hold zeros
        whole = int(written.argmin()) if not written.all() else len(records)
        if whole < self._row_count:
            whole -= whole % self._batch_size
        self.rows_done = min(whole, self._row_count)
        self._file.truncate(found[2] + self.rows_done * len(self._columns) * _DTYPE.itemsize)

    def _write(self, content: bytes) -> None:
        left = memoryview(content)
        while left:
            left = left[self._file.write(left) :]

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{self.path}: another run is writing it; wait for it or end it") from None
        except OSError:
            pass  # some network file systems know no locks


def read_batches(path: Path, fingerprint: str, row_count: int) -> dict[str, np.ndarray]:
    """The columns (row_count,) float32 of a finished log, mapped from disk.

    InputError where the log is not finished or not of this ``fingerprint``.
    """
    found = _parsed_header(path)
    if found is None or found[0] != fingerprint:
        raise InputError(f"expected finished batches of the same run at {path}, found none")
    records = _records(path, found)
    if len(records) < row_count:
        raise InputError(f"{path}: expected {row_count} finished rows, found {len(records)}")
    return {name: records[:row_count, at] for at, name in enumerate(found[1])}


def _header(fingerprint: str, columns: list[str], row_count: int) -> bytes:
    values = {"format": FORMAT, "fingerprint": fingerprint, "columns": columns, "rows": row_count}
    text = json.dumps(values).encode()
    return text + b" " * (-(len(text) + 1) % _HEADER_ALIGNMENT) + b"\n"


def _parsed_header(path: Path) -> tuple[str, list[str], int] | None:
    """Fingerprint, columns and length in bytes of the header; None where there is no whole one."""
    try:
        with open(path, "rb") as file:
            line = file.readline()
        values = json.loads(line)
        if not line.endswith(b"\n") or values["format"] != FORMAT:
            return None
        return values["fingerprint"], values["columns"], len(line)
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def _records(path: Path, header: tuple[str, list[str], int]) -> np.ndarray:
    """(whole records, columns), mapped from disk."""
    _, columns, offset = header
    count = (Path(path).stat().st_size - offset) // (len(columns) * _DTYPE.itemsize)
    if not count:
        return np.empty((0, len(columns)), dtype=_DTYPE)
    return np.memmap(path, _DTYPE, "r", offset, (count, len(columns)))
