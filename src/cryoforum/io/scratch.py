"""Stacks copied to a fast disk of the machine, as RELION's --scratch_dir does.

Every process that uses a scratch folder holds a shared lock there; who leaves last removes all copies. A
kill leaves copies behind, which the next run takes over, as whole ones carry the original's path, size and
time in their names. The folder is this user's alone, and only files of such names are ever removed from it.
"""

import fcntl
import hashlib
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from cryoforum.dataset.images import Images, JoinedImages, SelectedImages
from cryoforum.dataset.levelling import LevelledImages
from cryoforum.dataset.particles import Particles
from cryoforum.dataset.resampling import ResampledImages
from cryoforum.errors import InputError
from cryoforum.io.mrc.header import Layout, unpack
from cryoforum.io.mrc.stacks import LazyImages
from cryoforum.runtime.reporter import SILENT, Reporter
from cryoforum.storage.files import replacing
from cryoforum.storage.private_folder import (
    make_private_folder,
    open_in_private_folder,
    remove_from_private_folder,
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Scratch:
    """folder: where to copy stacks to, None: nowhere. keep: leave the copies for the next run."""

    folder: Path | None = None
    keep: bool = False

    def __post_init__(self) -> None:
        if self.keep and self.folder is None:
            raise InputError("expected --keep-scratch with --scratch, found no folder to keep copies in")


NO_SCRATCH = Scratch()
_LOCK, _TURN = "lock", "copying"
_DIGITS = 32  # of a hash, in the name of a copy
_COPY = re.compile(rf"[0-9a-f]{{{_DIGITS}}}\.mrcs")
_TORN = re.compile(rf"\.[0-9a-f]{{{_DIGITS}}}\.[0-9a-f]{{8}}\.partial\.mrcs")  # by a kill


@contextmanager
def on_scratch(
    particles: Particles,
    rows: Tensor,
    scratch: Scratch,
    reporter: Reporter = SILENT,
) -> Iterator[Particles]:
    """The same particles, whose images of ``rows`` are read from copies; compressed ones are decompressed.

    InputError where the folder is none or has not enough room.
    """
    layouts = layouts_of(particles.images, rows)
    if scratch.folder is None or not layouts:
        yield particles
        return
    if not scratch.folder.is_dir():
        raise InputError(f"expected a folder at --scratch {scratch.folder}, found none; create it first")
    place = scratch.folder.absolute() / f"cryoforum-scratch-{os.getuid()}"
    with _in_use(place, scratch.keep):
        copies = {layout: place / _name(layout) for layout in layouts}
        _copy_missing(copies, place, reporter)
        moved = {layout.path: copy for layout, copy in copies.items()}
        yield replace(particles, images=_moved(particles.images, moved))


def layouts_of(images: Images, rows: Tensor) -> list[Layout]:
    """Those of the stacks on disk that images of these rows are in."""
    if isinstance(images, LazyImages):
        return images.layouts(rows)
    if isinstance(images, ResampledImages | LevelledImages):
        return layouts_of(images.source, rows)
    if isinstance(images, SelectedImages):
        return layouts_of(images.source, images.rows[rows])
    if isinstance(images, JoinedImages):
        part_of_row = images.part_of_row[rows]
        parts = enumerate(images.parts)
        own = [(part, images.row_in_part[rows[part_of_row == number]]) for number, part in parts]
        return [layout for part, its_rows in own if len(its_rows) for layout in layouts_of(part, its_rows)]
    return []


def _moved(images: Images, copies: Mapping[Path, Path]) -> Images:
    """The same images, read from the copies of their stacks."""
    if isinstance(images, LazyImages):
        return images.moved(copies)
    if isinstance(images, ResampledImages | SelectedImages | LevelledImages):
        return replace(images, source=_moved(images.source, copies))
    if isinstance(images, JoinedImages):
        return replace(images, parts=tuple(_moved(part, copies) for part in images.parts))
    return images


@contextmanager
def _in_use(place: Path, keep: bool) -> Iterator[None]:
    """The folder of copies, which is removed at the end unless others are still in it."""
    lock = _shared_lock(place / _LOCK)
    try:
        yield
    finally:
        with suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not keep:
                _remove(place)
        os.close(lock)


def _remove(place: Path) -> None:
    """Remove all copies, and the lock last: until then nobody else comes in."""
    others = remove_from_private_folder(place, lambda name: name == _TURN or _is_copy(name))
    (place / _LOCK).unlink()
    others.remove(_LOCK)
    if others:
        logger.info(f"{place}: left {len(others)} files that are no copies of stacks: {others[0]} …")
        return
    with suppress(OSError):  # somebody has begun it anew
        place.rmdir()


def _is_copy(name: str) -> bool:
    """Whether this is the name of a copy, or of one that a kill tore."""
    return bool(_COPY.fullmatch(name) or _TORN.fullmatch(name))


def _shared_lock(path: Path) -> int:
    """The descriptor of a locked file. Waits while somebody removes the folder, then begins it anew."""
    while True:
        with suppress(FileNotFoundError):
            make_private_folder(path.parent)
            file = open_in_private_folder(path)
            fcntl.flock(file, fcntl.LOCK_SH)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file), path.lstat()):
                    return file
            os.close(file)


def _copy_missing(copies: Mapping[Layout, Path], place: Path, reporter: Reporter) -> None:
    """Copy what is not there yet, one process at a time: the next one finds it done."""
    with open(open_in_private_folder(place / _TURN), "w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        remove_from_private_folder(place, lambda name: bool(_TORN.fullmatch(name)))
        missing = {copy: layout for layout, copy in copies.items() if copy.is_symlink() or not copy.exists()}
        needed = sum(layout.file_bytes for layout in missing.values())
        free = shutil.disk_usage(place).free
        if needed > free:
            raise InputError(
                f"{place.parent}: expected {needed / 1e9:.2f} GB of free disk for copies of "
                f"{len(missing)} stacks, found {free / 1e9:.2f} GB; choose another --scratch or leave it out"
            )
        if not missing:
            return
        advance = reporter.progress("to scratch", sum(layout.shape[0] for layout in missing.values()))
        for copy, layout in missing.items():
            with replacing(copy) as temporary:
                if layout.is_packed:
                    unpack(layout, temporary)
                else:
                    shutil.copyfile(layout.path, temporary)
            advance(layout.shape[0])


def _name(layout: Layout) -> str:
    """Of one file, at one time of change, the same name in every run."""
    original = layout.path.resolve()
    known = f"{original} {layout.path.stat().st_size} {layout.modified}"
    return hashlib.sha256(known.encode(errors="surrogateescape")).hexdigest()[:_DIGITS] + ".mrcs"
