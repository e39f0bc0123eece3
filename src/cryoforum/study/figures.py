"""What the page of the studies draws; every function takes arrays or numbers. Angles come in radians."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from cryoforum.curation.selection import select
from cryoforum.geometry.point_groups import symmetric_distance, symmetry_group
from cryoforum.geometry.rotations import random_unitquat
from cryoforum.report import figures
from cryoforum.report.canvas import BLUE, GREEN, INK, ORANGE, label_logarithmic, panel, svg
from cryoforum.report.figures import finish, legend_above
from cryoforum.report.layout import Exhibit, Panel
from cryoforum.report.wording import percent, thousands
from cryoforum.training.pairs import DISTANCE_BINS, random_pairs, stratified_pairs
from cryoforum.training.schedule import one_cycle

_PURPLE = "#cc79a7"  # of the same palette as the page's colours
_COLOURS = (INK, BLUE, ORANGE, GREEN, _PURPLE)
_PAPER: dict[str, Any] = {"color": ORANGE, "marker": "D", "markerfacecolor": "none", "markersize": 6}
_SEED: dict[str, Any] = {"color": BLUE, "marker": "o", "markersize": 4, "alpha": 0.6, "markeredgewidth": 0}
_DASHED = (0, (4, 2))
_MAX_PAIRS = 200_000
_PAIRS_DRAWN = 16_000
_BORDER_BINS = 12


def dot_plot(
    name: str, seeds: Mapping[str, np.ndarray], paper: Mapping[str, float], limits: tuple[float, float]
) -> str:
    """One row for each variant of a block: its seeds, their mean, and the paper's value where known."""
    rows = len(seeds)
    with panel((3.6, 0.85 + 0.37 * rows)) as figure:
        axes = figure.add_subplot()
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
        told = ", ".join(f"{label} {values.mean():.4f}" for label, values in seeds.items())
        return svg(figure, f"{name}: mean over seeds of the median error in rad: {told}")


