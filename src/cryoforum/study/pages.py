"""The results of runs as files to read: a tidy CSV, Markdown tables and one HTML page with the figures."""

import math
import re
from collections.abc import Collection
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from cryoforum.config import preset
from cryoforum.geometry.point_groups import distance_to_domain_border, in_fundamental_domain, symmetry_group
from cryoforum.report.layout import Exhibit, Section, Table, markdown
from cryoforum.report.page import render
from cryoforum.report.wording import listed, percent, thousands
from cryoforum.storage.files import replacing
from cryoforum.study import figures as drawings
from cryoforum.study import published
from cryoforum.study.runs import BORDER_RAD, KEPT_SHARE, read_records
from cryoforum.study.variants import BASE, SCALES, SNRS, TABLE_1, Dataset, Run, planned_runs

Arrays = dict[str, np.ndarray]

_KEYS = ["study", "block", "variant", "scale", "seed"]
_COLUMNS = [
    *_KEYS,
    *("dataset", "training_images", "image_passes", "training_seconds", "count", "median_rad", "mean_rad"),
    *("views", "single_view_median_rad"),
    *("lower_quartile_rad", "upper_quartile_rad", "share_above_0_3_rad", "validation_median_rad"),
    *("log_likelihood", "rms_error_rad", "rms_expected_error_rad"),
    *("share_near_border", "median_near_border_rad"),
    *("mean_near_border_rad", "median_inside_rad", "mean_inside_rad", "resolution_true_angstrom"),
    *("resolution_predicted_angstrom", "resolution_filtered_angstrom", "resolution_genuine_angstrom"),
    *(f"true_resolution_{way}_angstrom" for way in ("true", "predicted", "filtered", "genuine")),
    *(f"coarse_fsc_{way}" for way in ("true", "predicted", "filtered", "genuine")),
    *("kept_share", "junk_share", "junk_share_of_kept", "share_above_0_3_rad_of_kept"),
    *("processor", "threads", "cryo-forum", "settings"),
]
_SCALES = {"cpu": "CPU scale", "paper": "the paper's scale"}
_WAYS = ("true", "predicted", "filtered", "genuine")
_ONE_VIEW = "single_view_median_rad"
_LIKELIHOOD = (
    "Log-likelihood: of the true orientation, above that of a uniform density, in one view; normalised "
    "around the mode as finely as the mode is narrow, whatever the head. A head that was trained by another "
    "loss than its likelihood never learned how sharp to be."
)
_SCATTER = "> 0.3 rad|Rms (rad)|Expected"
_EXPECTED = "Rms: root mean square error; expected: that which the beliefs mean."
_SPREAD = "Numbers are means over seeds; ± is their standard deviation (n − 1)."


def write_pages(out: Path) -> None:
    """Write runs.csv, a Markdown file for each study that was run, and study.html into ``out``."""
    out = Path(out)
    records = _tidy(read_records(out))
    with replacing(out / "runs.csv") as temporary:
        records.to_csv(temporary, index=False)
    makers = {"table1": _table1, "snr": _snr, "real": _real, "symmetry": _symmetry}
    sections = []
    for study, section_of in makers.items():
        parts = _by_scale(records[records["study"] == study])
        own = [section_of(rows, out) for rows in parts]
        if own:
            with replacing(out / f"{study}.md") as temporary:
                temporary.write_text("\n".join(map(markdown, own)), encoding="utf-8")
        sections += own
        if study == "snr":
            sections += filter(None, (_accuracy(rows, out) for rows in _by_scale(records)))
    render(
        out / "study.html", out.resolve().name, _headline(records), _facts(records), [*sections, _method()]
    )


@lru_cache(maxsize=1)
def _method() -> Section:
    """What does not depend on the runs."""
    training = preset("paper").training
    steps = training.image_passes // training.batch_size
    exhibits = (drawings.pairs_exhibit(), drawings.schedule_exhibit(training.max_learning_rate, steps))
    text = "How pairs are drawn and how fast the network learns, of the method and not of these runs."
    return Section("method", "Pairs and schedule", text, exhibits)


