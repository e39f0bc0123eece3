"""Finding input files, and writing output so that a file is either complete or not there."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path``, renamed to it at the end and removed on any failure.

    The suffix is that of ``path``, as some writers choose their format by it.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise ValueError(f"cannot write {path}: there is no folder {path.parent}; create it first")
    temporary = path.with_name(f".{path.stem}.{secrets.token_hex(4)}.partial{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException:  # Ctrl-C must not leave a torn file either
        temporary.unlink(missing_ok=True)
        raise


def refuse_to_overwrite(path: Path, overwrite: bool) -> None:
    """ValueError where ``path`` exists and ``overwrite`` is false."""
    if Path(path).exists() and not overwrite:
        raise ValueError(f"{path} already exists; choose another name or allow it with --overwrite")


def find_file(name: str, folder: Path, root: Path | None = None) -> Path:
    """The existing file that ``name``, written in a file of ``folder``, means.

    A relative name is looked for in ``root`` if given, in ``folder`` and its parents (names in RELION
    are relative to the project folder, somewhere above the STAR file), and in the current folder. An
    absolute name is taken as it is, or else its last part is looked for in ``root``.
    """
    given = Path(name)
    folder = Path(folder).absolute()
    if given.is_absolute():
        places = [given] if root is None else [given, Path(root) / given.name]
    else:
        bases = [folder, *folder.parents, Path.cwd()]
        places = [base / given for base in (bases if root is None else [Path(root), *bases])]
    for place in places:
        if place.is_file():
            return place
    looked = ", ".join(dict.fromkeys(str(place) for place in places))
    raise ValueError(f"file {name} not found; give its folder with --root. Looked for {looked}")
