"""Which files the image names in a particle file mean."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from cryoforum.errors import InputError

_FORMAT_HINT = re.compile(r"(?<=.):mrcs?$")


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
    """The existing file that ``name``, written in a file of ``folder``, means.

    A relative name is looked for in ``root`` if given, in ``folder`` and its parents (names in RELION
    are relative to the project folder, somewhere above the STAR file), and in the current folder. An
    absolute name is taken as it is, or else its last part is looked for in ``root``. A format behind a colon,
    as in ``a.stk:mrcs``, is no part of the file's name: RELION reads such a file as what the hint says.
    """
    given = Path(_FORMAT_HINT.sub("", name))
    folder = Path(folder).absolute()
    if given.is_absolute():
        places = [given] if root is None else [given, Path(root) / given.name]
    else:
        bases = [folder, *folder.parents, Path.cwd()]
        places = [base / given for base in (bases if root is None else [Path(root), *bases])]
    for place in places:
        if os.path.isfile(place):  # unlike Path's, false for a name that is too long
            return place
    looked = ", ".join(dict.fromkeys(str(place) for place in places))
    raise InputError(f"file {name} not found; give its folder with --root. Looked for {looked}")
