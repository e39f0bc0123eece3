"""A folder of this user alone at a name that everybody can guess, in a place where others may write."""

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cryoforum.errors import InputError

_MODE = 0o700
_OTHERS = 0o077


def make_private_folder(path: Path) -> None:
    """Make the folder where there is none, and see to it that it is this user's alone.

    Raises
    ------
    InputError
        Where something else is there: a link, a file, somebody else's folder, or one that others may enter.
    """
    with suppress(FileExistsError):
        os.mkdir(path, _MODE)
    _refuse_others(path, os.lstat(path))


def open_in_private_folder(path: Path) -> int:
    """The descriptor of a file of that name, made where there is none; a link is not followed."""
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if path.is_symlink():
            raise InputError(f"expected a file of our own at {path}, found a link; remove it") from error
        raise


def remove_from_private_folder(path: Path, is_ours: Callable[[str], bool]) -> list[str]:
    """Remove the files whose names are ours; the names of all else, which stays."""
    others = []
    with _opened(path) as folder:
        for name in sorted(os.listdir(folder)):
            status = os.stat(name, dir_fd=folder, follow_symlinks=False)
            if is_ours(name) and not stat.S_ISDIR(status.st_mode):
                os.unlink(name, dir_fd=folder)
            else:
                others.append(name)
    return others


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    """The folder itself, whatever somebody puts at its name meanwhile."""
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        _refuse_others(path, os.fstat(folder))
        yield folder
    finally:
        os.close(folder)


def _refuse_others(path: Path, status: os.stat_result) -> None:
    mode = status.st_mode
    found = None
    if stat.S_ISLNK(mode):
        found = "a link"
    elif not stat.S_ISDIR(mode):
        found = "a file"
    elif status.st_uid != os.getuid():
        found = f"a folder of user {status.st_uid}"
    elif mode & _OTHERS:
        found = f"one that others may enter (mode {stat.S_IMODE(mode):o}, expected {_MODE:o})"
    if found is not None:
        raise InputError(
            f"expected a folder of yours alone at {path}, found {found}; remove it or choose another"
        )
