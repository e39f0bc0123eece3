"""Several particle files as one, as RELION joins them; where that would mix things up, with more care."""

import os
import warnings
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from cryoforum.dataset.particle_table import ParticleStar, optics_rows, place_of_row, split_image_name
from cryoforum.io.cryosparc.records import joined_records, texts, with_fields, without_fields
from cryoforum.io.image_paths import common_folder, find_file
from cryoforum.io.mrc.stacks import LazyImages
from cryoforum.io.relion.dialects import relion31, with_lengths_in_angstrom
from cryoforum.io.relion.particles import (
    contrast_signs,
    found_stacks,
    optics_from_star,
    parsed_image_names,
    poses_from_star,
    subsets_from_star,
)

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
    """A file to be joined: its tables, and the slice (from 0) and stack of each image."""

    star: ParticleStar
    optics: pd.DataFrame
    slices: list[int]
    stacks: list[Path]


def joined(stars: Sequence[ParticleStar], root: Path | None = None) -> ParticleStar:
    """The particles of several files, in order, in RELION's 3.1 dialect; a single file stays as it is.

    Optics groups equal in name and values become one; equal names of other values are changed. Columns that
    not all files have are left out, but for those whose absence means a value. Both are warned of. Image
    names that would lead elsewhere from the folder that all files share are changed. cryoSPARC's records stay
    where all files have them. Its path is a
    description in that folder. ValueError where a file cannot be read, an image is in two files, or only
    some have half sets.
    """
    if len(stars) == 1:
        return stars[0]
    _check_half_sets(stars)
    _check_contrast(stars)
    files = [_opened(star, root) for star in stars]
    _check_for_images_in_two(files)
    folder = common_folder([file.star.path for file in files])
    optics, numbers = _joined_optics(files)
    particles = []
    for position, (file, group_of_row) in enumerate(zip(files, numbers, strict=True)):
        table = file.star.particles.drop(columns="rlnGroupNumber", errors="ignore")
        table = table.assign(rlnImageName=_names_from(folder, root, file), rlnOpticsGroup=group_of_row)
        if position and "rlnGroupName" in table:  # as RELION: groups of two files are not one
            table["rlnGroupName"] = "optics" + table[_GROUP] + "_" + table["rlnGroupName"]
        particles.append(table)
    paths = [file.star.path for file in files]
    table = pd.concat(with_common_columns(particles, paths, NEUTRAL_PARTICLE), ignore_index=True)
    names = [path.name for path in paths]
    name = " + ".join(names) if len(names) < 4 else f"{names[0]} + {len(names) - 1} more"
    return ParticleStar(folder / name, optics, table, _joined_records(stars, table))


def _joined_records(stars: Sequence[ParticleStar], table: pd.DataFrame) -> np.ndarray | None:
    """cryoSPARC's records of the rows of the joined table, where all files have some."""
    tables = [star.dataset for star in stars if star.dataset is not None]
    if len(tables) < len(stars):
        if tables:
            warnings.warn("cryoSPARC's other fields are left out, as not all files are its own", stacklevel=3)
        return None
    records, lost = joined_records(tables)
    if set(lost) - {_PATHS}:
        warnings.warn(f"left out {', '.join(lost)}, which not all .cs files have alike", stacklevel=3)
    stacks = [split_image_name(name)[1] for name in table["rlnImageName"]]
    if _PATHS not in lost and texts(records[_PATHS]) == stacks:
        return records
    encoded = np.array([stack.encode("utf-8", "surrogateescape") for stack in stacks])
    return with_fields(without_fields(records, _PATHS), {_PATHS: encoded})


def _opened(star: ParticleStar, root: Path | None) -> _File:
    """The file in the 3.1 dialect, its numbers and stacks once looked at: errors name its own rows."""
    poses_from_star(star), optics_from_star(star), subsets_from_star(star)
    slices, names = parsed_image_names(star, star.particles["rlnImageName"].tolist())
    stacks = found_stacks(star, names, root)
    star = relion31(with_lengths_in_angstrom(star))
    assert star.optics is not None
    rows = optics_rows(star, star.optics)
    used, first, group_of_row = np.unique(rows, return_index=True, return_inverse=True)
    optics = star.optics.iloc[used].reset_index(drop=True)
    if "rlnImageSize" not in optics:
        optics["rlnImageSize"] = [str(LazyImages([stacks[row]], [0]).shape[-1]) for row in first]
    if "rlnImageDimensionality" not in optics:
        optics["rlnImageDimensionality"] = "2"
    if _NAME not in optics:
        optics[_NAME] = [f"opticsGroup{number + 1}" for number in range(len(optics))]
    optics[_GROUP] = [str(number) for number in range(len(optics))]
    particles = star.particles.assign(rlnOpticsGroup=group_of_row.reshape(-1).astype(str))
    return _File(replace(star, particles=particles), optics, slices, stacks)


