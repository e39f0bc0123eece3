"""The section of each study: its conditions, tables and figures."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from cryoforum.report.layout import Exhibit, Section, Table
from cryoforum.report.wording import listed, percent, thousands
from cryoforum.study import exhibits, published
from cryoforum.study.evaluation import BORDER_RAD, border_distance
from cryoforum.study.runs import KEPT_SHARE
from cryoforum.study.summaries import (
    WITHOUT_TTA,
    batch_size,
    mean,
    mean_and_deviation,
    radians,
    range_of,
    scale_of,
    share,
    span,
)
from cryoforum.study.variants import BASE, SNRS, TABLE_1, Dataset, Run, planned_runs

KEYS = ["study", "block", "variant", "scale", "seed"]
KINDS = ("true", "predicted", "filtered", "genuine")  # of orientations that maps are made with
SCALE_NAMES = {"cpu": "CPU scale", "paper": "the paper's scale"}
_LIKELIHOOD = (
    "Log-likelihood: log density of the true orientation, relative to a uniform density and without TTA; "
    "normalised around the mode as finely as the mode is narrow, whatever the head. A head trained "
    "by another loss than its likelihood never learned its own uncertainty."
)
_ERRORS = "> 0.3 rad|Rms error (rad)|Expected rms error (rad)"
_EXPECTED = "Rms error: root mean square; expected: the root mean square error that the posteriors imply."
_SPREAD = "Numbers are means over seeds; ± is their standard deviation (n − 1)."
_TTA = "Without TTA: the network reads each image once, as the paper's does."


def _variants(rows: pd.DataFrame) -> dict[tuple[str, str], pd.DataFrame]:
    """The runs of a study by block and variant, in the order of the plan; others come last."""
    plan = [(run.block, run.label) for run in planned_runs(rows["study"].iloc[0], scale_of(rows), 1)]
    found = dict(iter(rows.groupby(["block", "variant"])))
    return {key: found[key] for key in dict.fromkeys([*plan, *found]) if key in found}


def _first(rows: pd.DataFrame, out: Path) -> tuple[pd.Series, dict[str, np.ndarray]] | None:
    """Record and arrays of the first seed of a variant whose arrays are there."""
    for _, row in rows.iterrows():
        study, block, label, scale, seed = row[KEYS]
        path = out / "runs" / f"{Run(study, block, label, Dataset(), '', (), seed, scale).name}.npz"
        if path.is_file():
            with np.load(path, allow_pickle=False) as file:
                return row, dict(file)
    return None


def _section(
    rows: pd.DataFrame, title: str, notes: str, shown: list[Exhibit], tables: list[Table]
) -> Section:
    anchor = f"{rows['study'].iloc[0]}-{scale_of(rows)}"
    text = f"{_conditions(rows)}\n\n{_SPREAD} {notes}"
    return Section(anchor, f"{title} at {SCALE_NAMES[scale_of(rows)]}", text, shown, tables)


def table1_section(rows: pd.DataFrame, out: Path) -> Section:
    """The four blocks of Table 1; the base is shown in each under the name it has there."""
    found = _variants(rows)
    base = found.get(("rotation head", BASE))
    blocks: dict[str, dict[str, pd.DataFrame]] = {}
    for block, settings_of in TABLE_1.items():
        if any(own == block for own, _ in found):
            runs = {name: found.get((block, name)) if own else base for name, own in settings_of.items()}
            blocks[block] = {name: own for name, own in runs.items() if own is not None}
    header = "Variant|Seeds|Median (rad)|Range|Paper|Mean (rad)|> 0.3 rad|Log-likelihood"
    tables, paper = [], published.MEDIAN_RAD_BY_VARIANT
    for block, runs in blocks.items():
        lines = []
        for name, own in runs.items():
            medians = mean_and_deviation(own, "median_rad"), range_of(own), radians(paper.get(name))
            others = share(own, "share_above_0_3_rad"), mean(own, "log_likelihood", 2)
            lines.append((name, str(len(own)), *medians, mean(own, "mean_rad"), *others))
        tables.append(Table(block.capitalize(), header.split("|"), lines))
    notes = (
        f"The base of all four blocks is one training, “{BASE}”, under the name of each block; the other "
        "variants change it in one place, and those called likelihood or softmax the loss with the head. "
        f"Base: {base['settings'].iloc[0] if base is not None else 'not run'}. "
        f"{_LIKELIHOOD} {published.NOTE} {published.SLIP}"
    )
    return _section(rows, "Table 1", notes, _block_exhibits(blocks, out), tables)


def _block_exhibits(blocks: dict[str, dict[str, pd.DataFrame]], out: Path) -> list[Exhibit]:
    medians: dict[str, dict[str, np.ndarray]] = {}
    curves: dict[str, dict[str, tuple[np.ndarray, np.ndarray]]] = {}
    for block, runs in blocks.items():
        medians[block.capitalize()] = {name: own["median_rad"].to_numpy() for name, own in runs.items()}
        for name, own in runs.items():
            if first := _first(own, out):
                log = pd.DataFrame(first[1]["log"], columns=first[1]["log_columns"])
                curve = log["images"].to_numpy(), log["validation_median_rad"].to_numpy()
                curves.setdefault(block.capitalize(), {})[name] = curve
    drawn = [exhibits.dots_exhibit(medians, published.MEDIAN_RAD_BY_VARIANT)]
    return [*drawn, exhibits.learning_exhibit(curves)] if curves else drawn


def snr_section(rows: pd.DataFrame, out: Path) -> Section:
    """Median error by SNR, beside the paper's."""
    found = {label: own for (_, label), own in _variants(rows).items()}
    header = f"SNR|Seeds|Median (rad)|Paper|Without TTA (rad)|{_ERRORS}|Log-likelihood|Passes|Minutes"
    lines = []
    for label, own in found.items():
        medians = mean_and_deviation(own, "median_rad"), radians(published.MEDIAN_RAD_BY_SNR.get(label))
        others = *_errors(own), mean(own, "log_likelihood", 2)
        effort = thousands(own["image_passes"].mean()), f"{own['training_seconds'].mean() / 60:.1f}"
        lines.append((label, str(len(own)), *medians, mean(own, WITHOUT_TTA), *others, *effort))
    means = {label: found[label]["median_rad"].mean() for label in SNRS if label in found}
    steps = list(zip(means, list(means)[1:], strict=False))
    broken = [f"from SNR {before} to {after}" for before, after in steps if means[after] <= means[before]]
    notes = f"The median does not rise {listed(broken)}." if broken else "The median rises at every step."
    seeds = {label: own["median_rad"].to_numpy() for label, own in found.items()}
    exhibit = exhibits.noise_exhibit(seeds, published.MEDIAN_RAD_BY_SNR)
    table = Table("Median error by SNR", header.split("|"), lines)
    text = f"{notes if steps else ''} {_TTA} {_EXPECTED} {_LIKELIHOOD} {published.NOTE}"
    return _section(rows, "Noise", text, [exhibit], [table])


