"""The figures of the studies. Every function takes arrays and returns SVG text; angles come in radians."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from cryoforum.report.canvas import BLUE, GREEN, INK, ORANGE, svg
from cryoforum.report.plotting import (
    draw_histogram,
    finish,
    label_logarithmic,
    legend_above,
    mark_threshold,
    plot,
)

BORDER_BINS = 12
_PURPLE = "#cc79a7"  # of the same palette as the page's colours
_COLOURS = (INK, BLUE, ORANGE, GREEN, _PURPLE)
_PAPER: dict[str, Any] = {"color": ORANGE, "marker": "D", "markerfacecolor": "none", "markersize": 6}
_SEED: dict[str, Any] = {"color": BLUE, "marker": "o", "markersize": 4, "alpha": 0.6, "markeredgewidth": 0}
_DASHED = (0, (4, 2))


def dot_plot(
    name: str, seeds: Mapping[str, np.ndarray], paper: Mapping[str, float], limits: tuple[float, float]
) -> str:
    """One row for each variant of a block: its seeds, their mean, and the paper's value where known.

    Parameters
    ----------
    name
        Of the block.
    seeds
        (n,) median errors by variant, in radians.
    paper
        The paper's medians by variant.
    limits
        Of the axis of errors, so that blocks can be compared.
    """
    rows = len(seeds)
    with plot((3.6, 0.85 + 0.37 * rows)) as axes:
        for place, (label, values) in enumerate(seeds.items()):
            mean, here = values.mean(), np.full(len(values), place)
            axes.plot(values, here, linestyle="", label="" if place else "a seed", **_SEED)
            axes.plot([mean, mean], [place - 0.2, place + 0.2], color=INK, label="" if place else "mean")
            where = {"transform": axes.get_yaxis_transform(), "va": "bottom", "fontsize": 8}
            axes.text(0.01, place - 0.27, label, **where)
        known = [(paper[label], place) for place, label in enumerate(seeds) if label in paper]
        if known:
            axes.plot(*zip(*known, strict=True), linestyle="", label="the paper", **_PAPER)
        axes.set(xlim=limits, ylim=(rows - 0.55, -0.95), yticks=[])
        label_logarithmic(axes, x=True)
        legend_above(axes, columns=3, marker_scale=1)
        finish(axes, "median error (rad)", "")
        listed = ", ".join(f"{label} {values.mean():.4f}" for label, values in seeds.items())
        return svg(axes.figure, f"{name}: mean over seeds of the median error in rad: {listed}")


def learning_curves(name: str, curves: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> str:
    """Validation median against images shown, of each variant, the first of them in ink."""
    with plot((3.6, 2.4 + 0.17 * len(curves))) as axes:
        for place, (label, (images, median_rad)) in enumerate(curves.items()):
            style = "-" if place < len(_COLOURS) else _DASHED
            # ink is the first's own: dashed lines begin with the next colour
            colour = _COLOURS[place if place < len(_COLOURS) else 1 + (place - 1) % (len(_COLOURS) - 1)]
            known = np.isfinite(median_rad)
            axes.plot(images[known] / 1000, median_rad[known], color=colour, linestyle=style, label=label)
        label_logarithmic(axes, y=True)
        legend_above(axes)
        finish(axes, "images shown (thousands)", "validation median (rad)")
        listed = ", ".join(
            f"{label} {np.nanmin(median_rad):.4f}" for label, (_, median_rad) in curves.items()
        )
        return svg(axes.figure, f"{name}: validation median in rad against images shown; smallest: {listed}")


def noise_curve(seeds: Mapping[str, np.ndarray], paper: Mapping[str, float]) -> str:
    """Median error of each SNR, from the highest to the lowest."""
    means = [values.mean() for values in seeds.values()]
    with plot((4.3, 3.1)) as axes:
        axes.plot(means, color=BLUE, label="ours, mean")
        for place, values in enumerate(seeds.values()):
            label = "" if place else "a seed"
            axes.plot(np.full(len(values), place), values, linestyle="", label=label, **_SEED)
        known = [(place, paper[snr]) for place, snr in enumerate(seeds) if snr in paper]
        if known:
            axes.plot(*zip(*known, strict=True), linestyle=_DASHED, label="the paper", **_PAPER)
        axes.set_xticks(range(len(seeds)), list(seeds))
        label_logarithmic(axes, y=True)
        legend_above(axes, columns=3, marker_scale=1)
        finish(axes, "SNR", "median error (rad)")
        listed = ", ".join(f"{mean:.4f} at {snr}" for snr, mean in zip(seeds, means, strict=True))
        return svg(axes.figure, f"Median error in rad against SNR: {listed}")


def border_curves(group: str, ways: Mapping[str, tuple[np.ndarray, np.ndarray]], border_rad: float) -> str:
    """Median and quartiles of the error against the distance to the border of the fundamental domain.

    Parameters
    ----------
    group
        Point group.
    ways
        (distance (n,), error (n,)) by the name of at most two ways to handle symmetry.
    border_rad
        Distance below which an orientation counts as near the border.
    """
    with plot() as axes:
        for (name, (distance, errors)), colour in zip(ways.items(), (ORANGE, BLUE), strict=False):
            edges = np.quantile(distance, np.linspace(0, 1, BORDER_BINS + 1))
            bins = np.clip(np.searchsorted(edges, distance, side="right") - 1, 0, BORDER_BINS - 1)
            filled = np.unique(bins)
            place = [np.median(distance[bins == one]) for one in filled]
            lower, middle, upper = np.transpose(
                [np.quantile(errors[bins == one], (0.25, 0.5, 0.75)) for one in filled]
            )
            axes.fill_between(place, lower, upper, color=colour, alpha=0.2, linewidth=0)
            axes.plot(place, middle, color=colour, marker="o", markersize=3, label=name)
        mark_threshold(axes, border_rad)
        axes.set_xlim(left=0)
        label_logarithmic(axes, y=True)
        legend_above(axes)
        finish(axes, "distance to the border (rad)", "error (rad)")
        listed = ", ".join(f"{name} {np.median(errors):.4f}" for name, (_, errors) in ways.items())
        return svg(axes.figure, f"{group}: error against distance to the border; medians in rad: {listed}")


def distance_histogram(distances: Mapping[str, np.ndarray], bins: int) -> str:
    """Histogram of the distances of pairs of each kind (n,), in per cent of their number."""
    with plot() as axes:
        for (name, values), colour in zip(distances.items(), (ORANGE, BLUE), strict=True):
            draw_histogram(axes, values, np.linspace(0, math.pi, bins + 1), colour, name)
        legend_above(axes, columns=2)
        finish(axes, "true distance (rad)", "share of the pairs (%)")
        return svg(axes.figure, f"Distances of {' and of '.join(distances)}, in {bins} bins")
