"""One HTML page of everything that a run left in its folder."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from cryoforum.dataset.columns import EXPECTED_ERROR
from cryoforum.errors import InputError
from cryoforum.report.figures import MAP
from cryoforum.report.inputs import (
    PredictedPoses,
    accuracy_numbers,
    read_json,
    read_predictions,
    split_counts,
)
from cryoforum.report.layout import Section, Table
from cryoforum.report.limit import MEDIAN_OF_PERFECT_ESTIMATOR, limit_section
from cryoforum.report.maps import (
    names_of_maps,
    read_resolutions,
    reconstruction_section,
)
from cryoforum.report.sections import (
    accuracy_section,
    directions_section,
    particle_section,
    rounds_section,
    run_section,
    training_section,
)
from cryoforum.report.wording import degrees, percent, quantity, radians, thousands
from cryoforum.storage.files import replacing

logger = logging.getLogger(__name__)

KINDS_OF_RESOLUTION = ("unmasked", "masked", "corrected")
# Files or folders of which one is enough, and what to call them.
LOOKED_FOR = (
    (("particles.star", "predictions.star"), "particles.star"),
    (("model/log.csv",), "model/log.csv"),
    (("predictions.star",), "predictions.star"),
    (("kept.star",), "kept.star"),
    (("network.star",), "network.star (poses before local refinement)"),
    (("truth.star",), "truth.star (known poses)"),
    (("map/map.mrc", "reconstruction"), "map/ or reconstruction/"),
)
_GROUPS = {"network": "Network alone", "all": "All", "kept": "Kept"}
_REFINED_GROUPS = {"network": "Network alone", "all": "Refined", "kept": "Refined, kept"}


def write_report(folder: Path, output: Path, root: Path | None = None) -> None:
    """Write one self-contained page about the run in ``folder``.

    Parameters
    ----------
    folder
        Of the run. Files looked for: summary.json, particles.star, model/log.csv, model/model.json,
        predictions.star, network.star, truth.star, kept.star, and map.mrc, fsc.csv and resolution.json in
        map/ and in reconstruction/{true,network,predicted,filtered,class1,…}; rounds.csv of
        a refinement. Missing ones are left out.
    output
        HTML file, written under a temporary name and then renamed.
    root
        Folder that image names are relative to.

    Raises
    ------
    InputError
        Where ``folder`` holds none of these files, or one of them is broken.
    """
    folder = Path(folder)
    summary, model = read_json(folder / "summary.json"), read_json(folder / "model" / "model.json")
    predictions = read_predictions(folder, summary, model)
    numbers = accuracy_numbers(summary, predictions)
    refined = bool(numbers["bound"]) or (predictions is not None and predictions.bound_rad is not None)
    maps = names_of_maps(folder, refined)
    resolutions = summary.get("resolutions") or read_resolutions(folder, maps)
    candidates = (
        accuracy_section(predictions),
        limit_section(predictions),
        reconstruction_section(folder, maps),
        rounds_section(folder),
        directions_section(predictions),
        particle_section(folder, root, model),
        training_section(folder, model),
        run_section(summary, model),
    )
    sections = list(filter(None, candidates))
    if not sections and not summary:
        raise InputError(
            f"{folder}: expected results such as predictions.star, model/log.csv or map/, found "
            "none; give the folder of a run"
        )
    render(
        Path(output),
        folder.resolve().name,
        headline(numbers, predictions, bool(split_counts(folder).get("test"))),
        error_facts(numbers) + resolution_facts(resolutions, maps),
        sections,
        list(filter(None, (error_table(numbers), resolution_table(resolutions, maps)))),
    )


def say_what_is_missing(folder: Path) -> None:
    """A line on what the page lacks, as other names than these are not looked for."""
    missing = [name for names, name in LOOKED_FOR if not any((folder / path).exists() for path in names)]
    if missing:
        logger.info(f"not found in {folder}, and so not on the page: {', '.join(missing)}")


def render(
    output: Path,
    name: str,
    headline: str,
    facts: Sequence[tuple[str, str, str]],
    sections: Sequence[Section],
    tables: Sequence[Table] = (),
) -> None:
    """Write a self-contained page.

    Parameters
    ----------
    output
        HTML file, written under a temporary name and then renamed.
    name
        Of the run or file, above the headline.
    headline
        The result in one line.
    facts
        (number, quantity, note) of each.
    sections
        In their order.
    tables
        Shown before all sections.
    """
    environment = Environment(
        loader=PackageLoader("cryoforum.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    template = environment.get_template("report.html.jinja")
    page = template.render(name=name, headline=headline, facts=facts, tables=tables, sections=sections)
    with replacing(output) as temporary:
        temporary.write_text(page, encoding="utf-8")


def headline(numbers: dict[str, Any], predictions: PredictedPoses | None, has_tests: bool = False) -> str:
    """The result in one sentence; ``numbers`` as of `accuracy_numbers`.

    has_tests: whether the model kept particles for tests, on which errors mean most.
    """
    errors = numbers["errors"]
    if "all" in errors:
        whole, kept = errors["all"], errors.get("kept")
        noun = "test particles" if has_tests else "particles"
        text = f"Median error {degrees(whole['median_rad'])} on {thousands(whole['count'])} {noun}"
        if numbers["bound"] and "network" in errors:
            text += f"; before local refinement: {degrees(errors['network']['median_rad'])}"
        elif kept and 0 < kept["count"] < whole["count"]:
            dropped = percent(1 - kept["count"] / whole["count"])
            text += f"; dropping the {dropped} least certain: {degrees(kept['median_rad'])}"
        return text
    if predictions is None:
        return "Results of this run"
    count = thousands(len(predictions.poses))
    expected_deg = predictions.columns.get(EXPECTED_ERROR)
    if predictions.bound_rad is None or expected_deg is None:
        return f"Orientations of {count} particles"
    expected = degrees(np.deg2rad(np.median(expected_deg)))
    return f"Poses of {count} particles; median expected error {expected}"


def error_facts(numbers: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(number, quantity, note) of the most important errors."""
    errors, bound = numbers["errors"], numbers["bound"]
    names = {"all": "all particles", "kept": "kept particles"}
    if bound:
        names = {"all": "refined", "network": "network alone"}
    result = [
        (degrees(median := errors[group]["median_rad"]), f"median error, {name}", radians(median))
        for group, name in names.items()
        if group in errors
    ]
    if bound:
        ratio = f"{bound['median_error_over_bound']:.2f}"
        note = f"Cramér-Rao lower bound (rms); a perfect estimator has {MEDIAN_OF_PERFECT_ESTIMATOR}"
        result.append((ratio, "median of error ÷ lower bound, refined", note))
    if "all" in errors:
        share = percent(errors["all"]["share_above_0_3_rad"], decimals=1)
        note = "17.2° (0.3 rad) is too far for local refinement to correct"
        result.append((share, "of all errors above 17.2°", note))
    return result