def accuracy_section(rows: pd.DataFrame, out: Path) -> Section | None:
    """Figures 3 and 5, of one run on the paper's set: without Table 1's restrictions where there is one."""
    is_whole = (rows["study"] != "table1") | (rows["variant"] == BASE)
    own = rows[(rows["dataset"] == Dataset().name) & is_whole]
    for study in ("snr", "table1", "real"):
        if first := _first(own[own["study"] == study], out):
            row, arrays = first
            source = f"Study {study}, {row['variant']}, seed {row['seed']}"
            drawn = (
                exhibits.orientations_exhibit(arrays, source),
                exhibits.certainty_exhibit(arrays, KEPT_SHARE, source),
            )
            text = f"One run at SNR 0.1, on its {thousands(row['count'])} test particles."
            title = f"Orientations and certainty at {SCALE_NAMES[scale_of(rows)]}"
            return Section(f"accuracy-{scale_of(rows)}", title, text, drawn)
    return None


def _errors(own: pd.DataFrame) -> tuple[str, str, str]:
    """Share of large errors, and root mean squares of measured and expected errors."""
    return (
        share(own, "share_above_0_3_rad"),
        mean(own, "rms_error_rad"),
        mean(own, "rms_expected_error_rad"),
    )


def real_section(rows: pd.DataFrame, out: Path) -> Section:
    """Resolution of maps, and the share of junk that the filter keeps."""
    kinds = "|".join(f"{kind.capitalize()} (Å)" for kind in KINDS)
    header = f"Set|Seeds|Junk|{kinds}|Junk, kept|> 0.3 rad, kept".split("|")
    paper = published.RESOLUTION_ANGSTROM
    known = (f"{paper[kind]}" if kind in paper else "–" for kind in KINDS)
    lines: list[tuple[str, ...]] = [("The paper, Fig. 4", "–", "–", *known, "–", "–")]
    panels, drawn = [], []
    for (_, label), own in _variants(rows).items():
        resolutions = (mean_and_deviation(own, f"resolution_{kind}_angstrom", 1) for kind in KINDS)
        shares = (share(own, key) for key in ("junk_share_of_kept", "share_above_0_3_rad_of_kept"))
        lines.append((label, str(len(own)), share(own, "junk_share"), *resolutions, *shares))
        if first := _first(own, out):
            row, arrays = first
            has_junk = not arrays["genuine"].all()
            shown = KINDS if has_junk else KINDS[:3]
            curves = {kind: (arrays[f"fsc_{kind}"], row[f"resolution_{kind}_angstrom"]) for kind in shown}
            panels.append(exhibits.resolution_panel(label, curves, row["extent_angstrom"]))
            if has_junk:
                source = f"{label}, seed {row['seed']}"
                drawn.append(exhibits.junk_exhibit(arrays, row["kept_share"], source))
    if panels:
        drawn.insert(0, exhibits.resolution_exhibit(panels))
    notes = (
        f"Filtered: as certain by tr Λ as the most certain {percent(KEPT_SHARE)} of the validation part. "
        "Genuine: all particles but the junk; only these count as test images above. Junk among the kept "
        f"particles counts as above 0.3 rad. {published.NOTE}"
    )
    tables = [Table("Resolution and junk", header, lines), *_beside_the_true_map(rows)]
    return _section(rows, "Maps and junk", notes, drawn, tables)


