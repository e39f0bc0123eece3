"""One HTML page of everything that a run left in its folder."""

from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from cryoforum.io.files import replacing
from cryoforum.reporting.inputs import PredictedPoses, read_json, read_predictions
from cryoforum.reporting.layout import Table
from cryoforum.reporting.sections import (
    RECONSTRUCTIONS,
    accuracy_section,
    directions_section,
    particle_section,
    percent,
    reconstruction_section,
    run_section,
    thousands,
    training_section,
)

_GROUPS = {"all": "All", "kept": "Kept"}


def write_report(folder: Path, output: Path) -> None:
    """Write one self-contained page about the run in ``folder`` to ``output``, atomically.

    Files looked for: summary.json, particles.star, model/log.csv, model/model.json, predictions.star,
    truth.star, kept.star, reconstruction/{true,predicted,filtered}/{map.mrc,fsc.csv}. What is missing is left
    out; ValueError where ``folder`` holds none of them.
    """
    folder = Path(folder)
    summary, model = read_json(folder / "summary.json"), read_json(folder / "model" / "model.json")
    predictions = read_predictions(folder, summary, model)
    candidates = (
        accuracy_section(predictions),
        reconstruction_section(folder),
        directions_section(predictions),
        particle_section(folder, model),
        training_section(folder),
        run_section(summary, model),
    )
    sections = [section for section in candidates if section is not None]
    if not sections and not summary:
        raise ValueError(
            f"{folder}: expected results such as predictions.star, model/log.csv or reconstruction/, found "
            "none; give the folder of a run"
        )
    environment = Environment(
        loader=PackageLoader("cryoforum.reporting", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("report.html.jinja").render(
        name=folder.resolve().name,
        headline=headline(summary, predictions),
        facts=facts(summary),
        tables=[table for table in (error_table(summary), resolution_table(summary)) if table],
        sections=sections,
    )
    with replacing(Path(output)) as temporary:
        temporary.write_text(page, encoding="utf-8")


def headline(summary: dict[str, Any], predictions: PredictedPoses | None) -> str:
    """The result in one sentence."""
    errors = summary.get("errors", {})
    if "all" in errors:
        whole = errors["all"]
        text = f"Median error {degrees(whole['median_rad'])} on {thousands(whole['count'])} test particles"
        kept = errors.get("kept")
        if kept and 0 < kept["count"] < whole["count"]:
            dropped = percent(1 - kept["count"] / whole["count"])
            text += f"; dropping the {dropped} least certain: {degrees(kept['median_rad'])}"
        return text
    if predictions is None:
        return "What this run gave"
    count = thousands(len(predictions.quaternions))
    if predictions.errors_rad is None:
        return f"Orientations of {count} particles"
    return f"Median error {degrees(float(np.median(predictions.errors_rad)))} on {count} test particles"


def facts(summary: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(number, what it is, what it means) of the most important numbers."""
    result = []
    for group, values in summary.get("errors", {}).items():
        name = {"all": "all particles", "kept": "kept particles"}.get(group, group)
        result.append((degrees(values["median_rad"]), f"median error, {name}", radians(values["median_rad"])))
    whole = summary.get("errors", {}).get("all")
    if whole:
        share = f"{100 * whole['share_above_0_3_rad']:.1f}\u202f%"
        result.append((share, "of all particles above 17.2°", "0.3 rad: too far off to be refined locally"))
    for kind in ("filtered", "predicted"):
        masked = summary.get("resolutions", {}).get(kind, {}).get("masked")
        if masked:
            name = RECONSTRUCTIONS[kind].lower()
            result.append((f"{masked:.1f} Å", f"resolution, {name}", "masked, FSC = 0.143; optimistic"))
            break
    return result


def error_table(summary: dict[str, Any]) -> Table | None:
    """Errors of all and of kept particles."""
    errors = summary.get("errors")
    if not errors:
        return None
    header = ("Particles", "Number", "Median", "Mean", "Middle half", "Above 0.3 rad")
    rows = []
    for group, values in errors.items():
        quartiles = f"{degrees(values['lower_quartile_rad'])} – {degrees(values['upper_quartile_rad'])}"
        rows.append(
            (
                _GROUPS.get(group, group),
                thousands(values["count"]),
                *(f"{degrees(values[key])} ({radians(values[key])})" for key in ("median_rad", "mean_rad")),
                quartiles,
                f"{100 * values['share_above_0_3_rad']:.1f}\u202f%",
            )
        )
    return Table("Orientation errors", header, tuple(rows))


def resolution_table(summary: dict[str, Any]) -> Table | None:
    """Resolution of each reconstruction."""
    resolutions = summary.get("resolutions")
    if not resolutions:
        return None
    rows = tuple(
        (
            RECONSTRUCTIONS.get(kind, kind),
            *(f"{values[key]:.1f} Å" if values.get(key) else "–" for key in ("unmasked", "masked")),
        )
        for kind, values in resolutions.items()
    )
    return Table("Resolution (FSC = 0.143)", ("Reconstruction", "Unmasked", "Masked"), rows)


def degrees(angle_rad: float) -> str:
    """An angle with one decimal, two where it is small."""
    angle = float(np.rad2deg(angle_rad))
    return f"{angle:.1f}°" if angle >= 1 else f"{angle:.2f}°"


def radians(angle_rad: float) -> str:
    """The same angle in the unit of the paper."""
    return f"{angle_rad:.3f} rad"
