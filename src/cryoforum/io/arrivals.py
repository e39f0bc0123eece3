"""Files that other programs write while we look."""

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
        for path in self.folder.rglob(self.pattern):
            if not path.name.startswith(".") and self.without not in path.absolute().parents:
                try:
                    status = path.stat()
                except OSError:  # gone in between
                    continue
                found[path] = status.st_ino, status.st_size, status.st_mtime_ns
        calm = [path for path, stamp in found.items() if self._seen.get(path) == stamp]
        self._seen = found
        return sorted(path for path in calm if self._done.get(path) != found[path])

    def done(self, path: Path) -> None:
        """Leave a file alone until it changes from what the last look found."""
        self._done[path] = self._seen[path]
