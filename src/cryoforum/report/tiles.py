"""Rows of grey images as one PNG."""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from cryoforum.report.canvas import grey_levels, panel
from cryoforum.storage.files import replacing

_TILE_INCHES = 0.72
_LABEL_INCHES = 0.3


def write_tiles(rows: Sequence[tuple[str, Tensor]], title: str, output: Path) -> None:
    """Write labelled rows of images as one PNG.

    Parameters
    ----------
    rows
        (label, images (k, n, n)); each image is stretched from its 1st to its 99th percentile.
    title
        Above all rows.
    output
        Written under a temporary name and then renamed.
    """
    widest = max(len(images) for _, images in rows)
    width = max(widest * _TILE_INCHES, 5.0)
    with panel((width, len(rows) * (_TILE_INCHES + _LABEL_INCHES) + _LABEL_INCHES)) as figure:
        figure.suptitle(title, fontsize=9, x=0.01, ha="left")
        strips = figure.subfigures(len(rows), 1, squeeze=False)[:, 0]
        for strip, (label, images) in zip(strips, rows, strict=True):
            strip.suptitle(label, fontsize=8, x=0.01, ha="left")
            places = strip.subplots(1, widest, squeeze=False)[0]
            for axes in places:
                axes.set_axis_off()
            for axes, image in zip(places, images.numpy(), strict=False):
                axes.imshow(image, interpolation="none", **grey_levels(image))
        with replacing(output) as temporary:
            figure.savefig(temporary, facecolor="white", metadata={"Software": None})
