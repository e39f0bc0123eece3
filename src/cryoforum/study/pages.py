"""The results of runs as files to read: a tidy CSV, Markdown tables and one HTML page with the figures."""

from pathlib import Path

import pandas as pd

from cryoforum.config import preset
from cryoforum.report.layout import Section, markdown
from cryoforum.report.page import render
from cryoforum.storage.files import replacing
from cryoforum.study import exhibits, published, sections
from cryoforum.study.runs import read_records
from cryoforum.study.sections import KEYS, KINDS, SCALE_NAMES
from cryoforum.study.summaries import WITHOUT_TTA, by_scale, mean, scale_of, seed_count
from cryoforum.study.variants import BASE, Dataset

_COLUMNS = [
    *KEYS,
    *("dataset", "training_images", "image_passes", "training_seconds", "count", "median_rad", "mean_rad"),
    *("views", "single_view_median_rad"),
    *("lower_quartile_rad", "upper_quartile_rad", "share_above_0_3_rad", "validation_median_rad"),
    *("log_likelihood", "rms_error_rad", "rms_expected_error_rad"),
    *("share_near_border", "median_near_border_rad", "mean_near_border_rad"),
    *("median_inside_rad", "mean_inside_rad"),
    *(f"resolution_{kind}_angstrom" for kind in KINDS),
    *(f"true_resolution_{kind}_angstrom" for kind in KINDS),
    *(f"coarse_fsc_{kind}" for kind in KINDS),
    *("kept_share", "junk_share", "junk_share_of_kept", "share_above_0_3_rad_of_kept"),
    *("processor", "threads", "cryo-forum", "settings"),
]


def write_pages(out: Path) -> None:
    """Write runs.csv, a Markdown file for each study that was run, and study.html into ``out``.

    Raises
    ------
    InputError
        Where ``out`` holds no results of runs.
    """
    out = Path(out)
    records = _tidy(read_records(out))
    with replacing(out / "runs.csv") as temporary:
        records.to_csv(temporary, index=False)
    section_makers = {
        "table1": sections.table1_section,
        "snr": sections.snr_section,
        "real": sections.real_section,
        "symmetry": sections.symmetry_section,
    }
    shown: list[Section] = []
    for study, section_of in section_makers.items():
        parts = by_scale(records[records["study"] == study])
        own = [section_of(rows, out) for rows in parts]
        if own:
            with replacing(out / f"{study}.md") as temporary:
                temporary.write_text("\n".join(map(markdown, own)), encoding="utf-8")
        shown += own
        if study == "snr":
            shown += filter(None, (sections.accuracy_section(rows, out) for rows in by_scale(records)))
    render(out / "study.html", out.resolve().name, _headline(records), _facts(records), [*shown, _method()])


def _method() -> Section:
    """The section that does not depend on the runs."""
    training = preset("paper").training
    steps = training.image_passes // training.batch_size
    drawn = (exhibits.pairs_exhibit(), exhibits.schedule_exhibit(training.max_learning_rate, steps))
    text = "The sampling of pairs and the learning rate, as the method defines them; not results of runs."
    return Section("method", "Pairs and schedule", text, drawn)


def _tidy(records: pd.DataFrame) -> pd.DataFrame:
    """Rows and columns in an order that does not depend on which runs are there."""
    columns = [column for column in _COLUMNS if column in records]
    return records[columns + sorted(set(records) - set(columns))].sort_values(KEYS, ignore_index=True)


def _headline(records: pd.DataFrame) -> str:
    rows = _best(records)
    if rows is None:
        return "The paper's comparisons, run again"
    paper = published.MEDIAN_RAD_BY_SNR["0.1"]
    return (
        f"Median error {mean(rows, 'median_rad')} rad at SNR\u00a00.1; the paper's network: {paper:.4f} rad"
    )


def _best(records: pd.DataFrame) -> pd.DataFrame | None:
    """The runs of the variant with the smallest validation error on the paper's set."""
    own = records[records["dataset"] == Dataset().name]
    groups = [rows for _, rows in own.groupby(["study", "block", "variant", "scale"])]
    return min(groups, key=lambda rows: rows["validation_median_rad"].mean(), default=None)


def _facts(records: pd.DataFrame) -> list[tuple[str, str, str]]:
    """(number, quantity, note) of the main results, at the largest scale of each."""
    facts: list[tuple[str, str, str]] = []
    paper = f"{published.BASE_MEDIAN_RAD:.4f} rad"
    if (best := _best(records)) is not None:
        row = best.iloc[0]
        note = f"study {row['study']}, {row['variant']}, {seed_count(best)}"
        if row.get("views", 1) > 1:
            note += f", TTA of {row['views']:.0f} copies; without TTA {mean(best, WITHOUT_TTA)}"
        note += f"; the paper: {paper}"
        facts.append((mean(best, "median_rad"), "rad: smallest median error at SNR 0.1", note))
    base = records[(records["study"] == "table1") & (records["variant"] == BASE)]
    for rows in by_scale(base)[-1:]:
        note = f"{SCALE_NAMES[scale_of(rows)]}, {seed_count(rows)}; the paper, at its own scale: {paper}"
        facts.append((mean(rows, "median_rad"), "rad: median error of Table 1's base", note))
    for rows in by_scale(records[records["study"] == "symmetry"])[-1:]:
        for group, own in rows.groupby("block", sort=False):
            near = own.groupby("variant")["mean_near_border_rad"].mean().dropna()
            if {"domain", "group"} <= set(near.index):
                note = f"{near['domain']:.3f} rad in one domain, {near['group']:.3f} over the group"
                number = f"{near['domain'] / near['group']:.2f} ×"
                facts.append((number, f"mean error near the border of {group}'s domain", note))
    maps = records[(records["study"] == "real") & (records["dataset"] == Dataset().name)]
    for rows in by_scale(maps)[-1:]:
        resolutions = published.RESOLUTION_ANGSTROM
        note = f"true orientations: {mean(rows, 'resolution_true_angstrom', 1)} Å; the paper: "
        note += f"{resolutions['predicted']} and {resolutions['true']} Å"
        number = f"{mean(rows, 'resolution_predicted_angstrom', 1)} Å"
        facts.append((number, "resolution under predicted orientations, SNR 0.1", note))
    return facts