def _tidy(records: pd.DataFrame) -> pd.DataFrame:
    """Rows and columns in an order that does not depend on which runs are there."""
    columns = [column for column in _COLUMNS if column in records]
    return records[columns + sorted(set(records) - set(columns))].sort_values(_KEYS, ignore_index=True)


def _by_scale(records: pd.DataFrame) -> list[pd.DataFrame]:
    parts = [records[records["scale"] == scale] for scale in SCALES]
    return [rows for rows in parts if len(rows)]


def _variants(rows: pd.DataFrame) -> dict[tuple[str, str], pd.DataFrame]:
    """The runs of a study by block and variant, in the order of the plan; others come last."""
    plan = [(run.block, run.label) for run in planned_runs(rows["study"].iloc[0], _scale(rows), 1)]
    found = dict(iter(rows.groupby(["block", "variant"])))
    return {key: found[key] for key in dict.fromkeys([*plan, *found]) if key in found}


def _first(rows: pd.DataFrame, out: Path) -> tuple[pd.Series, Arrays] | None:
    """Record and arrays of the first seed of a variant whose arrays are there."""
    for _, row in rows.iterrows():
        study, block, label, scale, seed = row[_KEYS]
        path = out / "runs" / f"{Run(study, block, label, Dataset(), '', (), seed, scale).name}.npz"
        if path.is_file():
            with np.load(path, allow_pickle=False) as file:
                return row, dict(file)
    return None


def _section(
    rows: pd.DataFrame, title: str, notes: str, exhibits: list[Exhibit], tables: list[Table]
) -> Section:
    anchor = f"{rows['study'].iloc[0]}-{_scale(rows)}"
    text = f"{_conditions(rows)}\n\n{_SPREAD} {notes}"
    return Section(anchor, f"{title} at {_SCALES[_scale(rows)]}", text, tuple(exhibits), tuple(tables))


