"""Where the images of a table are: each is a real file and a slice, however its name is spelt."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from cryoforum.dataset.particle_table import ParticleTable, place_of_row, split_image_name
from cryoforum.errors import InputError
from cryoforum.io.image_paths import StackFinder, TwoNamesOfOneFile, say_base
from cryoforum.io.mrc.header import read_header

Key = TypeVar("Key", str, Path)  # what a stack is called by
_ODD = np.uint64(0x9E3779B97F4A7C15)  # times a slice: no two slices of a stack meet


@dataclass(frozen=True)
class LocatedImages:
    """The slice, from 0, and the existing stack of each image of a table."""

    slices: list[int]
    stacks: list[Path]

    @property
    def numbers(self) -> Int[Tensor, " n"]:
        """A number for each image by the real file of its stack and its slice: two names give the same."""
        real = {stack: os.path.realpath(stack) for stack in set(self.stacks)}
        return _numbers(real, self.stacks, self.slices)


def parsed_image_names(table: ParticleTable) -> tuple[list[int], list[str]]:
    """Slices from 0 and stack names of 000001@stack.mrcs; a name without @ is the first slice."""
    slices, stacks = [], []
    for row, name in enumerate(table.particles["rlnImageName"]):
        at_slice, stack = split_image_name(name)
        number = at_slice.removesuffix("@")
        if at_slice and not (number.isdecimal() and stack):
            raise InputError(
                f"{place_of_row(table, row)}: expected rlnImageName as 000001@stack.mrcs, found '{name}'"
            )
        slices.append(int(number) - 1 if at_slice else 0)
        stacks.append(stack)
    return slices, stacks


def located_images(table: ParticleTable, root: Path | None = None) -> LocatedImages:
    """The images of a table; every stack is looked for once. InputError names the first that is missing.

    The folder that names are relative to is logged, where it is not that of the table.
    """
    slices, stacks = parsed_image_names(table)
    folder = table.path.absolute().parent
    finder, found = StackFinder(folder, root), dict[str, Path]()
    for row, stack in enumerate(stacks):
        if stack not in found:
            try:
                found[stack] = finder.find(stack)
            except InputError as error:
                raise type(error)(f"{place_of_row(table, row)}: {error}") from error
    _refuse_whole_stacks(table, found)
    if finder.base is not None and finder.base.absolute() != folder:
        say_base(finder.base)
    return LocatedImages(slices, [found[stack] for stack in stacks])


def _refuse_whole_stacks(table: ParticleTable, found: Mapping[str, Path]) -> None:
    """InputError where a name without a slice is that of a stack of several images."""
    for row, name in enumerate(table.particles["rlnImageName"]):
        if "@" in name or not (path := found[name]).stat().st_size:
            continue
        count = read_header(path).layout.shape[0]
        if count > 1:
            raise InputError(
                f"{place_of_row(table, row)}: expected the slice of one image, as in 000001@{name}, as "
                f"{path} holds {count}; 2D stacks of a tilt series (subtomograms of RELION 5) are not read"
            )


def numbers_by_place(table: ParticleTable, root: Path | None = None) -> Int[Tensor, " n"] | None:
    """`LocatedImages.numbers` of a table; None where not all of its stacks are found.

    InputError where two stacks of other names are one below ``root``.
    """
    try:
        return located_images(table, root).numbers
    except TwoNamesOfOneFile:
        raise
    except InputError:
        return None


def numbers_by_name(table: ParticleTable) -> Int[Tensor, " n"]:
    """A number for each image by its name, whose spelling does not count: 1@./a.mrcs is 000001@a.mrcs."""
    slices, stacks = parsed_image_names(table)
    return _numbers({stack: os.path.normpath(stack) for stack in set(stacks)}, stacks, slices)


def image_numbers(table: ParticleTable, root: Path | None = None) -> Int[Tensor, " n"]:
    """A number for each image by its place, or by its name where not all stacks are found."""
    numbers = numbers_by_place(table, root)
    return numbers_by_name(table) if numbers is None else numbers


def _numbers(text_of: Mapping[Key, str], stacks: Sequence[Key], slices: Sequence[int]) -> Tensor:
    """A number (n,) for each slice, int64, of the stack that a text tells from others."""
    number_of = {}
    for stack, text in text_of.items():
        digest = hashlib.blake2b(os.fsencode(text), digest_size=8).digest()
        number_of[stack] = int.from_bytes(digest, "little")
    numbers = np.array([number_of[stack] for stack in stacks], dtype=np.uint64)
    numbers += np.array(slices, dtype=np.int64).view(np.uint64) * _ODD
    return torch.from_numpy(numbers.view(np.int64))