def _beside_the_true_map(rows: pd.DataFrame) -> list[Table]:
    """Full maps compared with the true map, as half maps agree on the junk they share; none without it."""
    if "coarse_fsc_true" not in rows:
        return []
    lines = []
    for (_, label), own in _variants(rows).items():
        fine = (mean_and_deviation(own, f"true_resolution_{kind}_angstrom", 1) for kind in KINDS)
        coarse = (mean_and_deviation(own, f"coarse_fsc_{kind}", 3) for kind in KINDS)
        lines += [(f"{label}: FSC 0.5 at (Å)", *fine), (f"{label}: mean FSC down to 30 Å", *coarse)]
    header = ("Map beside the true one", *(kind.capitalize() for kind in KINDS))
    return [Table("Full maps beside the true map", header, lines)]


def symmetry_section(rows: pd.DataFrame, out: Path) -> Section:
    """Orientations in one fundamental domain beside losses over all equivalents."""
    near = "Median near|Mean near|Median away|Mean away|Near border"
    header = f"Group|Handling|Seeds|Median (rad)|Without TTA (rad)|Mean (rad)|{_ERRORS}|{near}".split("|")
    lines = []
    curves: dict[str, dict[str, tuple[np.ndarray, np.ndarray]]] = {}
    for (group, handling), own in _variants(rows).items():
        places = ("median_near_border_rad", "mean_near_border_rad", "median_inside_rad", "mean_inside_rad")
        whole = mean_and_deviation(own, "median_rad"), mean(own, WITHOUT_TTA), mean(own, "mean_rad")
        by_place = *(mean(own, key) for key in places), share(own, "share_near_border")
        lines.append((group, handling, str(len(own)), *whole, *_errors(own), *by_place))
        if first := _first(own, out):
            distance = border_distance(torch.from_numpy(first[1]["truth"]), group)
            curves.setdefault(group, {})[handling] = distance.numpy(), first[1]["error_rad"]
    notes = (
        "Errors are to the nearest equivalent. Domain: the paper's way, training orientations are moved into "
        "one fundamental domain. Group: loss and density are taken over all equivalents. Near: true "
        f"orientations within {BORDER_RAD} rad of their domain's border. {_EXPECTED} The paper's numbers "
        "were not at hand."
    )
    drawn = [exhibits.border_exhibit(curves, BORDER_RAD)] if curves else []
    return _section(rows, "Symmetry", notes, drawn, [Table("Errors under symmetry", header, lines)])


def _conditions(rows: pd.DataFrame) -> str:
    """The conditions of the runs of a table, in one line."""
    places: dict[str, list[str]] = {}
    for name in rows["dataset"].unique():
        snr = re.search(r"-snr([^-]+)", name)
        places.setdefault(re.sub(r"-snr[^-]+", "", name), []).append(snr[1] if snr else "?")
    sets = "; ".join(f"{name} at SNR {', '.join(snrs)}" for name, snrs in places.items())
    seeds = rows.groupby(["block", "variant"]).size()
    copies = span(rows["views"]) if "views" in rows else "1"
    processors = ", ".join(sorted(rows["processor"].astype(str).unique()))
    return (
        f"Scale: {scale_of(rows)}. Image passes: {span(rows['image_passes'])}, in batches of "
        f"{span(rows['settings'].map(batch_size))}. Seeds of each variant: {span(seeds)}. Training "
        f"images: {span(rows['training_images'])}; test images: {span(rows['count'])}; TTA, copies of "
        f"each: {copies}. Data: {sets}. Processor: {processors}; threads: {span(rows['threads'])}."
    )
