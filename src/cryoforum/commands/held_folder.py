"""The folder of a run, which the first of several processes holds while all of them work."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cryoforum.runtime.distributed import is_first
from cryoforum.storage.locks import Hold, taken


@contextmanager
def taken_by_first(out: Path) -> Iterator[Hold | None]:
    """The folder held by the first of several processes; None in the others."""
    if not is_first():
        yield None
        return
    with taken(out) as hold:
        yield hold
