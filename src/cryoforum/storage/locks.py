"""One process at a time: files and folders that a process holds while it works."""

import fcntl
import json
import logging
import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from cryoforum.errors import InputError

logger = logging.getLogger(__name__)

FOLDER_LOCK = ".cryoforum-lock"
_held: dict[Path, "Hold"] = {}  # by this process, in which one command may call another


@dataclass(frozen=True)
class Hold:
    """A folder that this process holds, by a file in it that says who does."""

    folder: Path
    holder: str

    def check(self) -> None:
        """InputError where another process has taken the folder meanwhile; asked again before writing."""
        found = _holder(self.folder / FOLDER_LOCK)
        if found != self.holder:
            who = "nobody" if found is None else _in_words(found)
            raise InputError(
                f"{self.folder} was taken from this process while it worked, now by {who}; nothing there was "
                "replaced; choose another --out"
            )


@contextmanager
def taken(folder: Path) -> Iterator[Hold]:
    """Hold ``folder``, which is made where there is none; a kill lets go of it.

    Within the block the same process may take it again. At the end the lock is removed, and folders that were
    made for it go where they are still empty. Where the file system has no locks this is logged, and only
    `Hold.check` tells.

    Raises
    ------
    InputError
        Where another process holds it, by number and host, or ``folder`` is a file.
    """
    folder = Path(folder).resolve()
    if folder in _held:
        yield _held[folder]
        return
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    if folder.exists() and not folder.is_dir():
        raise InputError(f"expected a folder at {folder}, found a file; choose another --out")
    try:
        with _locked(folder) as file:
            holder = json.dumps(
                {"process": os.getpid(), "host": socket.gethostname(), "id": secrets.token_hex(8)}
            )
            _write(file, holder)
            _held[folder] = Hold(folder, holder)
            try:
                yield _held[folder]
            finally:
                del _held[folder]
                if _holder(folder / FOLDER_LOCK) == holder:
                    (folder / FOLDER_LOCK).unlink(missing_ok=True)
    finally:
        for place in made:
            with suppress(OSError):  # not empty, or gone
                place.rmdir()


@contextmanager
def _locked(folder: Path) -> Iterator[IO[str]]:
    """The open lock file of a folder, which still lies there once it is locked."""
    path = folder / FOLDER_LOCK
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        with open(path, "a+") as file:
            if not lock(file, _refusal(path)):
                logger.warning(
                    f"{folder}: its file system has no locks; see to it that no other process writes there"
                )
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                    yield file
                    return


def _write(file: IO[str], text: str) -> None:
    file.seek(0)
    file.truncate()
    file.write(text)
    file.flush()


def _holder(path: Path) -> str | None:
    """What a lock file says of its holder; None where there is none."""
    try:
        return path.read_text()
    except FileNotFoundError:
        return None


def _in_words(holder: str) -> str:
    try:
        known = json.loads(holder)
        return f"process {int(known['process'])} on {known['host']}"
    except (ValueError, KeyError, TypeError):  # just being written
        return "another process"


def _refusal(path: Path) -> str:
    who = _in_words(_holder(path) or "")
    return f"{who} is at work in {path.parent}; wait for it, end it or choose another --out"


def lock(file: IO[Any], refusal: str) -> bool:
    """Hold the lock of an open file until it is closed; whether the file system has locks.

    InputError, ``refusal``, where another process holds it.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InputError(refusal) from None
    except OSError:  # some network file systems know no locks
        return False
    return True
