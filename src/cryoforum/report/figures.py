"""The figures of the report. Every function takes arrays and returns SVG text; angles come in radians."""

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.ticker import MaxNLocator

from cryoforum.reconstruction.fsc import FSC_THRESHOLD
from cryoforum.report.canvas import BLUE, GREEN, INK, MUTED, ORANGE, panel, svg
from cryoforum.report.plotting import (
    DASHED,
    draw_histogram,
    draw_points,
    drawn_rows,
    error_degrees,
    finish,
    label_logarithmic,
    legend_above,
    mark_threshold,
    plain,
    plot,
)
from cryoforum.report.wording import degrees

_MAX_DENSITY_BINS = 90
_MAX_SKY_ROWS = 18
_TICK_RESOLUTIONS_ANGSTROM = (100, 50, 30, 20, 15, 12, 10, 8, 7, 6, 5, 4.5, 4, 3.5, 3, 2.5, 2.2, 2, 1.8, 1.5)
MAP = "map"  # a reconstruction that is not one of the demonstration's
_COLOURS = (BLUE, ORANGE, GREEN, MUTED, INK)
_CURVE_STYLES: dict[str, dict[str, Any]] = {
    "true": {"color": MUTED, "linewidth": 4.5, "alpha": 0.5},  # seen beside a curve that covers it
    "network": {"color": ORANGE},
    "predicted": {"color": BLUE},
    "filtered": {"color": GREEN, "linestyle": (0, (4, 2))},
    MAP: {"color": BLUE, "linewidth": 2},
    "genuine": {"color": INK, "linewidth": 1.1, "linestyle": (0, (1, 1.5))},
}


def training_loss(steps: np.ndarray, losses: np.ndarray) -> str:
    """Training loss, each logged value and a running mean."""
    with plot() as axes:
        window = len(losses) // 25
        if window < 2:
            axes.plot(steps, losses, color=BLUE, marker="o", markersize=3)
        else:
            axes.plot(steps, losses, color=MUTED, linewidth=0.6, alpha=0.55, label="logged")
            mean = np.convolve(losses, np.ones(window) / window, mode="valid")
            axes.plot(steps[window - 1 :], mean, color=BLUE, label=f"mean of {window} values")
            axes.legend()
        finish(axes, "step", "training loss")
        return svg(axes.figure, f"Training loss from {losses[0]:.3g} to {losses[-1]:.3g}")


def validation_error(steps: np.ndarray, median_rad: np.ndarray, mean_rad: np.ndarray) -> str:
    """Median and mean validation error where they were logged, NaN elsewhere."""
    with plot() as axes:
        drawn = ((median_rad, "median", BLUE, "o"), (mean_rad, "mean", ORANGE, "s"))
        for values, name, colour, marker in drawn:
            known = np.isfinite(values)
            style = {"color": colour, "marker": marker, "markersize": 3.5, "label": name}
            axes.plot(steps[known], np.rad2deg(values[known]), **style)
        label_logarithmic(axes, y=True)
        axes.legend()
        finish(axes, "step", "validation error (°)")
        last = f"{np.rad2deg(median_rad[np.isfinite(median_rad)][-1]):.1f} degrees"
        return svg(axes.figure, f"Validation error against training step; the last median is {last}")


def schedule(steps: np.ndarray, learning_rate: np.ndarray, momentum: np.ndarray) -> str:
    """Learning rate above momentum."""
    with panel() as figure:
        upper, lower = figure.subplots(2, 1, sharex=True)
        upper.plot(steps, learning_rate, color=BLUE)
        upper.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        finish(upper, "", "learning rate")
        lower.plot(steps, momentum, color=GREEN)
        finish(lower, "step", "momentum")
        for axes in (upper, lower):
            axes.yaxis.set_major_locator(MaxNLocator(4))
        return svg(figure, f"Learning rate, at most {learning_rate.max():.2g}, against training step")


def resolution_by_round(rounds: np.ndarray, resolutions: Mapping[str, np.ndarray]) -> str:
    """Resolution in Å of each class after each round, NaN where it was not there."""
    with plot() as axes:
        for (name, values), colour in zip(resolutions.items(), itertools.cycle(_COLOURS), strict=False):
            axes.plot(rounds, values, color=colour, marker="o", markersize=3.5, label=name)
        if len(resolutions) > 1:
            axes.legend()
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        finish(axes, "round", "resolution (Å)")
        return svg(axes.figure, f"Resolution of the half maps in {len(rounds)} rounds")


