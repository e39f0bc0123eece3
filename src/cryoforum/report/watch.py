"""The page of a watcher: how many particles came, how good they are, and what map they give."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator

from cryoforum.report import figures
from cryoforum.report.canvas import BLUE, GREEN, INK, MUTED, ORANGE, label_logarithmic, panel, plain, svg
from cryoforum.report.figures import finish, legend_above
from cryoforum.report.inputs import read_csv, read_json
from cryoforum.report.layout import Exhibit, Panel, Section
from cryoforum.report.maps import central_sections
from cryoforum.report.page import render
from cryoforum.report.wording import degrees, percent, thousands

_DASHED = (0, (4, 3))
_MIN_ERROR_DEG = 0.01
_BARS = 45
_MAX_MARKS = 40
_FSC_NAMES = {"predicted": "masked", "filtered": "unmasked"}  # by the kinds of curve that figures draw

# A line of the history: what is not known of it is None.
Line = Mapping[str, float | None]


def write_watch_report(
    folder: Path,
    history: Sequence[Line],
    errors_deg: np.ndarray,
    threshold_deg: float,
    scales: np.ndarray,
    junk_scale: float,
) -> None:
    """Write report.html into ``folder``, where map/ has a map, fsc.csv and resolution.json once there is one.

    history: seconds (of `time.time`), particles, kept, junk, unmasked and masked resolution; the last is now.
    errors_deg: (n,) expected. scales: (m,) signal scales, those below ``junk_scale`` junk; empty: not known.
    """
    now, kept = history[-1], int((errors_deg <= threshold_deg).sum())
    resolution = read_json(folder / "map" / "resolution.json")
    when = time.strftime("%d %B %Y, %H:%M", time.localtime(now["seconds"]))
    facts = [
        (thousands(len(errors_deg)), "particles", f"as of {when}"),
        (
            percent(kept / len(errors_deg)),
            "kept",
            f"{thousands(kept)} with an expected error of at most {_angle(threshold_deg)}",
        ),
        (_angle(float(np.median(errors_deg))), "median expected error", "root mean square, all particles"),
    ]
    if len(scales):
        share = float((scales < junk_scale).mean())
        facts.append(
            (f"{100 * share:.1f}\u202f%", "junk", f"signal below {junk_scale:g} of the expected one")
        )
    if resolution:
        honest = "halves independent" if resolution["independent"] else "optimistic: halves not independent"
        facts.append((f"{resolution['masked']:.1f} Å", "resolution", f"masked, FSC = 0.143; {honest}"))
    sections = [
        _course_section(history),
        _map_section(folder, bool(resolution.get("independent"))),
        _quality_section(errors_deg, threshold_deg, scales, junk_scale),
    ]
    title = f"{thousands(len(errors_deg))} particles so far"
    if resolution:
        title += f", a map at {resolution['masked']:.1f} Å"
    render(
        folder / "report.html",
        folder.resolve().name,
        title,
        facts,
        [section for section in sections if section is not None],
    )


def _course_section(history: Sequence[Line]) -> Section:
    panels = [Panel("Particles over time", particles_over_time(history))]
    known = [line for line in history if line["masked"]]
    if known:
        panels.append(Panel("Resolution against particles", resolution_against_particles(known)))
    caption = (
        "Each point is an update. While more particles still help, the resolution falls with their number; "
        "along a straight line against its logarithm where the B factor sets the limit (Rosenthal & "
        "Henderson 2003). Where it stays level, more of the same will not help."
    )
    return Section("course", "Course", "", (Exhibit(tuple(panels), caption),))


def _map_section(folder: Path, independent: bool) -> Section | None:
    path = folder / "map" / "map.mrc"
    table = read_csv(folder / "map" / "fsc.csv", ("frequency_per_angstrom", "fsc_unmasked", "fsc_masked"))
    if not path.is_file() or table is None:
        return None
    frequency = table["frequency_per_angstrom"].to_numpy()
    curves = {kind: (frequency, table[f"fsc_{name}"].to_numpy()) for kind, name in _FSC_NAMES.items()}
    panels = (
        Panel("Map", central_sections(path, "kept particles", table)),
        Panel("Half maps", figures.fsc_curves(curves, _FSC_NAMES, "Masked and unmasked")),
    )
    text = (
        "Each half set was posed by what was made of its own half alone: the halves are independent."
        if independent
        else "One model posed both halves: they share its mistakes, and the resolution is optimistic."
    )
    caption = (
        "Central sections of the map of all kept particles, normal to z, y and x, low-pass filtered to the "
        "unmasked resolution; density is bright. Beside them the Fourier shell correlation of its half maps."
    )
    return Section("map", "Map", text, (Exhibit(panels, caption),))


def _quality_section(
    errors_deg: np.ndarray, threshold_deg: float, scales: np.ndarray, junk_scale: float
) -> Section:
    panels = [Panel("Expected error", expected_errors(errors_deg, threshold_deg))]
    caption = (
        "What the belief about each particle says of its own error, in degrees. Particles beyond the dashed "
        "line are not in kept.star nor in the map; the line stays where the first particles set it, so that "
        "a change of the particles shows as a change of the share kept."
    )
    if len(scales):
        panels.append(Panel("Signal", signal_scales(scales, junk_scale)))
        caption += (
            " Signal: how strong the reference is in each image; about 1, and near 0 for what is no particle."
        )
    return Section("quality", "Quality", "", (Exhibit(tuple(panels), caption),))


def particles_over_time(history: Sequence[Line]) -> str:
    """Number of particles, of those kept and, where known, of junk since the first update."""
    start = history[0]["seconds"] or 0.0
    elapsed = np.array([(line["seconds"] or 0.0) - start for line in history])
    unit, length = next(
        (name, span)
        for name, span in (("hours", 3600), ("minutes", 60), ("seconds", 1))
        if elapsed[-1] > 2 * span or span == 1
    )
    with panel() as figure:
        axes = figure.add_subplot()
        for name, label, colour in (
            ("particles", "all", BLUE),
            ("kept", "kept", GREEN),
            ("junk", "junk", ORANGE),
        ):
            values = [line[name] for line in history]
            if values[-1] is not None:
                style = {"color": colour, **_marks(len(history))}
                axes.plot(
                    elapsed / length, [np.nan if v is None else v for v in values], label=label, **style
                )
        axes.set(ylim=(0, None), xlim=(0, 1.03 * max(elapsed[-1], 1.0) / length))
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 5, 10]))
        axes.yaxis.set_major_formatter(lambda value, _: plain(value))
        legend_above(axes, columns=3, marker_scale=1)
        finish(axes, f"{unit} since the first particles", "particles")
        return svg(figure, f"Particles over time; {history[-1]['particles']:.0f} now")


def resolution_against_particles(history: Sequence[Line]) -> str:
    """Masked and unmasked resolution against the number of kept particles."""
    kept = np.array([line["kept"] for line in history], dtype=float)
    unit, name_of_unit = (1000, "thousand ") if kept[-1] >= 20_000 else (1, "")
    with panel() as figure:
        axes = figure.add_subplot()
        for name, colour in (("masked", BLUE), ("unmasked", MUTED)):
            values = np.array([line[name] for line in history], dtype=float)
            axes.plot(kept / unit, values, color=colour, label=name, **_marks(len(kept)))
        label_logarithmic(axes, x=True)
        legend_above(axes, columns=2, marker_scale=1)
        finish(axes, f"{name_of_unit}kept particles", "resolution (Å)")
        return svg(figure, f"Resolution against particles; the last is {history[-1]['masked']:.1f} Å")


def expected_errors(errors_deg: np.ndarray, threshold_deg: float) -> str:
    """Histogram of expected errors, those beyond the threshold in another colour."""
    values = np.maximum(errors_deg, _MIN_ERROR_DEG)
    low, high = min(np.quantile(values, 0.001), 0.9 * threshold_deg), max(values.max(), 1.1 * threshold_deg)
    ratio = (high / low) ** (1 / _BARS)
    # the threshold is an edge, so that no bar is of both colours
    below, above = (
        int(np.ceil(np.log(end) / np.log(ratio))) for end in (threshold_deg / low, high / threshold_deg)
    )
    bins = threshold_deg * ratio ** np.arange(-below, above + 1)
    with panel() as figure:
        axes = figure.add_subplot()
        kept = errors_deg <= threshold_deg
        for chosen, label, colour in ((kept, "kept", BLUE), (~kept, "dropped", ORANGE)):
            weights = np.full(int(chosen.sum()), 100 / len(values))
            axes.hist(values[chosen], bins, weights=weights, color=colour, alpha=0.55, label=label)
        axes.axvline(threshold_deg, color=INK, linewidth=0.9, linestyle=_DASHED)
        label_logarithmic(axes, x=True)
        legend_above(axes, columns=2, marker_scale=1)
        finish(axes, "expected error (°)", "share of the particles (%)")
        return svg(figure, f"Histogram of expected errors; {percent(float(kept.mean()))} are kept")


def signal_scales(scales: np.ndarray, junk_scale: float) -> str:
    """Histogram of signal scales, with the one below which an image is junk."""
    bins = np.linspace(min(0.0, float(np.quantile(scales, 0.001))), float(np.quantile(scales, 0.999)), 50)
    with panel() as figure:
        axes = figure.add_subplot()
        weights = np.full(len(scales), 100 / len(scales))
        axes.hist(np.clip(scales, bins[0], bins[-1]), bins, weights=weights, color=BLUE, alpha=0.55)
        axes.axvline(junk_scale, color=INK, linewidth=0.9, linestyle=_DASHED)
        axes.text(
            junk_scale, 1.02, "junk below", transform=axes.get_xaxis_transform(), ha="center", fontsize=8
        )
        finish(axes, "signal scale", "share of the particles (%)")
        return svg(figure, f"Histogram of signal scales; {(scales < junk_scale).mean():.0%} are junk")


def _marks(count: int) -> dict[str, Any]:
    """Points that are drawn until they would cover the line."""
    return {"marker": "o", "markersize": 3, "clip_on": False} if count <= _MAX_MARKS else {}


def _angle(angle_deg: float) -> str:
    return degrees(float(np.deg2rad(angle_deg)))