def resolution_facts(resolutions: dict[str, Any], names: dict[str, str]) -> list[tuple[str, str, str]]:
    """(number, quantity, note) of the map from predicted poses; ``names`` as of `names_of_maps`."""
    for kind in ("predicted", "filtered", MAP, *(kind for kind in names if kind.startswith("class"))):
        values = resolutions.get(kind, {})
        if values.get("masked"):
            note = "masked, FSC = 0.143" + ("" if values.get("independent") else "; optimistic")
            if values.get("corrected"):
                note += f"; corrected for the mask, to publish: {values['corrected']:.1f} Å"
            best = resolutions.get("true", {}).get("masked")
            if best:
                note += f"; from true poses {best:.1f} Å"
            return [(f"{values['masked']:.1f} Å", f"resolution, {names[kind].lower()}", note)]
    return []


def error_table(numbers: dict[str, Any]) -> Table | None:
    """Errors of the network alone, of all and of kept particles; ``numbers`` as of `accuracy_numbers`."""
    errors, shifts = numbers["errors"], numbers["shift_errors"]
    if not errors:
        return None
    names = _REFINED_GROUPS if numbers["bound"] else _GROUPS
    header = ["Particles", "Number", "Median", "Mean", "Middle half", "Above 17.2° (0.3 rad)"]
    if shifts:
        header.append("Shift, median")
    rows = []
    for group, values in errors.items():
        row = [
            names.get(group, group),
            thousands(values["count"]),
            *(f"{degrees(values[key])} ({radians(values[key])})" for key in ("median_rad", "mean_rad")),
            f"{degrees(values['lower_quartile_rad'])} – {degrees(values['upper_quartile_rad'])}",
            percent(values["share_above_0_3_rad"], decimals=1),
        ]
        if shifts:
            row.append(f"{quantity(shifts.get(group, {}).get('median_angstrom'))} Å")
        rows.append(row)
    return Table("Pose errors" if shifts else "Orientation errors", header, rows)


def resolution_table(resolutions: dict[str, Any], names: dict[str, str]) -> Table | None:
    """Resolution of each reconstruction, and whether its halves are independent."""
    if not resolutions:
        return None
    header = ("Reconstruction", *map(str.capitalize, KINDS_OF_RESOLUTION), "Half maps")
    words = {True: "independent", False: "not independent", None: "–"}
    rows = [
        (
            names.get(kind, kind),
            *(f"{values[key]:.1f} Å" if values.get(key) else "–" for key in KINDS_OF_RESOLUTION),
            words[values.get("independent")],
        )
        for kind, values in resolutions.items()
    ]
    return Table("Resolution (FSC = 0.143)", header, rows)
