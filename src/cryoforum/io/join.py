"""Several particle files as one, as RELION joins them; where that would mix things up, with more care."""

import logging
import os
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

import numpy as np
import pandas as pd

from cryoforum.dataset.particle_table import ParticleTable, optics_rows, place_of_row, split_image_name
from cryoforum.errors import InputError
from cryoforum.io.cryosparc.records import joined_records, texts, with_fields, without_fields
from cryoforum.io.image_paths import StackFinder, TwoNamesOfOneFile, common_folder
from cryoforum.io.located_images import LocatedImages, located_images
from cryoforum.io.mrc.stacks import LazyImages
from cryoforum.io.relion.dialects import relion31, with_lengths_in_angstrom
from cryoforum.io.relion.particles import (
    contrast_signs,
    ctf_from_table,
    half_sets_from_table,
    poses_from_table,
)

logger = logging.getLogger(__name__)

# What an optics group has whose file does not say: RELION's own values.
NEUTRAL_OPTICS = {
    "rlnBeamTiltX": "0.000000",
    "rlnBeamTiltY": "0.000000",
    "rlnMagMat00": "1.000000",
    "rlnMagMat01": "0.000000",
    "rlnMagMat10": "0.000000",
    "rlnMagMat11": "1.000000",
    "rlnOddZernike": f"[{','.join(6 * ['0.000000'])}]",
    "rlnEvenZernike": f"[{','.join(9 * ['0.000000'])}]",
    "rlnCtfDataAreCtfPremultiplied": "0",
}
NEUTRAL_PARTICLE = dict.fromkeys(("rlnOriginXAngst", "rlnOriginYAngst", "rlnPhaseShift"), "0.000000")
_NAME, _GROUP = "rlnOpticsGroupName", "rlnOpticsGroup"
_PATHS = "blob/path"


@dataclass(frozen=True)
class _File:
    """A file to be joined: its tables, and where its images are."""

    table: ParticleTable
    optics: pd.DataFrame
    images: LocatedImages


def joined(tables: Sequence[ParticleTable], root: Path | None = None) -> ParticleTable:
    """The particles of several files, in order, in RELION's 3.1 dialect; a single file stays as it is.

    Optics groups equal in name and values become one; equal names of other values are changed. Columns that
    not all files have are left out, but for those whose absence means a value. Both are logged. Image names
    that would lead elsewhere from the folder that all files share are changed. cryoSPARC's records stay where
    all files have them. The path of the result is a description in that folder.

    InputError where a file cannot be read, an image is in two files, or only some have half sets.
    """
    if len(tables) == 1:
        return tables[0]
    _check_half_sets(tables)
    _check_contrast(tables)
    files = [_opened(table, root) for table in tables]
    _check_for_images_in_two(files)
    folder = common_folder([file.table.path for file in files])
    optics, numbers = _joined_optics(files)
    particles, names_of_images = [], _image_names(folder, root, files)
    for position, (file, group_of_row) in enumerate(zip(files, numbers, strict=True)):
        frame = file.table.particles.drop(columns="rlnGroupNumber", errors="ignore")
        frame = frame.assign(rlnImageName=names_of_images[position], rlnOpticsGroup=group_of_row)
        if position and "rlnGroupName" in frame:  # as RELION: groups of two files are not one
            frame["rlnGroupName"] = "optics" + frame[_GROUP] + "_" + frame["rlnGroupName"]
        particles.append(frame)
    paths = [file.table.path for file in files]
    frame = pd.concat(with_common_columns(particles, paths, NEUTRAL_PARTICLE), ignore_index=True)
    names = [path.name for path in paths]
    name = " + ".join(names) if len(names) < 4 else f"{names[0]} + {len(names) - 1} more"
    return ParticleTable(folder / name, optics, frame, _joined_records(tables, frame))