def errors_by_round(rounds: np.ndarray, expected_deg: np.ndarray, change_deg: np.ndarray) -> str:
    """Median expected error and median change of the orientations after each round."""
    with plot() as axes:
        for values, name, colour in ((expected_deg, "expected error", BLUE), (change_deg, "change", ORANGE)):
            axes.plot(rounds, values, color=colour, marker="o", markersize=3.5, label=name)
        label_logarithmic(axes, y=True)
        axes.legend()
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        finish(axes, "round", "median (°)")
        return svg(axes.figure, f"Expected error and change of the poses in {len(rounds)} rounds")


def pairwise_density(true_rad: np.ndarray, predicted_rad: np.ndarray) -> str:
    """2-D histogram of distances between pairs of particles: true against predicted (paper, Fig. 3)."""
    with plot((4.3, 3.5)) as axes:  # leaves the axes nearly square
        bins = int(np.clip(np.sqrt(len(true_rad) / 10), 10, _MAX_DENSITY_BINS))
        angles = np.rad2deg(true_rad), np.rad2deg(predicted_rad)
        counts, edges, _ = np.histogram2d(*angles, bins=bins, range=[(0.0, 180.0)] * 2)
        style = {"norm": LogNorm(1, max(2, counts.max())), "cmap": "viridis", "rasterized": True}
        mesh = axes.pcolormesh(edges, edges, np.ma.masked_equal(counts.T, 0), **style)
        axes.plot([0, 180], [0, 180], color=ORANGE, linewidth=0.9, linestyle=DASHED)
        axes.set(xticks=range(0, 181, 45), yticks=range(0, 181, 45))
        bar = axes.figure.colorbar(mesh, ax=axes, shrink=0.8, format="{x:g}")
        bar.set_label("pairs")
        bar.outline.set_visible(False)
        finish(axes, "true distance (°)", "predicted distance (°)", grid=False)
        correlation = np.corrcoef(true_rad, predicted_rad)[0, 1]
        alt = f"Density of true against predicted pairwise distances; correlation {correlation:.3f}"
        return svg(axes.figure, alt)


def certainty_scatter(statistic: np.ndarray, errors_rad: np.ndarray, name: str, kept_share: float) -> str:
    """Error against -Λmax or -tr Λ (``statistic`` ≤ 0), with the quantile of ``kept_share`` (Fig. 4a-b)."""
    certainty = np.maximum(-statistic, 1e-3)
    threshold = float(np.quantile(certainty, 1 - kept_share))
    errors, rows = error_degrees(errors_rad), drawn_rows(len(errors_rad))
    with plot() as axes:
        for wanted, colour in ((certainty >= threshold, BLUE), (certainty < threshold, ORANGE)):
            own = rows[wanted[rows]]
            draw_points(axes, certainty[own], errors[own], colour, count=len(errors))
        label_logarithmic(axes, x=True, y=True)
        note = f"{1 - kept_share:.0%} quantile: {plain(threshold)}".replace("%", " %")
        mark_threshold(axes, threshold, note)
        finish(axes, f"−{name} (more certain →)", "error (°)")
        return svg(axes.figure, f"Orientation error against minus {name}; the {note} is marked")


def error_histogram(kept_rad: np.ndarray, dropped_rad: np.ndarray) -> str:
    """Errors of kept and dropped particles, each normalised to its own number (Fig. 4c)."""
    groups = {"kept": error_degrees(kept_rad), "dropped": error_degrees(dropped_rad)}
    both = np.concatenate(list(groups.values()))
    bins = np.geomspace(max(both.min(), np.quantile(both, 0.002)) * 0.9, both.max() * 1.05, 40)
    labels = []
    with plot() as axes:
        for (name, values), colour in zip(groups.items(), (BLUE, ORANGE), strict=True):
            if len(values):
                labels.append(f"{name}: median {degrees(np.deg2rad(np.median(values)))}")
                draw_histogram(axes, values, bins, colour, labels[-1])
        label_logarithmic(axes, x=True)
        legend_above(axes)
        finish(axes, "error (°)", "share of the group (%)")
        return svg(axes.figure, f"Histograms of orientation errors; {', '.join(labels)}")


