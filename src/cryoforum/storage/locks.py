"""One process at a time."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cryoforum.errors import InputError


@contextmanager
def only_one(path: Path) -> Iterator[None]:
    """Hold the lock file ``path``, which stays; a kill lets go of it. InputError where another holds it."""
    with open(path, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"another process is at work in {path.parent}; end it first") from None
        except OSError:
            pass  # some network file systems know no locks
        yield
