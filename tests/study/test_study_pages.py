"""The pages of the studies: the numbers of the runs, nothing of studies that were not run, one page for all."""

import json
import math
import re
import statistics
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.drawing import leave_undrawn

from cryoforum.dataset.pose_errors import orientation_errors, summarise_errors
from cryoforum.geometry.rotations import compose, random_unitquat
from cryoforum.report.layout import Section, Table, markdown
from cryoforum.storage.files import replacing
from cryoforum.study import published
from cryoforum.study.exhibits import kept_and_dropped
from cryoforum.study.figures import distance_histogram
from cryoforum.study.pages import write_pages
from cryoforum.study.runs import KEPT_SHARE
from cryoforum.study.variants import BASE, STUDIES, TABLE_1, Dataset, Run, planned_runs

PARTICLES = 60
NEAR_BORDER = ("median_near_border_rad", "mean_near_border_rad", "median_inside_rad", "mean_inside_rad")


def write_result(
    out: Path, run: Run, median_rad: float | None = None, *, arrays: bool = True
) -> dict[str, Any]:
    """What a run leaves: particles that are off by little, and in a set with junk some without meaning."""
    generator = torch.Generator().manual_seed(sum(run.name.encode()))
    truth = random_unitquat(PARTICLES, generator=generator)
    turn = torch.cat([0.05 * torch.randn(PARTICLES, 3, generator=generator), torch.ones(PARTICLES, 1)], dim=1)
    mode = compose(turn / turn.norm(dim=1, keepdim=True), truth)
    errors = orientation_errors(mode, truth, run.config.symmetry)
    genuine = torch.arange(PARTICLES) >= run.dataset.junk * PARTICLES
    share = torch.rand(12, generator=generator).tolist()
    record = {
        **{
            "study": run.study,
            "block": run.block,
            "variant": run.label,
            "scale": run.scale,
            "seed": run.seed,
        },
        **{
            "dataset": run.dataset.name,
            "training_images": 2512,
            "image_passes": 60032,
            "views": run.tta_copies,
        },
        **{"training_seconds": 90.0, **asdict(summarise_errors(errors[genuine])), "log_likelihood": share[0]},
        **{"rms_error_rad": share[10], "rms_expected_error_rad": share[11]},
        **{"single_view_median_rad": share[1], "processor": "x86_64", "threads": 2},
        "settings": " ".join((run.preset, *run.settings)),
    }
    if median_rad is not None:
        record["median_rad"] = median_rad
    record["validation_median_rad"] = record["median_rad"]
    if run.study == "symmetry":
        record |= dict(zip((*NEAR_BORDER, "share_near_border"), share[2:], strict=False))
    curves = {}
    if run.study == "real":
        for place, way in enumerate(("true", "predicted", "filtered", "genuine")):
            record[f"resolution_{way}_angstrom"] = 10 + share[place]
            curves[f"fsc_{way}"] = np.linspace(1, -0.1, run.dataset.box // 2 + 1) ** (1 + place)
        record["extent_angstrom"] = run.dataset.box * run.dataset.pixel_size_angstrom
        record |= {"junk_share": run.dataset.junk, "junk_share_of_kept": share[8], "kept_share": 0.6}
        record["share_above_0_3_rad_of_kept"] = share[9]
    log = [{"images": 640.0 * step, "validation_median_rad": 1 / step} for step in range(1, 8)]
    log.append({"images": 5000.0, "validation_median_rad": math.nan})
    posterior = {"trace": -3 / errors.square().numpy(), "lambda_max": -1 / errors.square().numpy()}
    known = {"truth": truth.numpy(), "mode": mode.numpy(), "error_rad": errors.numpy(), **posterior, **curves}
    folder = out / "runs"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{run.name}.json").write_text(json.dumps(record))
    if arrays:
        columns = np.array(list(log[0]))
        np.savez(
            folder / f"{run.name}.npz",
            allow_pickle=False,
            **{
                **known,
                "genuine": genuine.numpy(),
                "log": pd.DataFrame(log).to_numpy(),
                "log_columns": columns,
            },
        )
    return record


def write_study(
    out: Path, study: str, seeds: int = 1, *, arrays: bool = False
) -> dict[str, list[dict[str, Any]]]:
    """All runs of a study; their records by the name of the variant, under symmetry by "group handling"."""
    found: dict[str, list[dict[str, Any]]] = {}
    for run in planned_runs(study, "cpu", seeds):
        name = f"{run.block} {run.label}" if run.study == "symmetry" else run.label
        found.setdefault(name, []).append(write_result(out, run, arrays=arrays))
    return found


def tables_of(path: Path) -> dict[str, dict[str, dict[str, str]]]:
    """The tables of a Markdown file: cell by caption, first cells of the row, and column."""
    found: dict[str, dict[str, dict[str, str]]] = {}
    for caption, body in re.findall(r"^## (.*)\n\n((?:\|.*\n)+)", path.read_text(), re.MULTILINE):
        header, rule, *rows = [line.strip("| ").split(" | ") for line in body.splitlines()]
        assert all(len(row) == len(header) == len(rule) for row in rows)
        keys = 2 if header[0] == "Group" else 1
        found[caption] = {" ".join(row[:keys]): dict(zip(header, row, strict=True)) for row in rows}
    return found


def spread(values: list[float], digits: int = 4) -> str:
    return f"{statistics.mean(values):.{digits}f} ± {statistics.stdev(values):.{digits}f}"


@pytest.fixture(autouse=True)
def undrawn(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are drawn in the page of every study only: drawing takes seconds a page."""
    if "whole" not in request.fixturenames:
        leave_undrawn(monkeypatch, "report.figures", "study.figures")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of every study, two seeds of each variant."""
    out = tmp_path_factory.mktemp("study")
    write_study(out, "all", seeds=2, arrays=True)
    write_pages(out)
    return out


def test_table_1_says_mean_and_deviation_over_seeds(tmp_path: Path) -> None:
    records = write_study(tmp_path, "table1", seeds=3)
    extra = planned_runs("table1", "cpu", 5, only="Gaussian")[-1]
    records["Gaussian"].append(write_result(tmp_path, extra, 0.25, arrays=False))
    write_pages(tmp_path)
    tables = tables_of(tmp_path / "table1.md")
    assert list(tables) == [block.capitalize() for block in TABLE_1]
    for block, variants in TABLE_1.items():
        rows = tables[block.capitalize()]
        assert list(rows) == list(variants)
        for label, settings in variants.items():
            own = records[label if settings else BASE]
            medians = [record["median_rad"] for record in own]
            row = rows[label]
            assert row["Seeds"] == str(len(own))
            assert row["Median (rad)"] == spread(medians)
            assert row["Range"] == f"{min(medians):.4f} – {max(medians):.4f}"
            assert row["Mean (rad)"] == f"{statistics.mean(record['mean_rad'] for record in own):.4f}"
            assert (row["Paper"] == "–") == (label not in published.MEDIAN_RAD_BY_VARIANT)
    assert tables["Pooling"]["generalised mean"]["Paper"] == "0.0742"
    assert tables["Rotation head"]["unit quaternion"]["Paper"] == "0.1081"
    for words in (
        "Scale: cpu",
        "batches of 64",
        "variant: 3 to 4",
        "2\u202f512",
        "SNR 0.1",
        "x86_64",
        "threads: 2",
    ):
        assert words in (tmp_path / "table1.md").read_text()


def test_a_block_whose_base_was_not_run_shows_the_others(tmp_path: Path) -> None:
    for run in planned_runs("table1", "cpu", 1, only="max"):
        if run.block == "pooling":
            write_result(tmp_path, run)
    write_pages(tmp_path)
    tables = tables_of(tmp_path / "table1.md")
    assert list(tables) == ["Pooling"] and list(tables["Pooling"]) == ["max", "max + average"]
    assert {row["Range"] for row in tables["Pooling"].values()} == {"–"}
    assert "±" not in "".join(row["Median (rad)"] for row in tables["Pooling"].values())


@pytest.mark.parametrize("broken", [False, True])
def test_snr_stands_beside_the_paper_and_says_whether_it_is_monotone(tmp_path: Path, broken: bool) -> None:
    medians = {run.label: 0.02 + 0.01 * place for place, run in enumerate(planned_runs("snr", "cpu", 1))}
    if broken:
        medians["0.2"] = 0.03
    for run in planned_runs("snr", "cpu", 1):
        write_result(tmp_path, run, medians[run.label], arrays=False)
    write_pages(tmp_path)
    (rows,) = tables_of(tmp_path / "snr.md").values()
    for label, row in rows.items():
        assert row["Median (rad)"] == f"{medians[label]:.4f}"
        assert row["Paper"] == f"{published.MEDIAN_RAD_BY_SNR[label]:.4f}"
        assert row["Minutes"] == "1.5"
    text = (tmp_path / "snr.md").read_text()
    assert ("does not rise from SNR 0.4 to 0.2" in text) == broken
    assert ("rises at every step" in text) != broken
    page = (tmp_path / "study.html").read_text()
    assert f"Median error {medians['0.1']:.4f} rad" in page and "0.0742" in page


def test_symmetry_and_maps_say_what_the_runs_found(tmp_path: Path) -> None:
    symmetry, real = (write_study(tmp_path, study, seeds=2) for study in ("symmetry", "real"))
    write_pages(tmp_path)
    (rows,) = tables_of(tmp_path / "symmetry.md").values()
    assert list(rows) == list(symmetry) == ["D2 domain", "D2 group", "O domain", "O group"]
    for name, own in symmetry.items():
        assert rows[name]["Median (rad)"] == spread([record["median_rad"] for record in own])
        for key, column in zip(
            NEAR_BORDER, ("Median near", "Mean near", "Median away", "Mean away"), strict=True
        ):
            assert rows[name][column] == f"{statistics.mean(record[key] for record in own):.4f}"
    (rows,) = tables_of(tmp_path / "real.md").values()
    paper = rows.pop("The paper, Fig. 4")
    assert list(rows) == list(real)
    for way in ("true", "predicted", "filtered", "genuine"):
        known = published.RESOLUTION_ANGSTROM.get(way)
        assert paper[f"{way.capitalize()} (Å)"] == ("–" if known is None else f"{known}")
        for name, own in real.items():
            found = [record[f"resolution_{way}_angstrom"] for record in own]
            assert rows[name][f"{way.capitalize()} (Å)"] == spread(found, 1)
    assert rows["SNR 0.1, half of the new images junk"]["Junk"] == "50.0\u202f%"


@pytest.mark.parametrize("study", STUDIES)
def test_studies_that_were_not_run_are_left_out(tmp_path: Path, study: str) -> None:
    write_result(tmp_path, planned_runs(study, "cpu", 1)[0], arrays=False)
    write_pages(tmp_path)
    written = {path.name for path in tmp_path.iterdir() if path.is_file()}
    assert written == {"runs.csv", "study.html", f"{study}.md"}
    sections = re.findall(r'<section id="([^"]*)"', (tmp_path / "study.html").read_text())
    assert sections == [f"{study}-cpu", "method"]


def test_no_runs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected results of runs, found none; run a study first"):
        write_pages(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_file_that_a_kill_left_half_written_is_not_read(tmp_path: Path) -> None:
    run = planned_runs("snr", "cpu", 1)[0]
    write_result(tmp_path, run, arrays=False)
    path = tmp_path / "runs" / f"{run.name}.json"
    other = path.with_name(f"{run.name}-other.json")
    with replacing(other) as temporary:
        leftover = temporary.name
        temporary.touch()
    other.unlink()
    (path.parent / leftover).write_text('{"study": "snr", "blo')
    path.with_suffix(".json.tmp").write_text("{")
    write_pages(tmp_path)
    assert len(pd.read_csv(tmp_path / "runs.csv")) == 1


def test_csv_has_a_row_a_run_in_an_order_of_its_own(whole: Path, tmp_path: Path) -> None:
    rows = pd.read_csv(whole / "runs.csv", dtype={"variant": str})
    assert len(rows) == len(planned_runs("all", "cpu", 2))
    keys = ["study", "block", "variant", "scale", "seed"]
    assert list(rows.columns[:5]) == keys
    assert rows.equals(rows.sort_values(keys, ignore_index=True))
    write_result(tmp_path, planned_runs("real", "cpu", 1)[0], arrays=False)
    write_pages(tmp_path)
    fewer = list(pd.read_csv(tmp_path / "runs.csv"))
    assert fewer == [column for column in rows if column in fewer]


def test_page_shows_every_figure_and_asks_for_nothing_outside(whole: Path) -> None:
    page = (whole / "study.html").read_text()
    sections = re.findall(r'<section id="([^"]*)"', page)
    assert sections == ["table1-cpu", "snr-cpu", "accuracy-cpu", "real-cpu", "symmetry-cpu", "method"]
    # 4 + 4 of Table 1, 1 SNR, 2 + 3 of one run, 2 FSC, 2 junk, 2 groups, 2 pairs, 1 schedule
    drawings = re.findall(r"<svg\b[^>]*>", page)
    assert len(drawings) == 23
    labels = [re.search(r'aria-label="([^"]+)"', drawing) for drawing in drawings]
    assert all(labels) and len({label[1] for label in labels if label}) == len(drawings)
    assert not re.search(r'(?:src|href)="(?!data:|#)|url\((?!#)|@import|<script', page)
    assert set(re.findall(r'https?://[^"]*', page)) <= set(re.findall(r'xmlns(?::\w+)?="([^"]*)"', page))
    ids = re.findall(r'\sid="([^"]*)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:href="|url\()#([^")]*)', page)) <= set(ids)


def test_page_says_the_same_tables_as_the_markdown(whole: Path) -> None:
    page = (whole / "study.html").read_text()
    cells = set(re.findall(r"<t[hd][^>]*>([^<]*)</t[hd]>", page))
    for study in STUDIES:
        for rows in tables_of(whole / f"{study}.md").values():
            for row in rows.values():
                assert {cell.replace(">", "&gt;") for cell in row.values()} <= cells


def test_two_pages_of_the_same_runs_agree(tmp_path: Path) -> None:
    write_result(tmp_path, planned_runs("real", "cpu", 1)[0])
    write_pages(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    write_pages(tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


def test_the_paper_proposes_the_base_in_every_block() -> None:
    for variants in TABLE_1.values():
        (proposed,) = (label for label, settings in variants.items() if not settings)
        assert published.MEDIAN_RAD_BY_VARIANT[proposed] == published.MEDIAN_RAD_BY_SNR["0.1"]
    known = {label for variants in TABLE_1.values() for label in variants}
    assert set(published.MEDIAN_RAD_BY_VARIANT) <= known
    snrs = [run.label for run in planned_runs("snr", "cpu", 1)]
    assert list(published.MEDIAN_RAD_BY_SNR) == snrs
    assert Dataset().snr == 0.1


def test_the_surest_are_kept() -> None:
    trace = -np.random.default_rng(0).permutation(40).astype(np.float32)
    kept, dropped = kept_and_dropped(trace, trace, KEPT_SHARE)
    assert len(kept) == 30 and kept.max() < dropped.min()


def test_histogram_does_not_depend_on_how_many_pairs_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    distances = {name: np.linspace(0, 3, 50) for name in ("random pairs", "stratified pairs")}
    doubled = {name: np.repeat(values, 2) for name, values in distances.items()}
    assert distance_histogram(distances, 8) == distance_histogram(doubled, 8)


def test_markdown_keeps_bars_inside_their_cell() -> None:
    table = Table("Sizes", ("Name", "|x|"), (("a|b", "1"),))
    lines = markdown(Section("a", "Title", "Text", tables=(table,))).splitlines()
    assert lines[0] == "# Title" and "Text" in lines and "## Sizes" in lines
    assert lines[-1] == r"| a\|b | 1 |" and lines[-3] == r"| Name | \|x\| |"