def _table1(rows: pd.DataFrame, out: Path) -> Section:
    """The four blocks of Table 1; the base stands in each under the name it has there."""
    found = _variants(rows)
    base = found.get(("rotation head", BASE))
    blocks: dict[str, dict[str, pd.DataFrame]] = {}
    for block, settings_of in TABLE_1.items():
        if any(own == block for own, _ in found):
            runs = {name: found.get((block, name)) if own else base for name, own in settings_of.items()}
            blocks[block] = {name: own for name, own in runs.items() if own is not None}
    header = _cells("Variant|Seeds|Median (rad)|Range|Paper|Mean (rad)|> 0.3 rad|Log-likelihood")
    tables, paper = [], published.MEDIAN_RAD_BY_VARIANT
    for block, runs in blocks.items():
        lines = []
        for name, own in runs.items():
            medians = _spread(own, "median_rad"), _range(own), _radians(paper.get(name))
            others = _share(own, "share_above_0_3_rad"), _mean(own, "log_likelihood", 2)
            lines.append((name, str(len(own)), *medians, _mean(own, "mean_rad"), *others))
        tables.append(Table(block.capitalize(), header, tuple(lines)))
    notes = (
        f"The base of all four blocks is one training, “{BASE}”, under the name that each gives it; the "
        "others change it in one place, and those called likelihood or softmax the loss with the head. Base: "
        f"{base['settings'].iloc[0] if base is not None else 'not run'}. "
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
    exhibits = [drawings.dots_exhibit(medians, published.MEDIAN_RAD_BY_VARIANT)]
    return [*exhibits, drawings.learning_exhibit(curves)] if curves else exhibits


def _snr(rows: pd.DataFrame, out: Path) -> Section:
    """Median error by SNR, beside the paper's."""
    found = {label: own for (_, label), own in _variants(rows).items()}
    header = _cells(f"SNR|Seeds|Median (rad)|Paper|One view (rad)|{_SCATTER}|Log-likelihood|Passes|Minutes")
    lines = []
    for label, own in found.items():
        medians = _spread(own, "median_rad"), _radians(published.MEDIAN_RAD_BY_SNR.get(label))
        others = *_scatter(own), _mean(own, "log_likelihood", 2)
        effort = thousands(own["image_passes"].mean()), f"{own['training_seconds'].mean() / 60:.1f}"
        lines.append((label, str(len(own)), *medians, _mean(own, _ONE_VIEW), *others, *effort))
    means = {label: found[label]["median_rad"].mean() for label in SNRS if label in found}
    steps = list(zip(means, list(means)[1:], strict=False))
    broken = [f"from SNR {before} to {after}" for before, after in steps if means[after] <= means[before]]
    notes = f"The median does not rise {listed(broken)}." if broken else "The median rises at every step."
    seeds = {label: own["median_rad"].to_numpy() for label, own in found.items()}
    exhibit = drawings.noise_exhibit(seeds, published.MEDIAN_RAD_BY_SNR)
    table = Table("Median error by SNR", header, tuple(lines))
    views = "One view: where the network reads each image once, as the paper's does."
    text = f"{notes if steps else ''} {views} {_EXPECTED} {_LIKELIHOOD} {published.NOTE}"
    return _section(rows, "Noise", text, [exhibit], [table])


def _accuracy(rows: pd.DataFrame, out: Path) -> Section | None:
    """Figures 3 and 5, of one run on the paper's set: without Table 1's restrictions where there is one."""
    own = rows[
        (rows["dataset"] == Dataset().name) & ((rows["study"] != "table1") | (rows["variant"] == BASE))
    ]
    for study in ("snr", "table1", "real"):
        if first := _first(own[own["study"] == study], out):
            row, arrays = first
            source = f"Study {study}, {row['variant']}, seed {row['seed']}"
            exhibits = (
                drawings.orientations_exhibit(arrays, source),
                drawings.certainty_exhibit(arrays, KEPT_SHARE, source),
            )
            text = f"One run at SNR 0.1, on its {thousands(row['count'])} test particles."
            title = f"Orientations and certainty at {_SCALES[_scale(rows)]}"
            return Section(f"accuracy-{_scale(rows)}", title, text, exhibits)
    return None


def _scatter(own: pd.DataFrame) -> tuple[str, str, str]:
    """Share of large errors, and the root mean squares of found errors and of those that beliefs mean."""
    return (
        _share(own, "share_above_0_3_rad"),
        _mean(own, "rms_error_rad"),
        _mean(own, "rms_expected_error_rad"),
    )


def _real(rows: pd.DataFrame, out: Path) -> Section:
    """Resolution of maps, and whether the statistic finds junk."""
    ways = "|".join(f"{way.capitalize()} (Å)" for way in _WAYS)
    header = _cells(f"Set|Seeds|Junk|{ways}|Junk, kept|> 0.3 rad, kept")
    paper = published.RESOLUTION_ANGSTROM
    known = (f"{paper[way]}" if way in paper else "–" for way in _WAYS)
    lines: list[tuple[str, ...]] = [("The paper, Fig. 4", "–", "–", *known, "–", "–")]
    panels, exhibits = [], []
    for (_, label), own in _variants(rows).items():
        resolutions = (_spread(own, f"resolution_{way}_angstrom", 1) for way in _WAYS)
        shares = (_share(own, key) for key in ("junk_share_of_kept", "share_above_0_3_rad_of_kept"))
        lines.append((label, str(len(own)), _share(own, "junk_share"), *resolutions, *shares))
        if first := _first(own, out):
            row, arrays = first
            has_junk = not arrays["genuine"].all()
            shown = _WAYS if has_junk else _WAYS[:3]
            curves = {way: (arrays[f"fsc_{way}"], row[f"resolution_{way}_angstrom"]) for way in shown}
            panels.append(drawings.resolution_panel(label, curves, row["extent_angstrom"]))
            if has_junk:
                source = f"{label}, seed {row['seed']}"
                exhibits.append(drawings.junk_exhibit(arrays, row["kept_share"], source))
    if panels:
        exhibits.insert(0, drawings.resolution_exhibit(tuple(panels)))
    notes = (
        f"Filtered: as sure by tr Λ as the surest {percent(KEPT_SHARE)} of the validation part. Genuine: all "
        f"but the junk, by the truth; test images above are those. Junk counts among "
        f"the kept above 0.3 rad. {published.NOTE}"
    )
    tables = [Table("Resolution and junk", header, tuple(lines)), *_beside_the_true_map(rows)]
    return _section(rows, "Maps and junk", notes, exhibits, tables)


def _beside_the_true_map(rows: pd.DataFrame) -> list[Table]:
    """What half maps cannot tell, as they share what junk makes of them; none where no truth is known."""
    if "coarse_fsc_true" not in rows:
        return []
    lines = []
    for (_, label), own in _variants(rows).items():
        fine = (_spread(own, f"true_resolution_{way}_angstrom", 1) for way in _WAYS)
        coarse = (_spread(own, f"coarse_fsc_{way}", 3) for way in _WAYS)
        lines += [(f"{label}: FSC 0.5 at (Å)", *fine), (f"{label}: mean FSC down to 30 Å", *coarse)]
    header = ("Map beside the true one", *(way.capitalize() for way in _WAYS))
    return [Table("Full maps beside the true map", header, tuple(lines))]


def _symmetry(rows: pd.DataFrame, out: Path) -> Section:
    """Orientations in one fundamental domain beside losses over all equivalents."""
    near = "Median near|Mean near|Median away|Mean away|Near border"
    header = _cells(f"Group|Handling|Seeds|Median (rad)|One view (rad)|Mean (rad)|{_SCATTER}|{near}")
    lines = []
    curves: dict[str, dict[str, tuple[np.ndarray, np.ndarray]]] = {}
    for (group, handling), own in _variants(rows).items():
        places = ("median_near_border_rad", "mean_near_border_rad", "median_inside_rad", "mean_inside_rad")
        whole = _spread(own, "median_rad"), _mean(own, _ONE_VIEW), _mean(own, "mean_rad")
        by_place = *(_mean(own, key) for key in places), _share(own, "share_near_border")
        lines.append((group, handling, str(len(own)), *whole, *_scatter(own), *by_place))
        if first := _first(own, out):
            elements, truth = symmetry_group(group), torch.from_numpy(first[1]["truth"])
            distance = distance_to_domain_border(in_fundamental_domain(truth, elements), elements)
            curves.setdefault(group, {})[handling] = distance.numpy(), first[1]["error_rad"]
    notes = (
        "Errors are to the nearest equivalent. Domain: the paper's way, training orientations are moved into "
        "one fundamental domain. Group: loss and density are taken over all equivalents. Near: true "
        f"orientations within {BORDER_RAD} rad of their domain's border. {_EXPECTED} The paper's numbers "
        "were not at hand."
    )
    exhibits = [drawings.border_exhibit(curves, BORDER_RAD)] if curves else []
    return _section(rows, "Symmetry", notes, exhibits, [Table("Errors under symmetry", header, tuple(lines))])


def _headline(records: pd.DataFrame) -> str:
    rows = _best(records)
    if rows is None:
        return "The paper's comparisons, run again"
    paper = published.MEDIAN_RAD_BY_SNR["0.1"]
    return (
        f"Median error {_mean(rows, 'median_rad')} rad at SNR\u00a00.1; the paper's network: {paper:.4f} rad"
    )


def _best(records: pd.DataFrame) -> pd.DataFrame | None:
    """The runs of one variant on the paper's set: that with the smallest validation error."""
    own = records[records["dataset"] == Dataset().name]
    groups = [rows for _, rows in own.groupby(["study", "block", "variant", "scale"])]
    return min(groups, key=lambda rows: rows["validation_median_rad"].mean(), default=None)


def _facts(records: pd.DataFrame) -> list[tuple[str, str, str]]:
    """(number, what it is, what it means) of what matters most, at the largest scale of each."""
    facts: list[tuple[str, str, str]] = []
    paper = f"{published.BASE_MEDIAN_RAD:.4f} rad"
    if (best := _best(records)) is not None:
        row = best.iloc[0]
        note = f"study {row['study']}, {row['variant']}, {_count(best)}"
        if row.get("views", 1) > 1:
            note += f", {row['views']:.0f} views of each image; of one view {_mean(best, _ONE_VIEW)}"
        note += f"; the paper: {paper}"
        facts.append((_mean(best, "median_rad"), "rad: smallest median error at SNR 0.1", note))
    base = records[(records["study"] == "table1") & (records["variant"] == BASE)]
    for rows in _by_scale(base)[-1:]:
        note = f"{_SCALES[_scale(rows)]}, {_count(rows)}; the paper, at its own scale: {paper}"
        facts.append((_mean(rows, "median_rad"), "rad: median error of Table 1's base", note))
    for rows in _by_scale(records[records["study"] == "symmetry"])[-1:]:
        for group, own in rows.groupby("block", sort=False):
            near = own.groupby("variant")["mean_near_border_rad"].mean().dropna()
            if {"domain", "group"} <= set(near.index):
                note = f"{near['domain']:.3f} rad in one domain, {near['group']:.3f} over the group"
                number = f"{near['domain'] / near['group']:.2f} ×"
                facts.append((number, f"mean error near the border of {group}'s domain", note))
    maps = records[(records["study"] == "real") & (records["dataset"] == Dataset().name)]
    for rows in _by_scale(maps)[-1:]:
        resolutions = published.RESOLUTION_ANGSTROM
        note = f"true orientations: {_mean(rows, 'resolution_true_angstrom', 1)} Å; the paper: "
        note += f"{resolutions['predicted']} and {resolutions['true']} Å"
        number = f"{_mean(rows, 'resolution_predicted_angstrom', 1)} Å"
        facts.append((number, "resolution under predicted orientations, SNR 0.1", note))
    return facts


def _conditions(rows: pd.DataFrame) -> str:
    """How the runs of a table were done, in one line."""
    places: dict[str, list[str]] = {}
    for name in rows["dataset"].unique():
        snr = re.search(r"-snr([^-]+)", name)
        places.setdefault(re.sub(r"-snr[^-]+", "", name), []).append(snr[1] if snr else "?")
    sets = "; ".join(f"{name} at SNR {', '.join(snrs)}" for name, snrs in places.items())
    seeds = rows.groupby(["block", "variant"]).size()
    views = _span(rows["views"]) if "views" in rows else "1"
    processors = ", ".join(sorted(rows["processor"].astype(str).unique()))
    return (
        f"Scale: {_scale(rows)}. Image passes: {_span(rows['image_passes'])}, in batches of "
        f"{_span(rows['settings'].map(_batch_size))}. Seeds of each variant: {_span(seeds)}. Training "
        f"images: {_span(rows['training_images'])}; test images: {_span(rows['count'])}; views of "
        f"each: {views}. Data: {sets}. Processor: {processors}; threads: {_span(rows['threads'])}."
    )


def _batch_size(settings: str) -> int:
    """Of the settings that a record holds: a preset and what was changed."""
    given = re.findall(r"training\.batch_size=(\d+)", settings)
    return int(given[-1]) if given else preset(settings.split()[0]).training.batch_size


def _cells(text: str) -> tuple[str, ...]:
    return tuple(text.split("|"))


def _scale(rows: pd.DataFrame) -> str:
    return str(rows["scale"].iloc[0])


def _count(rows: pd.DataFrame) -> str:
    return f"{len(rows)} seed{'s' if len(rows) > 1 else ''}"


def _range(rows: pd.DataFrame) -> str:
    medians = rows["median_rad"]
    return f"{medians.min():.4f} – {medians.max():.4f}" if len(rows) > 1 else "–"


def _radians(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _spread(rows: pd.DataFrame, key: str, digits: int = 4) -> str:
    """Mean ± standard deviation over seeds; the mean alone of one seed, a dash where nothing is known."""
    text = _mean(rows, key, digits)
    return f"{text} ± {rows[key].std():.{digits}f}" if text != "–" and len(rows) > 1 else text


def _mean(rows: pd.DataFrame, key: str, digits: int = 4) -> str:
    value = rows[key].mean() if key in rows else math.nan
    return f"{value:.{digits}f}".replace("-", "−") if math.isfinite(value) else "–"


def _share(rows: pd.DataFrame, key: str) -> str:
    value = rows[key].mean() if key in rows else math.nan
    return f"{100 * value:.1f}\u202f%" if math.isfinite(value) else "–"


def _span(values: Collection[float]) -> str:
    """The value that all have, or the smallest to the largest."""
    return " to ".join(thousands(value) for value in sorted({min(values), max(values)}))
