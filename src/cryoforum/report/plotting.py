"""Parts that the plots of all pages share: axes, histograms, scatter plots, labels and legends."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from cryoforum.report.canvas import INK, PANEL_INCHES, panel

DASHED = (0, (4, 3))
MIN_ERROR_DEG = 0.01  # smaller errors are drawn there, as a logarithmic axis has no 0
_MAX_POINTS = 4000  # more points in a scatter plot only cover each other


@contextmanager
def plot(size_inches: tuple[float, float] = PANEL_INCHES) -> Iterator[Axes]:
    """Empty axes in the style of the page; turn ``axes.figure`` into text with `svg` inside the block."""
    with panel(size_inches) as figure:
        yield figure.add_subplot()


def error_degrees(errors_rad: np.ndarray) -> np.ndarray:
    """Errors (n,) in radians as degrees for a logarithmic axis."""
    return np.maximum(np.rad2deg(errors_rad), MIN_ERROR_DEG)


def draw_histogram(
    axes: Axes, values: np.ndarray, bins: Any, colour: str, label: str | None = None, of: int = 0
) -> None:
    """Histogram of ``values`` (n,) in per cent of ``of`` particles, by default of their own number."""
    style: dict[str, Any] = {
        "weights": np.full(len(values), 100 / max(of or len(values), 1)),
        "color": colour,
    }
    axes.hist(values, bins, histtype="stepfilled", alpha=0.3, linewidth=0, **style)
    axes.hist(values, bins, histtype="step", linewidth=1.4, label=label, **style)


def drawn_rows(count: int) -> np.ndarray:
    """Rows of ``count`` particles for a scatter plot: all, or a random choice of them, always the same."""
    return np.random.default_rng(0).permutation(count)[:_MAX_POINTS]


def draw_points(
    axes: Axes, x: np.ndarray, y: np.ndarray, colour: str, label: str | None = None, *, count: int
) -> None:
    """Scatter plot of ``x`` against ``y`` (n,); points are smaller where ``count`` particles are many."""
    size = 5 if count > 1000 else 14
    axes.scatter(x, y, color=colour, label=label, s=size, alpha=0.45, linewidths=0, rasterized=True)


def mark_threshold(axes: Axes, value: float, note: str = "") -> None:
    """A dashed line at ``value`` on the x axis, with a note above the axes."""
    axes.axvline(value, color=INK, linewidth=0.9, linestyle=DASHED)
    axes.text(value, 1.02, note, transform=axes.get_xaxis_transform(), ha="center", fontsize=8)


def label_logarithmic(axes: Axes, *, x: bool = False, y: bool = False) -> None:
    """Logarithmic axes with plain numbers, few enough for the span of the drawn data."""
    for wanted, axis, scale in ((x, axes.xaxis, axes.set_xscale), (y, axes.yaxis, axes.set_yscale)):
        if wanted:
            scale("log")
            low, high = axis.get_view_interval()
            if high / low < 4:
                axis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
            else:
                axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 1000 else (1,), numticks=12))
            axis.set_major_formatter(FuncFormatter(lambda value, _: plain(value)))
            axis.set_minor_formatter(NullFormatter())


def plain(value: float) -> str:
    """Three significant digits without an exponent; thin spaces between groups of three."""
    rounded = float(f"{value:.3g}")
    text = f"{rounded:,.0f}".replace(",", "\u2009") if abs(rounded) >= 1000 else f"{rounded:g}"
    return text.replace("-", "−")


def legend_above(axes: Axes, columns: int = 1, marker_scale: float = 2) -> None:
    """A legend over the axes, where it hides nothing."""
    place = {"loc": "lower left", "bbox_to_anchor": (0, 1), "borderaxespad": 0.2}
    axes.legend(ncols=columns, markerscale=marker_scale, **place)


def finish(axes: Axes, x_label: str, y_label: str, *, grid: bool = True) -> None:
    """Label the axes, and put the grid behind the data."""
    axes.set(xlabel=x_label, ylabel=y_label)
    axes.set_axisbelow(True)
    if grid:
        axes.grid(True)