def learning_curves(name: str, curves: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> str:
    """Validation median against images shown, of each variant, the first of them in ink."""
    with panel((3.6, 2.4 + 0.17 * len(curves))) as figure:
        axes = figure.add_subplot()
        for place, (label, (images, median_rad)) in enumerate(curves.items()):
            style = "-" if place < len(_COLOURS) else _DASHED
            # ink is the first's own: dashed lines begin with the next colour
            colour = _COLOURS[place if place < len(_COLOURS) else 1 + (place - 1) % (len(_COLOURS) - 1)]
            known = np.isfinite(median_rad)
            axes.plot(images[known] / 1000, median_rad[known], color=colour, linestyle=style, label=label)
        label_logarithmic(axes, y=True)
        legend_above(axes)
        finish(axes, "images shown (thousands)", "validation median (rad)")
        told = ", ".join(f"{label} {np.nanmin(median_rad):.4f}" for label, (_, median_rad) in curves.items())
        return svg(figure, f"{name}: validation median in rad against images shown; smallest: {told}")


def noise_curve(seeds: Mapping[str, np.ndarray], paper: Mapping[str, float]) -> str:
    """Median error of each SNR, from the highest to the lowest."""
    means = [values.mean() for values in seeds.values()]
    with panel((4.3, 3.1)) as figure:
        axes = figure.add_subplot()
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
        told = ", ".join(f"{mean:.4f} at {snr}" for snr, mean in zip(seeds, means, strict=True))
        return svg(figure, f"Median error in rad against SNR: {told}")


def border_curves(group: str, ways: Mapping[str, tuple[np.ndarray, np.ndarray]], border_rad: float) -> str:
    """Median and quartiles of the error against the distance to the border of the fundamental domain.

    ways: (distance (n,), error (n,)) by the name of at most two ways to handle symmetry.
    """
    with panel() as figure:
        axes = figure.add_subplot()
        for (name, (distance, errors)), colour in zip(ways.items(), (ORANGE, BLUE), strict=False):
            edges = np.quantile(distance, np.linspace(0, 1, _BORDER_BINS + 1))
            bins = np.clip(np.searchsorted(edges, distance, side="right") - 1, 0, _BORDER_BINS - 1)
            filled = np.unique(bins)
            place = [np.median(distance[bins == one]) for one in filled]
            lower, middle, upper = np.transpose(
                [np.quantile(errors[bins == one], (0.25, 0.5, 0.75)) for one in filled]
            )
            axes.fill_between(place, lower, upper, color=colour, alpha=0.2, linewidth=0)
            axes.plot(place, middle, color=colour, marker="o", markersize=3, label=name)
        axes.axvline(border_rad, color=INK, linewidth=0.9, linestyle=(0, (4, 3)))
        axes.set_xlim(left=0)
        label_logarithmic(axes, y=True)
        legend_above(axes)
        finish(axes, "distance to the border (rad)", "error (rad)")
        told = ", ".join(f"{name} {np.median(errors):.4f}" for name, (_, errors) in ways.items())
        return svg(figure, f"{group}: error against distance to the border; medians in rad: {told}")


def distance_histogram(distances: Mapping[str, np.ndarray], bins: int) -> str:
    """How often pairs of each kind lie how far apart, in per cent of that kind."""
    with panel() as figure:
        axes = figure.add_subplot()
        for (name, values), colour in zip(distances.items(), (ORANGE, BLUE), strict=True):
            style = {"bins": bins, "range": (0, math.pi), "color": colour}
            style["weights"] = np.full(len(values), 100 / len(values))
            axes.hist(values, histtype="stepfilled", alpha=0.25, linewidth=0, **style)
            axes.hist(values, histtype="step", linewidth=1.4, label=name, **style)
        legend_above(axes, columns=2)
        finish(axes, "true distance (rad)", "share of the pairs (%)")
        return svg(figure, f"Distances of {' and of '.join(distances)}, in {bins} bins")


def dots_exhibit(medians: Mapping[str, Mapping[str, np.ndarray]], paper: Mapping[str, float]) -> Exhibit:
    """Medians by block, variant and seed on one axis, so that blocks can be compared (Table 1)."""
    shown = [values for block in medians.values() for values in block.values()]
    shown.append(np.array([paper[label] for block in medians.values() for label in block if label in paper]))
    every = np.concatenate(shown)
    limits = float(every.min()) / 1.15, float(every.max()) * 1.15
    panels = tuple(Panel(name, dot_plot(name, block, paper, limits)) for name, block in medians.items())
    caption = (
        "Table 1, block by block, on one axis: median error of every seed (dots), their mean (bars), and the "
        "paper's value where it is known (hollow). The base, where it was run, comes first."
    )
    return Exhibit(panels, caption)


def learning_exhibit(curves: Mapping[str, Mapping[str, tuple[np.ndarray, np.ndarray]]]) -> Exhibit:
    """Learning curves by block and variant (Supplementary Fig. 3)."""
    panels = tuple(Panel(name, learning_curves(name, block)) for name, block in curves.items())
    caption = (
        "Median error on the validation particles while training goes on, first seed of each variant; as the "
        "paper's Supplementary Figure 3."
    )
    return Exhibit(panels, caption)


def noise_exhibit(seeds: Mapping[str, np.ndarray], paper: Mapping[str, float]) -> Exhibit:
    """Error by SNR (Supplementary Table 2)."""
    caption = (
        "Median error on test particles by SNR, the same molecule and poses throughout; hollow: the paper's "
        "Supplementary Table 2. Steps in SNR are drawn as equal."
    )
    return Exhibit((Panel("Median error by SNR", noise_curve(seeds, paper)),), caption, columns=1)


def border_exhibit(
    ways: Mapping[str, Mapping[str, tuple[np.ndarray, np.ndarray]]], border_rad: float
) -> Exhibit:
    """`border_curves` of each group."""
    panels = tuple(Panel(group, border_curves(group, own, border_rad)) for group, own in ways.items())
    caption = (
        "Error to the nearest equivalent against how far the true orientation is from turning into an "
        f"equivalent of itself: medians (lines) and quartiles (bands) in {_BORDER_BINS} bins of as many "
        f"particles each, first seed. Left of the dashed line, at {border_rad} rad, is near the border."
    )
    return Exhibit(panels, caption)


def orientations_exhibit(arrays: Mapping[str, np.ndarray], source: str) -> Exhibit:
    """Pair distances in truth and in prediction, and errors (Fig. 3); ``arrays`` as a run stores them."""
    truth, mode = (torch.from_numpy(arrays[name]) for name in ("truth", "mode"))
    count = len(truth)
    pairs = min(_MAX_PAIRS, count * (count - 1) // 2)
    first, second = random_pairs(count, pairs, torch.Generator().manual_seed(0))
    group = symmetry_group("C1")
    true, predicted = (symmetric_distance(q[first], q[second], group).numpy() for q in (truth, mode))
    error = {"error": np.rad2deg(arrays["error_rad"])}
    panels = (
        Panel("Distances of pairs", figures.pairwise_density(true, predicted)),
        Panel("Errors", figures.against_the_best(error, None, "error", "°")),
    )
    caption = (
        f"{source}: the {thousands(count)} test particles. Left: distances between the orientations of "
        f"{thousands(pairs)} random pairs, predicted against true; on the dashed line they agree. Right: "
        "geodesic distance of each predicted orientation to the true one. Laid out as the paper's Figure 3."
    )
    return Exhibit(panels, caption)


def certainty_exhibit(arrays: Mapping[str, np.ndarray], kept_share: float, source: str) -> Exhibit:
    """Both statistics of certainty against the error, and errors of kept and dropped (Fig. 5)."""
    errors, trace = arrays["error_rad"], arrays["trace"]
    panels = (
        Panel("Λmax", figures.certainty_scatter(arrays["lambda_max"], errors, "Λmax", kept_share)),
        Panel("tr Λ", figures.certainty_scatter(trace, errors, "tr Λ", kept_share)),
        Panel(
            "Kept and dropped by tr Λ", figures.error_histogram(*kept_and_dropped(trace, errors, kept_share))
        ),
    )
    caption = (
        f"{source}: certainty of each test particle against its error. The dashed line leaves the surest "
        f"{percent(kept_share)} to its right (blue). Last: errors of those and of the others, each in per "
        "cent of its own number. Laid out as the paper's Figure 5."
    )
    return Exhibit(panels, caption, columns=3)


def junk_exhibit(arrays: Mapping[str, np.ndarray], kept_share: float, source: str) -> Exhibit:
    """Certainty of genuine particles and of junk, and errors of kept and dropped (Fig. 6)."""
    errors, trace, genuine = arrays["error_rad"], arrays["trace"], arrays["genuine"].astype(bool)
    certainty = {"junk": -trace[~genuine], "genuine": -trace[genuine]}
    groups = kept_and_dropped(trace, errors, kept_share)
    panels = (
        Panel("Certainty", figures.against_the_best(certainty, None, "−tr Λ")),
        Panel("Kept and dropped by tr Λ", figures.error_histogram(*groups)),
    )
    caption = (
        f"{source}: junk shows another molecule. Left: certainty of genuine and of junk particles, each in "
        f"per cent of its own number. Right: errors of the surest {percent(kept_share)} and of the others, "
        "junk included, whose true orientation means nothing. Laid out as the paper's Figure 6."
    )
    return Exhibit(panels, caption)


def resolution_panel(
    name: str, curves: Mapping[str, tuple[np.ndarray, float]], extent_angstrom: float
) -> Panel:
    """FSC and resolution in Å by way to orient; ``extent_angstrom``: width of the box."""
    drawn = {way: (np.arange(len(fsc)) / extent_angstrom, fsc) for way, (fsc, _) in curves.items()}
    names = {way: f"{way} {resolution:.1f} Å" for way, (_, resolution) in curves.items()}
    return Panel(name, figures.fsc_curves(drawn, names, f"{name}: masked"))


def resolution_exhibit(panels: tuple[Panel, ...]) -> Exhibit:
    """`resolution_panel` of each set (Fig. 4)."""
    caption = (
        "Masked Fourier shell correlation of half maps from the test particles of the first seed under their "
        "true orientations, under predicted ones, and under those of the surest particles; genuine: without "
        "the junk. The legend gives where a curve falls below 0.143 (dotted). One network posed both halves, "
        "so that curves of predicted orientations are optimistic. As the paper's Figure 4."
    )
    return Exhibit(panels, caption)


def pairs_exhibit() -> Exhibit:
    """Distances of pairs drawn at random and by strata (Supplementary Fig. 1)."""
    generator = torch.Generator().manual_seed(0)
    orientations, group = random_unitquat(2000, generator=generator), symmetry_group("C1")
    drawn = {
        "random pairs": random_pairs(len(orientations), _PAIRS_DRAWN, generator),
        "stratified pairs": stratified_pairs(orientations, group, _PAIRS_DRAWN, generator),
    }
    distances = {
        name: symmetric_distance(orientations[first], orientations[second], group).numpy()
        for name, (first, second) in drawn.items()
    }
    finer = 4 * DISTANCE_BINS
    panels = tuple(
        Panel(f"{bins} bins", distance_histogram(distances, bins)) for bins in (DISTANCE_BINS, finer)
    )
    caption = (
        f"True distances of {thousands(_PAIRS_DRAWN)} pairs of {thousands(len(orientations))} random "
        "orientations. "
        f"Stratified pairs fill {DISTANCE_BINS} equal ranges of distance alike (left); within one (right) "
        "they lie as random ones do. Redraws the paper's Supplementary Figure 1."
    )
    return Exhibit(panels, caption)


def schedule_exhibit(max_rate: float, steps: int) -> Exhibit:
    """Learning rate and momentum over a training (Supplementary Fig. 2)."""
    fractions = np.linspace(0, 1, 400)
    rate, momentum = np.transpose([one_cycle(fraction, max_rate) for fraction in fractions])
    drawn = figures.schedule(fractions * steps, rate, momentum)
    caption = (
        "One cycle: the learning rate rises and falls as a cosine while the momentum does the opposite, at "
        "the paper's largest rate and length. Redraws the paper's Supplementary Figure 2."
    )
    return Exhibit((Panel("Schedule", drawn),), caption, columns=1)


def kept_and_dropped(trace: np.ndarray, errors: np.ndarray, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Errors of the surest ``share`` by tr Λ, and of the others."""
    kept = np.zeros(len(trace), bool)
    kept[select(torch.from_numpy(trace), share).numpy()] = True
    return errors[kept], errors[~kept]