def _joined_records(tables: Sequence[ParticleTable], frame: pd.DataFrame) -> np.ndarray | None:
    """cryoSPARC's records of the rows of the joined table, where all files have some."""
    frames = [table.dataset for table in tables if table.dataset is not None]
    if len(frames) < len(tables):
        if frames:
            logger.warning("cryoSPARC's other fields are left out, as not all files are its own")
        return None
    records, lost = joined_records(frames)
    if set(lost) - {_PATHS}:
        logger.warning(f"left out {', '.join(lost)}, which not all .cs files have alike")
    stacks = [split_image_name(name)[1] for name in frame["rlnImageName"]]
    if _PATHS not in lost and texts(records[_PATHS]) == stacks:
        return records
    encoded = np.array([stack.encode("utf-8", "surrogateescape") for stack in stacks])
    return with_fields(without_fields(records, _PATHS), {_PATHS: encoded})


def _opened(table: ParticleTable, root: Path | None) -> _File:
    """The file in the 3.1 dialect, its numbers and stacks once looked at: errors name its own rows."""
    poses_from_table(table), ctf_from_table(table), half_sets_from_table(table)
    images = located_images(table, root)
    table = relion31(with_lengths_in_angstrom(table))
    assert table.optics is not None
    rows = optics_rows(table, table.optics)
    used, first, group_of_row = np.unique(rows, return_index=True, return_inverse=True)
    optics = table.optics.iloc[used].reset_index(drop=True)
    if "rlnImageSize" not in optics:
        optics["rlnImageSize"] = [str(LazyImages([images.stacks[row]], [0]).shape[-1]) for row in first]
    if "rlnImageDimensionality" not in optics:
        optics["rlnImageDimensionality"] = "2"
    if _NAME not in optics:
        optics[_NAME] = [f"opticsGroup{number + 1}" for number in range(len(optics))]
    optics[_GROUP] = [str(number) for number in range(len(optics))]
    particles = table.particles.assign(rlnOpticsGroup=group_of_row.reshape(-1).astype(str))
    return _File(replace(table, particles=particles), optics, images)


def _check_half_sets(tables: Sequence[ParticleTable]) -> None:
    having = ["rlnRandomSubset" in table.particles for table in tables]
    if any(having) and not all(having):
        with_halves, without = tables[having.index(True)].path, tables[having.index(False)].path
        raise InputError(
            f"expected rlnRandomSubset in all files or in none, found it in {with_halves}, not in {without}: "
            "its half sets would be lost"
        )


def _check_contrast(tables: Sequence[ParticleTable]) -> None:
    dark = [table for table in tables if contrast_signs(table) is not None]
    if dark:
        raise InputError(
            f"{dark[0].path}: its particles are dark on light (blob/sign 1), which only a .cs file by itself "
            "can say; give it alone, or invert the stacks first"
        )


def _check_for_images_in_two(files: Sequence[_File]) -> None:
    """Within one file an image may be in several rows: who uses the particles knows what that means."""
    seen: dict[int, tuple[int, int]] = {}
    for number, file in enumerate(files):
        for row, image in enumerate(file.images.numbers.tolist()):
            earlier, first = seen.setdefault(image, (number, row))
            if earlier != number:
                raise InputError(
                    f"{place_of_row(file.table, row)}: the image is already in "
                    f"{files[earlier].table.path}, row {first + 1}; remove the duplicates"
                )


def _image_names(folder: Path, root: Path | None, files: Sequence[_File]) -> list[list[str]]:
    """Image names of each file that lead to the same stacks from ``folder``.

    As they are, where all do. Else those that do not lead there from ``folder`` itself are made relative to
    it, and where that is not enough, as ``root`` holds stacks of these names, too, all are made absolute.
    """
    names = [[split_image_name(name) for name in file.table.particles["rlnImageName"]] for file in files]
    stacks = [
        {written: stack for (_, written), stack in zip(own, file.images.stacks, strict=True)}
        for own, file in zip(names, files, strict=True)
    ]
    written = [{name: name for name in of_file} for of_file in stacks]
    relative = [{name: _relative_name(name, of_file[name], folder) for name in of_file} for of_file in stacks]
    absolute = [{name: str(stack.absolute()) for name, stack in of_file.items()} for of_file in stacks]
    new = next((each for each in (written, relative) if _lead_to(stacks, each, folder, root)), absolute)
    return [
        [at_slice + new_of[name] for at_slice, name in own] for own, new_of in zip(names, new, strict=True)
    ]


