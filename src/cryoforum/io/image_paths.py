"""Which files the image names in a particle file mean.

All names of one file are relative to one folder: it is fixed by the first stack that is found, and used for
all. Looked for one by one, a stack that is missing would be replaced by another of that name further up.
"""

import logging
import os
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path, PurePath

from cryoforum.errors import InputError

_FORMAT_HINT = re.compile(r"(?<=.):mrcs?$")
logger = logging.getLogger(__name__)


class TwoNamesOfOneFile(InputError):
    """Two files that were apart are one below --root: images of one would be taken for those of the other."""


def common_folder(paths: Sequence[Path]) -> Path:
    """The deepest folder that all the files lie below."""
    return Path(os.path.commonpath([Path(path).absolute().parent for path in paths]))


def found_file(name: str, folder: Path, root: Path | None = None) -> Path | None:
    """The file that `find_file` gives; None where there is none."""
    try:
        return find_file(name, folder, root)
    except InputError:
        return None


def find_file(name: str, folder: Path, root: Path | None = None) -> Path:
    """The existing file that ``name``, the only one in a file of ``folder``, means; see `StackFinder`."""
    return StackFinder(folder, root).find(name)


class StackFinder:
    """Finds the stacks that are named in one file of ``folder``, asked for one after the other.

    Relative names are looked for in ``root`` if given, in ``folder`` and its parents (names in RELION are
    relative to the project folder, somewhere above the STAR file), and in the current folder: the first of
    these that holds the first stack holds all of them. An absolute name is taken as it is, or else, in a
    project that was moved, below ``root`` by the longest part of its path that leads to a file there; what
    was left off in front is left off from all names that begin with it. A format behind a colon, as in
    ``a.stk:mrcs``, is no part of a file's name: RELION reads such a file as what the hint says.

    base: the folder that relative names turned out to be relative to; None before the first.
    """

    def __init__(self, folder: Path, root: Path | None = None) -> None:
        self.base: Path | None = None
        self._folder, self._root = Path(folder).absolute(), None if root is None else Path(root)
        self._first = ""
        self._moved_from: list[PurePath] = []
        self._name_of_moved: dict[str, str] = {}

    def find(self, name: str) -> Path:
        """The existing file of that name.

        InputError where there is none; `TwoNamesOfOneFile` where another led to the same one below ``root``.
        """
        name = _FORMAT_HINT.sub("", name)
        return self._moved(name) if Path(name).is_absolute() else self._relative(name)

    def _relative(self, name: str) -> Path:
        if self.base is not None:
            path = self.base / name
            if not os.path.isfile(path):
                raise InputError(
                    f"file {name} not found below {self.base}, where {self._first} was found; complete the "
                    "stacks there, or give the folder of all with --root"
                )
            return path
        bases = [self._folder, *self._folder.parents, Path.cwd()]
        if self._root is not None:
            bases.insert(0, self._root)
        for base in bases:
            if os.path.isfile(base / name):  # unlike Path's, false for a name that is too long
                self.base, self._first = base, name
                return base / name
        looked = ", ".join(dict.fromkeys(str(base / name) for base in bases))
        raise InputError(f"file {name} not found; give its folder with --root. Looked for {looked}")

    def _moved(self, name: str) -> Path:
        """An absolute name as it is, or below the root."""
        if os.path.isfile(name):
            return Path(name)
        given = PurePath(os.path.normpath(name))
        path = None if self._root is None else self._below_root(given, self._root)
        if path is None:
            looked = "" if self._root is None else f", nor any part of its path below {self._root}"
            raise InputError(f"file {name} not found{looked}; give the folder it was moved to with --root")
        first = self._name_of_moved.setdefault(os.path.realpath(path), str(given))
        if first != str(given):
            raise TwoNamesOfOneFile(
                f"{first} and {given} are two files, but both lead to {path} below --root; keep the folders "
                "that tell them apart, and give the one that holds them"
            )
        return path

    def _below_root(self, given: PurePath, root: Path) -> Path | None:
        for old in self._moved_from:
            if given.is_relative_to(old):
                path = root / given.relative_to(old)
                return path if os.path.isfile(path) else None
        for start in range(1, len(given.parts)):
            path = root.joinpath(*given.parts[start:])
            if os.path.isfile(path):
                self._moved_from.append(PurePath(*given.parts[:start]))
                return path
        return None


@cache  # a line for each folder, however many files and however often their images are located
def say_base(base: Path) -> None:
    """Log the folder that image names are relative to."""
    logger.info(f"stacks are found from {base}")
