"""Figures as text for the page: SVG that follows the page's colours, and pictures as PNG in base64.

A panel is drawn at the width of a phone, so its lettering stays readable when the page puts panels
below each other instead of side by side.
"""

import base64
import html
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.image import imsave
from torch import Tensor

from cryoforum.imaging.fft import crop_or_pad, to_fourier, to_real

# The first three are replaced by the page's own colours. The others are of Okabe & Ito's palette, which
# colour-blind readers can tell apart; they stand on a light and on a dark page.
INK, MUTED, GRID = "#010203", "#040506", "#070809"
BLUE, ORANGE, GREEN = "#0072b2", "#d55e00", "#009e73"
_PAGE_COLOURS = {INK: "ink", MUTED: "muted", GRID: "grid", BLUE: "blue", ORANGE: "orange", GREEN: "green"}
_STYLE = {
    "svg.fonttype": "none",  # lettering stays text: searchable, and in the page's font
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "axes.labelsize": 9,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.unicode_minus": True,
    "axes.formatter.use_mathtext": False,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.5,
    "savefig.dpi": 200,
}
PANEL_INCHES = (3.6, 2.7)
_MAX_TILE_PIXEL = 192  # a larger picture is sharper than the screen and slow to load


@contextmanager
def panel(size_inches: tuple[float, float] = PANEL_INCHES) -> Iterator[Figure]:
    """An empty figure in the style of the page; turn it into text with `svg` inside the block."""
    with matplotlib.rc_context(_STYLE):
        yield Figure(figsize=size_inches, layout="constrained")


def svg(figure: Figure, alt: str) -> str:
    """The figure as inline SVG in the page's colours; ``alt`` is read aloud by screen readers."""
    buffer = io.StringIO()
    # A salt of its own keeps the ids of one figure from meeting those of another on the page.
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with matplotlib.rc_context({"svg.hashsalt": alt}):
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    used = set(re.findall(r"#([\w.]+)", text))
    # names such as axes_1 would occur once in every figure of the page
    text = re.sub(r' id="([^"]*)"', lambda match: match[0] if match[1] in used else "", text)
    for colour, name in _PAGE_COLOURS.items():
        text = text.replace(colour, f"var(--{name})")
    return text.replace("<svg ", f'<svg role="img" aria-label="{html.escape(alt)}" ', 1)


def grey_levels(image: np.ndarray) -> dict[str, Any]:
    """Style of a grey picture whose levels are stretched from the 1st to the 99th percentile of ``image``."""
    low, high = np.percentile(image, (1, 99))
    return {"vmin": low, "vmax": max(high, low + 1e-12), "cmap": "gray"}


def picture(images: Tensor, alt: str) -> str:
    """Grey images (k, n, n) side by side, each stretched from its 1st to its 99th percentile, as HTML."""
    box = images.shape[-1]
    if box > _MAX_TILE_PIXEL:
        images = to_real(crop_or_pad(to_fourier(images), box, _MAX_TILE_PIXEL), _MAX_TILE_PIXEL)
    tiles = []
    for image in images.numpy():
        buffer = io.BytesIO()
        imsave(buffer, image, **grey_levels(image), format="png")
        data = base64.b64encode(buffer.getvalue()).decode("ascii")
        tiles.append(f'<img alt="" src="data:image/png;base64,{data}">')
    return f'<div class="tiles" role="img" aria-label="{html.escape(alt)}">{"".join(tiles)}</div>'