def _relative_name(written: str, stack: Path, folder: Path) -> str:
    if Path(written).is_absolute() or os.path.realpath(folder / written) == os.path.realpath(stack):
        return written
    return os.path.relpath(stack, folder)


def _lead_to(
    stacks: Sequence[dict[str, Path]], names: Sequence[dict[str, str]], folder: Path, root: Path | None
) -> bool:
    """Whether all the names, in one file of ``folder``, lead to the stacks."""
    finder = StackFinder(folder, root)
    try:
        return all(
            os.path.realpath(finder.find(of_file[name])) == os.path.realpath(stack)
            for own, of_file in zip(stacks, names, strict=True)
            for name, stack in own.items()
        )
    except TwoNamesOfOneFile:
        raise
    except InputError:
        return False


def _joined_optics(files: Sequence[_File]) -> tuple[pd.DataFrame, list[np.ndarray]]:
    """The optics groups of all files, and the number, as text, of each particle's in each file."""
    paths = [file.table.path for file in files]
    frames = with_common_columns([file.optics for file in files], paths, NEUTRAL_OPTICS)
    known: dict[tuple[float | str, ...], str] = {}
    names: set[str] = set()
    rows, numbers = [], []
    for file, frame in zip(files, frames, strict=True):
        number_of_group = []
        for group in frame.to_dict("records"):
            key = tuple(_as_number(value) for column, value in group.items() if column != _GROUP)
            if key not in known:
                known[key] = str(len(known) + 1)
                name = group[_NAME]
                if name in names:
                    group[_NAME] = free_name(name, names)
                    logger.warning(
                        f"{file.table.path}: its optics group {name} is another one than that of an earlier "
                        f"file; it is called {group[_NAME]}"
                    )
                names.add(group[_NAME])
                rows.append(group | {_GROUP: known[key]})
            number_of_group.append(known[key])
        numbers.append(np.array(number_of_group)[file.table.particles[_GROUP].astype(int)])
    return pd.DataFrame(rows, columns=list(frames[0]), dtype=str), numbers


def free_name(name: str, taken: Container[str]) -> str:
    """The name with the first number behind it that makes it another than those taken."""
    numbered = (f"{name}_{number}" for number in count(2))
    return next(other for other in numbered if other not in taken)


def _as_number(text: str) -> float | str:
    """What the text says: 300 and 300.000000 are the same."""
    try:
        return float(text)
    except ValueError:
        return text


def with_common_columns(
    frames: Sequence[pd.DataFrame], paths: Sequence[Path], absent: Mapping[str, str]
) -> list[pd.DataFrame]:
    """The columns that all have, in the order of the first; ``absent``: what a missing one means."""
    everywhere = {column for frame in frames for column in frame}
    filled = [
        frame.assign(**{c: value for c, value in absent.items() if c in everywhere and c not in frame})
        for frame in frames
    ]
    common = [column for column in filled[0] if all(column in frame for frame in filled)]
    for frame, given, path in zip(filled, frames, paths, strict=True):
        added = [f"{column} with {absent[column]}" for column in frame if column not in given]
        if added:
            logger.info(f"{path}: filled {', '.join(added)}, which other files have")
        lost = [column for column in frame if column not in common]
        if lost:
            logger.warning(f"{path}: left out {', '.join(lost)}, which not all files have")
    return [frame[common] for frame in filled]
