"""Files that other programs write while we look."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

_Stamp = tuple[int, int, int]  # inode, size, time of the last change


@dataclass
class Arrivals:
    """Files below ``folder`` whose name fits ``pattern``, outside ``without``, as they come and change.

    A file is there once two looks find it the same. Only the files' own clocks are compared, so that a file
    server may be wrong about the time.
    """

    folder: Path
    pattern: str
    without: Path
    _seen: dict[Path, _Stamp] = field(default_factory=dict)
    _done: dict[Path, _Stamp] = field(default_factory=dict)

    def settled(self) -> list[Path]:
        """Files that have not changed since the last look and are not `done`, by name."""
        found = {}
        for path in self._matching():
            try:
                status = path.stat()
            except OSError:  # gone in between
                continue
            found[path] = status.st_ino, status.st_size, status.st_mtime_ns
        calm = [path for path, stamp in found.items() if self._seen.get(path) == stamp]
        self._seen = found
        return sorted(path for path in calm if self._done.get(path) != found[path])

    def _matching(self) -> Iterator[Path]:
        """Files of that name; folders that go while we look are passed over, unlike by `Path.rglob`."""
        without = self.without.resolve()
        for place, folders, names in os.walk(self.folder):
            folders[:] = [name for name in folders if Path(place, name).resolve() != without]
            paths = (Path(place, name) for name in names if not name.startswith("."))
            yield from (path for path in paths if path.match(self.pattern))

    def done(self, path: Path) -> None:
        """Leave a file alone until it changes from what the last look found."""
        self._done[path] = self._seen[path]
