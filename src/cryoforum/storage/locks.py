"""One process at a time."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from cryoforum.errors import InputError


@contextmanager
def only_one(path: Path) -> Iterator[None]:
    """Hold the lock file ``path``, which stays; a kill lets go of it. InputError where another holds it."""
    with open(path, "a") as file:
        lock(file, f"another process is at work in {path.parent}; end it first")
        yield


def lock(file: IO[Any], refusal: str) -> None:
    """Hold the lock of an open file until it is closed. InputError, ``refusal``, where another holds it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InputError(refusal) from None
    except OSError:
        pass  # some network file systems know no locks
