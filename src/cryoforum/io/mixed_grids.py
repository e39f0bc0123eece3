"""Images of optics groups whose boxes or pixel sizes differ, read at one of them."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from cryoforum.dataset.image_grid import ImageGrid
from cryoforum.dataset.images import Images, JoinedImages
from cryoforum.dataset.resampling import resampled
from cryoforum.io.mrc.stacks import LazyImages

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Part:
    """Rows (k,) of a table whose images have one box, which may be odd, and pixel size."""

    grid: ImageGrid
    rows: np.ndarray


def images_on_one_grid(
    images_of: Callable[[np.ndarray], LazyImages],
    box_of: Callable[[int], int],
    groups: np.ndarray,
    pixel_sizes: np.ndarray,
    wanted: ImageGrid | None = None,
) -> tuple[Images, ImageGrid]:
    """The images of all rows at one even box and pixel size, and which.

    Of resampling, and of the row and column that odd boxes lose, a line each warns.

    Parameters
    ----------
    images_of, box_of : the images of some rows as they are; width in pixels of the image of a row.
    groups, pixel_sizes : optics group and pixel size in Å of each row, (n,). As in RELION a group has one
        box: that of its first image.
    wanted : None for what most images have. Images within 1 % of it are taken as they are, and what most of
        them have is what it stands for.
    """
    parts = _parts(box_of, groups, pixel_sizes)
    target = _target(parts, wanted)
    if wanted is not None:
        size = target.pixel_size_angstrom  # as which images within 1 % of what is wanted are taken
        parts = [
            replace(p, grid=replace(p.grid, pixel_size_angstrom=size)) if p.grid.even.is_near(wanted) else p
            for p in parts
        ]
    for part in parts:
        if part.grid.box % 2:
            logger.warning(
                f"{len(part.rows)} of {len(groups)} particles have an odd box of {part.grid.box} px; their "
                "last row and column are left out, and the centre stays the same pixel"
            )
        if not part.grid.even.is_same(target):
            logger.warning(
                f"{len(part.rows)} of {len(groups)} particles are resampled from {part.grid} to {target}"
            )
    if len(parts) == 1:
        return resampled(images_of(parts[0].rows), parts[0].grid, target), target
    part_of_row, row_in_part = torch.empty(2, len(groups), dtype=torch.long)
    images = []
    for number, part in enumerate(parts):
        part_of_row[part.rows] = number
        row_in_part[part.rows] = torch.arange(len(part.rows))
        images.append(resampled(images_of(part.rows), part.grid, target))
    return JoinedImages(tuple(images), part_of_row, row_in_part), target


def _parts(box_of: Callable[[int], int], groups: np.ndarray, pixel_sizes: np.ndarray) -> list[_Part]:
    """The rows of each grid, in order."""
    keys, first, key_of_row = np.unique(
        np.stack([groups, pixel_sizes], axis=-1), axis=0, return_index=True, return_inverse=True
    )
    grids: list[ImageGrid] = []
    grid_of_key = []
    for (_, pixel_size), row in zip(keys.tolist(), first, strict=True):
        box = box_of(int(row))
        found = ImageGrid(box, pixel_size)
        same = [number for number, known in enumerate(grids) if known.is_same(found)]
        grid_of_key.append(same[0] if same else len(grids))
        grids += [] if same else [found]
    grid_of_row = np.array(grid_of_key)[key_of_row.reshape(-1)]
    return [_Part(known, np.flatnonzero(grid_of_row == at)) for at, known in enumerate(grids)]


def _target(parts: Sequence[_Part], wanted: ImageGrid | None) -> ImageGrid:
    fitting = [part for part in parts if wanted is None or part.grid.even.is_near(wanted)]
    if wanted is not None and not fitting:
        return wanted
    return max(fitting, key=lambda part: len(part.rows)).grid.even
