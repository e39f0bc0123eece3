"""What each particle is used for: training, validation or test."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from cryoforum.dataset.particle_table import normalised_image_name
from cryoforum.dataset.particles import Particles
from cryoforum.errors import InputError, require
from cryoforum.fields.checks import integers, settle
from cryoforum.storage.csv_tables import read_csv, write_csv

PARTS = ("train", "validation", "test")  # of a split
# Shares of validation and test: of particles that somebody wants to learn all from, and the paper's, which
# give 2512/838/1650 of 5000.
OWN_SHARES = (0.1, 0.0)
PAPER_SHARES = (0.1675, 0.33)
PAPER_SPLIT = "50.25,16.75,33"  # the same as percentages


def parts_of(particles: Particles, parts: Mapping[str, str], sources: Mapping[int, str]) -> list[str | None]:
    """The part of a split that each particle is in, if any.

    An image is known by its place on disk, whatever its name there; else, as data move, by its name, however
    that is spelt.
    """
    numbers = [] if particles.sources is None else particles.sources.tolist()
    found = [sources.get(place) for place in numbers] or [None] * len(particles)
    if None in found:
        known = {normalised_image_name(name): part for name, part in parts.items()}
        found = [
            part or known.get(normalised_image_name(name))
            for part, name in zip(found, particles.names, strict=True)
        ]
    return found


def write_split(path: Path, parts: Mapping[str, str], sources: Mapping[int, str]) -> None:
    """Write a split, each image by its name and, where ``sources`` are as many, its place on disk."""
    rows = [{"image": name, "part": part} for name, part in parts.items()]
    if len(sources) == len(rows):
        rows = [{**row, "source": str(place)} for row, place in zip(rows, sources, strict=True)]
    write_csv(path, rows)


def read_split(path: Path) -> tuple[dict[str, str], dict[int, str]]:
    """Part of a split by image name, and by the image's place on disk; the second may be empty."""
    rows = read_csv(path)
    if any({"image", "part"} - row.keys() for row in rows) or not rows:
        raise InputError(f"{path}: expected a table with columns image and part")
    places = {int(row["source"]): row["part"] for row in rows if row.get("source")}
    return {row["image"]: row["part"] for row in rows}, places


@dataclass(frozen=True)
class Split:
    """Rows of particles: to learn from, to choose the best weights by, to report on.

    Parameters
    ----------
    train, validation, test
        Row numbers, none of them twice in one part. What is in two parts is learned by heart.

    Raises
    ------
    InputError
        For what is no row number, and a row that is twice in a part.
    """

    train: Tensor
    validation: Tensor
    test: Tensor

    def __post_init__(self) -> None:
        for part in PARTS:
            rows = integers(part, getattr(self, part), None)
            require(
                not len(rows) or int(rows.min()) >= 0,
                f"rows of {part} from 0",
                int(rows.min()) if len(rows) else 0,
            )
            values, counts = rows.unique(return_counts=True)
            if len(values) < len(rows):
                twice = int(values[counts > 1][0])
                raise InputError(f"expected each row once in {part} of a split, found row {twice} more often")
            settle(self, **{part: rows})


def split_rows(
    count: int,
    validation_share: float = OWN_SHARES[0],
    test_share: float = OWN_SHARES[1],
    *,
    seed: int = 0,
) -> Split:
    """A random split. By default nothing is kept for tests: what is left over is learned from.

    Parameters
    ----------
    count
        Of particles.
    validation_share, test_share
        Of all, 0 to 1.
    seed
        Of the draw.

    Raises
    ------
    InputError
        Where the shares leave nothing to learn from.
    """
    if not (validation_share > 0 and test_share >= 0 and validation_share + test_share < 1):
        raise InputError(
            "expected shares for validation above 0 and test of 0 or more with room left to train, "
            f"found {validation_share} and {test_share}"
        )
    test = round(count * test_share)
    validation = math.ceil(count * validation_share)
    if count - test - validation < 2:
        raise InputError(f"expected more particles to split, found {count}; add some or change --split")
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    held_out = test + validation
    return Split(order[held_out:], order[test:held_out], order[:test])


def refuse_images_in_two_parts(particles: Particles, split: Split) -> None:
    """InputError where an image that is in several rows is learned from and judged by.

    One row in two parts is taken: who asks for it wants to learn by heart.
    """
    numbers = particles.image_numbers
    part_of_image: dict[int, tuple[str, int]] = {}
    for part in PARTS:
        for row in getattr(split, part).tolist():
            other, first = part_of_image.setdefault(int(numbers[row]), (part, row))
            if other != part and first != row:
                raise InputError(
                    f"expected each image in one part of the split, found {particles.names[row]} in {other} "
                    f"(row {first + 1}) and {part} (row {row + 1}); remove the duplicates"
                )


Key = TypeVar("Key")


def part_of_each(keys: Sequence[Key], split: Split) -> dict[Key, str]:
    """Part of the split by what each particle is known by."""
    return {keys[row]: part for part in PARTS for row in getattr(split, part).tolist()}


def chosen_split(particles: Particles, choice: str | None, seed: int) -> Split:
    """Percentages "train,validation,test", a split.csv of an earlier model, or the default."""
    if choice is None:
        return split_rows(len(particles), seed=seed)
    if Path(choice).is_file():
        parts = parts_of(particles, *read_split(Path(choice)))
        rows = {p: torch.tensor([r for r, part in enumerate(parts) if part == p]).long() for p in PARTS}
        if min(len(rows["train"]), len(rows["validation"])) < 2:
            raise InputError(f"{choice}: expected particles to train and to validate, found none of this set")
        return Split(**rows)
    try:
        percents = [float(word) for word in choice.split(",")]
        _, validation_share, test_share = (percent / 100 for percent in percents)
    except ValueError:
        raise InputError(
            f"expected --split with three percentages such as 50,17,33 or a split.csv, found '{choice}'"
        ) from None
    if not abs(sum(percents) - 100) < 0.5:  # room for thirds
        raise InputError(
            f"expected percentages at --split that add up to 100, found '{choice}', {sum(percents):g} in all"
        )
    return split_rows(len(particles), validation_share, test_share, seed=seed)
