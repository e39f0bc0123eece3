"""Input files that are found or named as missing, and output that is written whole or not at all."""

import glob
import json
import logging
import os
import re
import secrets
import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cryoforum.errors import InputError
from cryoforum.storage.locks import FOLDER_LOCK

# Names that `replacing` and `progress_path` give; somebody's own hidden files have others.
_LEFTOVER = re.compile(r"\..+\.[0-9a-f]{8}\.partial(\.[^.]*)?|\..+\.progress-\d+-of-\d+", re.DOTALL)

logger = logging.getLogger(__name__)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path``, renamed to it at the end and removed on any failure.

    The suffix is that of ``path``, as some writers choose their format by it.
    """
    path = Path(path)
    make_folder_of(path)
    temporary = path.with_name(f".{path.stem}.{secrets.token_hex(4)}.partial{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException:  # Ctrl-C must not leave a torn file either
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path, values: Any) -> None:
    """Write plain values as JSON that people can read; the file appears whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(values, indent=2) + "\n")


def reason_of(error: Exception) -> str:
    """What went wrong, in a line; of the system's errors its words, without their number."""
    if isinstance(error, OSError) and error.strerror:
        files = [str(name) for name in (error.filename, error.filename2) if name is not None]
        return ": ".join([" to ".join(files), error.strerror] if files else [error.strerror])
    return " ".join(str(error).split())


def require_folder_of(path: Path) -> None:
    """InputError where neither the folder of ``path`` nor the one above it exists; asked before any work.

    One folder is made when something is written; several that are missing are a mistyped path.
    """
    folder = Path(path).parent
    if not folder.is_dir() and (folder.exists() or not folder.absolute().parent.is_dir()):
        raise InputError(f"cannot write {path}: there is no folder {folder}; create it first")


def make_folder_of(path: Path) -> None:
    """Make the folder of ``path`` where it is the only one missing; InputError where more are."""
    require_folder_of(path)
    folder = Path(path).parent
    if not folder.is_dir():
        folder.mkdir(exist_ok=True)
        logger.info(f"made the folder {folder}")


def refuse_to_overwrite(path: Path, overwrite: bool) -> None:
    """InputError where ``path`` exists and ``overwrite`` is false, or is a folder; asked before any work."""
    if Path(path).is_dir():
        raise InputError(f"expected a file name, found the folder {path}; add a file name")
    if Path(path).exists() and not overwrite:
        raise InputError(f"{path} already exists; choose another name or allow it with --overwrite")


def check_output(path: Path | None, overwrite: bool) -> None:
    """InputError where no file can be written at ``path``, None for nowhere; asked before any work."""
    if path is not None:
        refuse_to_overwrite(path, overwrite)
        require_folder_of(path)


def contents(folder: Path) -> list[Path]:
    """What is in a folder besides its lock and the leftovers of kills; nothing where there is no folder."""
    if not folder.is_dir():
        return []
    return [entry for entry in folder.iterdir() if entry.name != FOLDER_LOCK and not is_leftover(entry)]


def new_folder(path: Path, overwrite: bool, known: Collection[str]) -> Path:
    """An empty folder at ``path``. With ``overwrite`` an earlier result there is removed first.

    ``known`` are the names that a result has: a folder that holds anything else is somebody's own and
    is never touched.
    """
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise InputError(f"expected a folder at {path}, found a file; choose another --out")
    entries = contents(path)
    foreign = sorted(entry.name for entry in entries if entry.name not in known)
    if foreign:
        raise InputError(f"{path} holds {foreign[0]}, which is not ours to replace; choose another --out")
    if entries and not overwrite:
        raise InputError(f"{path} exists and is not empty; choose another --out or add --overwrite")
    path.mkdir(parents=True, exist_ok=True)
    if entries:
        # Moved away first, so that a kill half-way never leaves a folder that looks whole.
        aside = path / f".old.{secrets.token_hex(4)}.partial"
        aside.mkdir()
        for entry in entries:
            entry.rename(aside / entry.name)
        shutil.rmtree(aside)
    return path


def is_leftover(path: Path) -> bool:
    """Whether ``path`` has the name of a temporary file of `replacing` or of `progress_path`.

    Only a kill leaves one behind.
    """
    return _LEFTOVER.fullmatch(path.name) is not None


def is_torn(path: Path) -> bool:
    """Whether ``path`` has the name of a file that a kill tore; progress, which is gone on with, is none."""
    return is_leftover(path) and ".progress-" not in path.name


def remove_leftovers_in(folder: Path, which: Callable[[Path], bool] = is_leftover) -> None:
    """Remove the temporary files that kills left behind in a folder which nobody else writes to.

    Links and folders of such names are somebody's own and stay.
    """
    for leftover in filter(which, Path(folder).iterdir()):
        if leftover.is_file() and not leftover.is_symlink():
            leftover.unlink(missing_ok=True)


def progress_path(path: Path, process: int, process_count: int) -> Path:
    """Where one of several processes, counted from 0, keeps what it has done towards ``path``."""
    path = Path(path)
    return path.with_name(f".{path.name}.progress-{process + 1}-of-{process_count}")


def remove_leftovers_of(path: Path) -> None:
    """Remove the temporary files that were on the way to ``path``, now that it is complete."""
    path = Path(path)
    name, stem, suffix = (glob.escape(part) for part in (path.name, path.stem, path.suffix))
    for pattern in (f".{name}.progress-*-of-*", f".{stem}.????????.partial{suffix}"):
        for leftover in path.parent.glob(pattern):
            leftover.unlink(missing_ok=True)
