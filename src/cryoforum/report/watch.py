"""The page of a watched folder: the number of particles, their expected errors, and their map."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator

from cryoforum.report import figures
from cryoforum.report.canvas import BLUE, GREEN, MUTED, ORANGE, svg
from cryoforum.report.inputs import read_csv, read_json
from cryoforum.report.layout import Exhibit, Panel, Section
from cryoforum.report.maps import central_sections
from cryoforum.report.page import render
from cryoforum.report.plotting import (
    MIN_ERROR_DEG,
    draw_histogram,
    finish,
    label_logarithmic,
    legend_above,
    mark_threshold,
    plain,
    plot,
)
from cryoforum.report.wording import degrees, percent, thousands

_BARS = 45
_MAX_MARKS = 40
_FSC_NAMES = {"predicted": "masked", "filtered": "unmasked"}  # by the kinds of curve that figures draw

# A line of the history; None where a quantity is not known.
Line = Mapping[str, float | None]


def write_watch_report(
    folder: Path,
    history: Sequence[Line],
    errors_deg: np.ndarray,
    threshold_deg: float,
    scales: np.ndarray,
    junk_scale: float,
) -> None:
    """Write report.html into ``folder``.

    Parameters
    ----------
    folder
        Its map/ has map.mrc, fsc.csv and resolution.json once there is a map.
    history
        Updates in their order, the last one now: seconds (of `time.time`), particles, kept, junk, unmasked
        and masked resolution.
    errors_deg
        (n,) expected errors.
    threshold_deg
        Largest expected error of the particles kept.
    scales
        (m,) signal scales; empty where they are not known.
    junk_scale
        Particles with a smaller signal scale are junk.
    """
    resolution = read_json(folder / "map" / "resolution.json")
    course = pd.DataFrame(history, dtype=float)
    sections = [
        _course_section(course),
        _map_section(folder, bool(resolution.get("independent"))),
        _quality_section(errors_deg, threshold_deg, scales, junk_scale),
    ]
    title = f"{thousands(len(errors_deg))} particles so far"
    if resolution:
        title += f", a map at {resolution['masked']:.1f} Å"
    facts = _facts(history[-1]["seconds"], errors_deg, threshold_deg)
    if len(scales):
        share = percent((scales < junk_scale).mean(), decimals=1)
        facts.append((share, "junk", f"signal below {junk_scale:g} of the expected one"))
    if resolution:
        halves = (
            "half maps independent" if resolution["independent"] else "optimistic: half maps not independent"
        )
        facts.append((f"{resolution['masked']:.1f} Å", "resolution", f"masked, FSC = 0.143; {halves}"))
    render(folder / "report.html", folder.resolve().name, title, facts, list(filter(None, sections)))


def write_page_without_results(folder: Path, headline: str, text: str) -> None:
    """Write report.html into ``folder`` as long as there are no predictions: what is being done."""
    sections = [Section("first", "No predictions yet", text)]
    render(folder / "report.html", folder.resolve().name, headline, [], sections)


def _facts(seconds: float | None, errors_deg: np.ndarray, threshold_deg: float) -> list[tuple[str, str, str]]:
    when, kept = time.localtime(seconds), int((errors_deg <= threshold_deg).sum())
    note = f"{thousands(kept)} with an expected error of at most {degrees(np.deg2rad(threshold_deg))}"
    median = degrees(np.deg2rad(np.median(errors_deg)))
    return [
        (thousands(len(errors_deg)), "particles", f"as of {time.strftime('%d %B %Y, %H:%M', when)}"),
        (percent(kept / len(errors_deg)), "kept", note),
        (median, "median expected error", "root mean square, all particles"),
    ]


def _course_section(course: pd.DataFrame) -> Section:
    panels = [Panel("Particles over time", particles_over_time(course))]
    known = course[course["masked"].notna()]
    if len(known):
        panels.append(Panel("Resolution against particles", resolution_against_particles(known)))
    caption = (
        "Each point is an update. While more particles help, the resolution improves with their number, "
        "along a straight line against its logarithm where the B factor sets the limit (Rosenthal & "
        "Henderson 2003). Where it stays level, more particles of this kind will not help."
    )
    return Section("course", "Course", "", [Exhibit(panels, caption)])


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
        "Each half set was aligned by the model and map of its own half: the half maps are independent."
        if independent
        else "One model aligned both half sets: the half maps share its mistakes; "
        "the resolution is optimistic."
    )
    caption = (
        "Central sections of the map of all kept particles, normal to z, y and x, low-pass filtered to the "
        "unmasked resolution; density is bright. Beside them the Fourier shell correlation of its half maps."
    )
    return Section("map", "Map", text, [Exhibit(panels, caption)])


def _quality_section(
    errors_deg: np.ndarray, threshold_deg: float, scales: np.ndarray, junk_scale: float
) -> Section:
    panels = [Panel("Expected error", expected_errors(errors_deg, threshold_deg))]
    caption = (
        "The expected error of each particle, from its posterior, in degrees. Particles beyond the dashed "
        "line are not in kept.star nor in the map; the line stays where the first particles set it, so that "
        "a change of the particles shows as a change of the share kept."
    )
    if len(scales):
        panels.append(Panel("Signal", signal_scales(scales, junk_scale)))
        caption += (
            " Signal: the strength of the reference in each image; about 1, and below 0.5 (dashed) "
            "where an image without a particle is likelier: the best match to noise is never 0."
        )
    return Section("quality", "Quality", "", [Exhibit(panels, caption)])


def particles_over_time(course: pd.DataFrame) -> str:
    """Number of particles, of those kept and, where known, of junk since the first update."""
    elapsed = (course["seconds"] - course["seconds"].iloc[0]).to_numpy()
    unit, length = next(
        (name, span)
        for name, span in (("hours", 3600), ("minutes", 60), ("seconds", 1))
        if elapsed[-1] > 2 * span or span == 1
    )
    with plot() as axes:
        for name, colour in (("particles", BLUE), ("kept", GREEN), ("junk", ORANGE)):
            values = course[name].to_numpy()
            if np.isfinite(values[-1]):
                label = "all" if name == "particles" else name
                axes.plot(elapsed / length, values, color=colour, label=label, **_marks(len(values)))
        axes.set(ylim=(0, None), xlim=(0, 1.03 * max(elapsed[-1], 1.0) / length))
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 5, 10]))
        axes.yaxis.set_major_formatter(lambda value, _: plain(value))
        legend_above(axes, columns=3, marker_scale=1)
        finish(axes, f"{unit} since the first particles", "particles")
        return svg(axes.figure, f"Particles over time; {course['particles'].iloc[-1]:.0f} now")


def resolution_against_particles(course: pd.DataFrame) -> str:
    """Masked and unmasked resolution against the number of kept particles."""
    kept = course["kept"].to_numpy()
    unit, name_of_unit = (1000, "thousand ") if kept[-1] >= 20_000 else (1, "")
    with plot() as axes:
        for name, colour in (("masked", BLUE), ("unmasked", MUTED)):
            axes.plot(kept / unit, course[name].to_numpy(), color=colour, label=name, **_marks(len(kept)))
        label_logarithmic(axes, x=True)
        legend_above(axes, columns=2, marker_scale=1)
        finish(axes, f"{name_of_unit}kept particles", "resolution (Å)")
        last = course["masked"].iloc[-1]
        return svg(axes.figure, f"Resolution against particles; the last is {last:.1f} Å")


def expected_errors(errors_deg: np.ndarray, threshold_deg: float) -> str:
    """Histogram of expected errors, those beyond the threshold in another colour."""
    values = np.maximum(errors_deg, MIN_ERROR_DEG)
    low, high = min(np.quantile(values, 0.001), 0.9 * threshold_deg), max(values.max(), 1.1 * threshold_deg)
    ratio = (high / low) ** (1 / _BARS)
    # the threshold is an edge, so that no bar is of both colours
    below, above = (
        int(np.ceil(np.log(end) / np.log(ratio))) for end in (threshold_deg / low, high / threshold_deg)
    )
    bins = threshold_deg * ratio ** np.arange(-below, above + 1)
    with plot() as axes:
        kept = errors_deg <= threshold_deg
        for chosen, label, colour in ((kept, "kept", BLUE), (~kept, "dropped", ORANGE)):
            draw_histogram(axes, values[chosen], bins, colour, label, of=len(values))
        mark_threshold(axes, threshold_deg)
        label_logarithmic(axes, x=True)
        legend_above(axes, columns=2, marker_scale=1)
        finish(axes, "expected error (°)", "share of the particles (%)")
        return svg(axes.figure, f"Histogram of expected errors; {percent(float(kept.mean()))} are kept")


def signal_scales(scales: np.ndarray, junk_scale: float) -> str:
    """Histogram of signal scales, with the one below which an image is junk."""
    bins = np.linspace(min(0.0, float(np.quantile(scales, 0.001))), float(np.quantile(scales, 0.999)), 50)
    with plot() as axes:
        draw_histogram(axes, np.clip(scales, bins[0], bins[-1]), bins, BLUE)
        mark_threshold(axes, junk_scale, "junk below")
        finish(axes, "signal scale", "share of the particles (%)")
        return svg(axes.figure, f"Histogram of signal scales; {(scales < junk_scale).mean():.0%} are junk")


def _marks(count: int) -> dict[str, Any]:
    """Points that are drawn until they would cover the line."""
    return {"marker": "o", "markersize": 3, "clip_on": False} if count <= _MAX_MARKS else {}