def error_against_bound(bound_rad: np.ndarray, errors_rad: dict[str, np.ndarray]) -> str:
    """Error of each particle against its own Cramér-Rao lower bound, with the line where they are equal.

    ``errors_rad`` (n,) are those of "refined" poses and, where known, of the "network alone".
    """
    bound, rows = error_degrees(bound_rad), drawn_rows(len(bound_rad))
    colours = {"network alone": ORANGE, "refined": BLUE}
    with plot() as axes:
        for name, values in errors_rad.items():
            draw_points(axes, bound[rows], error_degrees(values[rows]), colours[name], name, count=len(bound))
        ends = np.array([bound.min(), bound.max()])
        axes.plot(ends, ends, color=INK, linewidth=1.1, linestyle=DASHED, label="error = lower bound")
        label_logarithmic(axes, x=True, y=True)
        legend_above(axes)
        finish(axes, "Cramér-Rao lower bound (°)", "error (°)")
        above = np.mean(errors_rad["refined"] > bound_rad)
        alt = f"Error against Cramér-Rao lower bound; {above:.0%} of the refined poses lie above it"
        return svg(axes.figure, alt)


def histograms(
    groups: Mapping[str, np.ndarray | None],
    quantity: str,
    unit: str = "",
    ideal: Callable[[np.ndarray], np.ndarray] | None = None,
) -> str:
    """Histograms of positive values on a logarithmic axis.

    Parameters
    ----------
    groups
        (n,) values by name, each drawn in per cent of its number; None: not known, not drawn.
    quantity, unit
        For the label of the axis.
    ideal
        Cumulative distribution of a perfect estimator, drawn beside them.
    """
    shown = {name: np.maximum(values, 1e-6) for name, values in groups.items() if values is not None}
    both = np.concatenate(list(shown.values()))
    bins = np.geomspace(np.quantile(both, 0.001) * 0.9, both.max() * 1.05, 50)
    medians = {name: plain(float(f"{np.median(values):.2g}")) + unit for name, values in shown.items()}
    with plot() as axes:
        colours = (BLUE,) if len(shown) == 1 else (ORANGE, BLUE)
        for (name, values), colour in zip(shown.items(), colours, strict=True):
            draw_histogram(axes, values, bins, colour, f"{name}: median {medians[name]}")
        if ideal is not None:
            middle = np.sqrt(bins[1:] * bins[:-1])
            line = {"color": INK, "linewidth": 1.2, "linestyle": DASHED}
            axes.plot(middle, 100 * np.diff(ideal(bins)), label="perfect estimator", **line)
        label_logarithmic(axes, x=True)
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        legend_above(axes)
        finish(axes, f"{quantity} ({unit.strip()})" if unit else quantity, "share of the particles (%)")
        listed = ", ".join(f"{name} {median}" for name, median in medians.items())
        return svg(axes.figure, f"Histograms of {quantity}; medians: {listed}")


def signal_against_gain(signal_scale: np.ndarray, log_likelihood_gain: np.ndarray) -> str:
    """Signal strength of each particle (n,) against its gain in log-likelihood over noise alone."""
    rows = drawn_rows(len(signal_scale))
    with plot() as axes:
        draw_points(axes, signal_scale[rows], log_likelihood_gain[rows], BLUE, count=len(signal_scale))
        mark_threshold(axes, 1)
        axes.set_xlim(left=min(0.0, 1.1 * float(signal_scale.min())))
        axes.set_ylim(bottom=min(0.0, 1.1 * float(log_likelihood_gain.min())))
        finish(axes, "signal scale (1 = as in the reference)", "gain in log-likelihood")
        median = np.median(signal_scale)
        return svg(axes.figure, f"Signal scale against log-likelihood gain; the median scale is {median:.2f}")