def _check_half_sets(stars: Sequence[ParticleStar]) -> None:
    having = ["rlnRandomSubset" in star.particles for star in stars]
    if any(having) and not all(having):
        with_halves, without = stars[having.index(True)].path, stars[having.index(False)].path
        raise ValueError(
            f"expected rlnRandomSubset in all files or in none, found it in {with_halves}, not in {without}: "
            "its half sets would be lost"
        )


def _check_contrast(stars: Sequence[ParticleStar]) -> None:
    dark = [star for star in stars if contrast_signs(star) is not None]
    if dark:
        raise ValueError(
            f"{dark[0].path}: its particles are dark on light (blob/sign 1), which only a .cs file by itself "
            "can say; give it alone, or invert the stacks first"
        )


def _check_for_images_in_two(files: Sequence[_File]) -> None:
    resolved = {stack: stack.resolve() for file in files for stack in set(file.stacks)}
    seen: dict[tuple[int, Path], tuple[int, int]] = {}
    for number, file in enumerate(files):
        for row, (index, stack) in enumerate(zip(file.slices, file.stacks, strict=True)):
            earlier, first = seen.setdefault((index, resolved[stack]), (number, row))
            if (earlier, first) != (number, row):
                raise ValueError(
                    f"{place_of_row(file.star, row)}: the image is already in "
                    f"{files[earlier].star.path}, row {first + 1}; remove the duplicates"
                )


def _names_from(folder: Path, root: Path | None, file: _File) -> list[str]:
    """Image names that lead to the same stacks from ``folder``: as they are, relative to it, or absolute."""
    old = file.star.particles["rlnImageName"].tolist()
    new_of_stack: dict[str, str] = {}
    names = []
    for name, stack in zip(old, file.stacks, strict=True):
        at_slice, written = split_image_name(name)
        if written not in new_of_stack:
            relative = os.path.relpath(stack, folder)
            choices = (written, relative, str(stack.absolute()))
            new_of_stack[written] = next(c for c in choices if _leads_to(stack, c, folder, root))
        names.append(at_slice + new_of_stack[written])
    return names


def _leads_to(stack: Path, name: str, folder: Path, root: Path | None) -> bool:
    try:
        return find_file(name, folder, root).resolve() == stack.resolve()
    except ValueError:
        return False


def _joined_optics(files: Sequence[_File]) -> tuple[pd.DataFrame, list[np.ndarray]]:
    """The optics groups of all files, and the number, as text, of each particle's in each file."""
    paths = [file.star.path for file in files]
    tables = with_common_columns([file.optics for file in files], paths, NEUTRAL_OPTICS)
    known: dict[tuple[float | str, ...], str] = {}
    names: set[str] = set()
    rows, numbers = [], []
    for file, table in zip(files, tables, strict=True):
        number_of_group = []
        for group in table.to_dict("records"):
            key = tuple(_as_number(value) for column, value in group.items() if column != _GROUP)
            if key not in known:
                known[key] = str(len(known) + 1)
                name = group[_NAME]
                if name in names:
                    group[_NAME] = free_name(name, names)
                    warnings.warn(
                        f"{file.star.path}: its optics group {name} is another one than that of an earlier "
                        f"file; it is called {group[_NAME]}",
                        stacklevel=3,
                    )
                names.add(group[_NAME])
                rows.append(group | {_GROUP: known[key]})
            number_of_group.append(known[key])
        numbers.append(np.array(number_of_group)[file.star.particles[_GROUP].astype(int)])
    return pd.DataFrame(rows, columns=list(tables[0]), dtype=str), numbers


def free_name(name: str, taken: Container[str]) -> str:
    """The name with the first number behind it that makes it another than those taken."""
    number = 2
    while f"{name}_{number}" in taken:
        number += 1
    return f"{name}_{number}"


def _as_number(text: str) -> float | str:
    """What the text says: 300 and 300.000000 are the same."""
    try:
        return float(text)
    except ValueError:
        return text


def with_common_columns(
    tables: Sequence[pd.DataFrame], paths: Sequence[Path], absent: Mapping[str, str]
) -> list[pd.DataFrame]:
    """The columns that all have, in the order of the first; ``absent``: what a missing one means."""
    everywhere = {column for table in tables for column in table}
    filled = [
        table.assign(**{c: value for c, value in absent.items() if c in everywhere and c not in table})
        for table in tables
    ]
    common = [column for column in filled[0] if all(column in table for table in filled)]
    for table, path in zip(filled, paths, strict=True):
        lost = [column for column in table if column not in common]
        if lost:
            warnings.warn(f"{path}: left out {', '.join(lost)}, which not all files have", stacklevel=4)
    return [table[common] for table in filled]