def sky_density(directions: np.ndarray, rows: int) -> np.ndarray:
    """Density of unit vectors (n, 3) in cells of equal area, 1 = uniform.

    Returns
    -------
    (rows, 2 rows): rows are equal steps of the sine of latitude, columns of longitude.
    """
    longitude = np.arctan2(directions[:, 1], directions[:, 0])
    latitude_sine = np.clip(directions[:, 2], -1, 1)
    limits = [(-1.0, 1.0), (-np.pi, np.pi)]
    counts, *_ = np.histogram2d(latitude_sine, longitude, bins=(rows, 2 * rows), range=limits)
    return counts / counts.mean()


def view_directions(directions: dict[str, np.ndarray]) -> dict[str, str]:
    """Maps of named unit view directions (n, 3), Mollweide's equal-area projection, one colour scale."""
    count = len(next(iter(directions.values())))
    rows = int(np.clip(np.sqrt(count / 24), 4, _MAX_SKY_ROWS))  # about twelve particles a cell
    densities = {name: sky_density(values, rows) for name, values in directions.items()}
    highest = max(density.max() for density in densities.values())
    return {name: _sky_map(density, highest, name) for name, density in densities.items()}


def _sky_map(density: np.ndarray, highest: float, name: str) -> str:
    rows, columns = density.shape
    longitude, latitude = np.linspace(-np.pi, np.pi, columns + 1), np.arcsin(np.linspace(-1, 1, rows + 1))
    with panel((4.5, 2.9)) as figure:
        axes = figure.add_subplot(projection="mollweide")
        style = {"cmap": "viridis", "vmin": 0, "vmax": highest, "rasterized": True}
        mesh = axes.pcolormesh(longitude, latitude, density, **style)
        axes.set(xticks=[], yticks=[])
        bar = figure.colorbar(mesh, ax=axes, orientation="horizontal", shrink=0.6, aspect=28, pad=0.04)
        bar.set_label("density (1 = uniform)")
        bar.outline.set_visible(False)
        bar.locator = MaxNLocator(5)
        return svg(
            figure, f"Sphere of {name} view directions; densest cell {density.max():.1f} times uniform"
        )


def fsc_curves(curves: dict[str, tuple[np.ndarray, np.ndarray]], names: dict[str, str], masking: str) -> str:
    """Fourier shell correlations with the 0.143 line (Fig. 4d-f).

    Parameters
    ----------
    curves
        (frequency in 1/Å, FSC), each (shells,), by a key of ``names``.
    names
        Labels of the legend by key; as of `maps.names_of_maps`.
    masking
        For screen readers.
    """
    highest = max(float(frequency.max()) for frequency, _ in curves.values())
    lowest = min(float(fsc.min()) for _, fsc in curves.values())
    with plot() as axes:
        for kind, (frequency, fsc) in curves.items():
            axes.plot(frequency, fsc, label=names[kind], **_curve_style(kind))
        axes.axhline(FSC_THRESHOLD, color=INK, linewidth=0.8, linestyle=(0, (2, 2)))
        style = {"textcoords": "offset points", "fontsize": 8, "ha": "left"}
        axes.annotate(f"FSC = {FSC_THRESHOLD}", (0, FSC_THRESHOLD), (3, 3), **style)
        ticks = _resolution_ticks(highest)
        axes.set_xticks([1 / tick for tick in ticks], [f"{tick:g}" for tick in ticks])
        axes.set(ylim=(min(-0.05, lowest), 1.03), xlim=(0, highest))
        legend_above(axes, columns=2)
        finish(axes, "resolution (Å)", "FSC")
        listed = ", ".join(names[kind][:1].lower() + names[kind][1:] for kind in curves)
        return svg(axes.figure, f"{masking} Fourier shell correlation of half maps: {listed}")


def _curve_style(kind: str) -> dict[str, Any]:
    """That of the kind; classes have a colour by their number."""
    if kind in _CURVE_STYLES:
        return _CURVE_STYLES[kind]
    return {"color": _COLOURS[(int(kind.removeprefix("class")) - 1) % len(_COLOURS)]}


def _resolution_ticks(max_frequency: float) -> list[float]:
    """Round resolutions in Å that stand far enough apart on an axis of frequency."""
    ticks: list[float] = []
    for resolution in _TICK_RESOLUTIONS_ANGSTROM:
        previous = 1 / ticks[-1] if ticks else 0.0
        if previous + 0.13 * max_frequency <= 1 / resolution <= max_frequency:
            ticks.append(resolution)
    return ticks
