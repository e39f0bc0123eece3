"""The report: every section from its files, none without them, and a page that needs nothing else."""

import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.drawing import leave_undrawn
from helpers.run_folder import write_run

from cryoforum.dataset.particle_table import number_column
from cryoforum.dataset.poses import Poses
from cryoforum.geometry.point_groups import symmetry_group
from cryoforum.geometry.rotations import compose, random_unitquat, unitquat_to_rotmat
from cryoforum.io.relion.star_files import read_star
from cryoforum.report.canvas import panel
from cryoforum.report.figures import sky_density
from cryoforum.report.inputs import PredictedPoses, accuracy_numbers, read_predictions
from cryoforum.report.limit import MEDIAN_OF_PERFECT_ESTIMATOR, ratio_distribution, shift_distribution
from cryoforum.report.page import write_report
from cryoforum.report.plotting import label_logarithmic, plain

SECTIONS = {"accuracy", "limit", "reconstructions", "directions", "particles", "training", "run"}
VOID = {"meta", "link", "img", "br", "hr", "input"}
CHROMIUM_FLAGS = """--headless --no-sandbox --disable-gpu --disable-quic --no-first-run
    --disable-background-networking --disable-component-update --disable-sync --hide-scrollbars
    --enable-logging=stderr"""


class Page(HTMLParser):
    """Collects what the tests ask for and fails where tags do not match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sections: set[str] = set()
        self.ids: list[str] = []
        self.resources: list[str] = []
        self.pictures: list[str | None] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag not in VOID:
            self.open.append(tag)
        if tag == "section":
            self.sections.add(values["id"] or "")
        if "id" in values:
            self.ids.append(values["id"] or "")
        self.resources += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]
        if tag == "img":
            assert "alt" in values
        if values.get("role") == "img":
            self.pictures.append(values.get("aria-label"))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.text.append(data)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("report") / "ribosome")


@pytest.fixture(scope="module")
def unrefined(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run of a model that has no reference."""
    return write_run(tmp_path_factory.mktemp("unrefined") / "ribosome", refined=False)


@pytest.fixture(scope="module")
def page_path(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("page") / "report.html"
    write_report(run, output)
    return output


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages with the description of every figure in its place: drawing takes seconds a page."""
    leave_undrawn(monkeypatch, "report.figures")


@pytest.fixture
def part(run: Path, tmp_path: Path, undrawn: None) -> Path:
    """A copy of the run to take files from; its figures are not drawn."""
    return Path(shutil.copytree(run, tmp_path / "part"))


def read_page(path: Path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


def read_page_of(folder: Path) -> Page:
    write_report(folder, folder / "report.html")
    return read_page(folder / "report.html")


def words_of(path: Path) -> str:
    return " ".join(" ".join(read_page(path).text).split())


def in_degrees(angle_rad: float) -> str:
    return f"{np.rad2deg(angle_rad):.1f}°"


def words_of_section(folder: Path, anchor: str) -> str:
    write_report(folder, folder / "report.html")
    markup = (folder / "report.html").read_text(encoding="utf-8")
    return " ".join(Page(re.findall(rf'<section id="{anchor}">.*?</section>', markup, re.DOTALL)[0]).text)


def test_every_section_is_there(page_path: Path) -> None:
    page = read_page(page_path)
    assert page.sections == SECTIONS
    # 2 pairs, 3 certainty, 3 limit, 3 evidence, 4 maps, 2 FSC, 2 directions, 4 particle stages, 3 training
    assert len(page.pictures) == 26
    assert all(page.pictures)
    assert len(page.ids) == len(set(page.ids))


def test_headline_and_tables_say_the_numbers(run: Path, page_path: Path) -> None:
    summary = json.loads((run / "summary.json").read_text())
    text = words_of(page_path)
    medians = {group: in_degrees(values["median_rad"]) for group, values in summary["errors"].items()}
    headline = (
        f"Median error {medians['all']} on 30 test particles; before local refinement: {medians['network']}"
    )
    assert headline in text
    for group, name in (
        ("network", "Network alone"),
        ("all", "Refined"),
        ("kept", "Refined, kept"),
    ):
        assert f"{name} {summary['errors'][group]['count']} {medians[group]}" in text
        assert f"{summary['shift_errors'][group]['median_angstrom']:.3g} Å" in text
    assert f"{summary['bound']['median_error_over_bound']:.2f}" in text
    for words in ("22.4 Å", "config.network.widths", "16, 32, 64", "simulate", "optimistic", "–"):
        assert words in text


def test_a_model_without_test_particles_is_said_to_have_none(part: Path) -> None:
    assert "20 particles were learned from, 10 validated on, 30 kept for tests" in words_of_section(
        part, "training"
    )
    split = part / "model" / "split.csv"
    split.write_text(split.read_text().replace(",test", ",train"))
    write_report(part, part / "report.html")
    text = words_of(part / "report.html")
    assert "on 30 particles;" in text and "test particles" not in text
    assert "50 particles were learned from, 10 validated on, none kept for tests" in text


def test_a_network_that_learned_nothing_is_named(part: Path) -> None:
    path = part / "model" / "model.json"
    known = {"validation_median_rad": 2.1, "training": {"chance_median_rad": 2.2, "core_share": 0.5}}
    path.write_text(json.dumps(json.loads(path.read_text()) | known))
    said = words_of_section(part, "training")
    assert (
        "Median validation error 120.3°; guessing gives 126.1°. The network has learned next to nothing"
        in said
    )
    assert "another program was using the cores" in said
    known["validation_median_rad"] = 0.1
    path.write_text(json.dumps(json.loads(path.read_text()) | known))
    assert "next to nothing" not in words_of_section(part, "training")


def test_a_run_without_reference_is_not_called_refined(
    unrefined: Path, tmp_path: Path, undrawn: None
) -> None:
    write_report(unrefined, tmp_path / "report.html")
    page, text = read_page(tmp_path / "report.html"), words_of(tmp_path / "report.html")
    assert page.sections == SECTIONS - {"limit"}
    # 1 pairs, 3 certainty, 3 maps, 2 FSC, 2 directions, 4 particle stages, 3 training
    assert len(page.pictures) == 18
    errors = json.loads((unrefined / "summary.json").read_text())["errors"]
    whole, kept = (in_degrees(errors[group]["median_rad"]) for group in ("all", "kept"))
    assert f"Median error {whole} on 30 test particles; dropping the 27 % least certain: {kept}" in text
    assert "Refined" not in text and "Network alone" not in text and "Shift" not in text


def test_the_limit_needs_no_truth(part: Path) -> None:
    (part / "truth.star").unlink()
    (part / "summary.json").unlink()
    write_report(part, part / "report.html")
    page = read_page(part / "report.html")
    assert page.sections == SECTIONS - {"accuracy"}
    words = ("bound", "error of the shift", "Signal scale")
    limit = [alt for alt in page.pictures if alt and any(word in alt for word in words)]
    assert len(limit) == 3 and not any("network" in alt for alt in limit)
    expected_deg = number_column(read_star(part / "predictions.star"), "cryoforumExpectedErrorDeg")
    assert expected_deg is not None
    headline = f"Poses of 30 particles; median expected error {np.median(expected_deg):.1f}°"
    assert headline in words_of(part / "report.html")


def test_the_limit_is_shown_without_the_network_alone(part: Path) -> None:
    with_network = len(read_page_of(part).pictures)
    (part / "network.star").unlink()
    page = read_page_of(part)
    assert page.sections == SECTIONS
    assert len(page.pictures) == with_network - 1  # its pairwise distances
    histograms = [alt for alt in page.pictures if alt and alt.startswith("Histograms")]
    assert histograms and not any("network alone" in alt for alt in histograms)


def test_errors_of_a_perfect_estimator_follow_the_dashed_curves() -> None:
    rng = np.random.default_rng(3)
    edges = np.geomspace(0.1, 3, 12)
    lengths = np.linalg.norm(rng.normal(scale=3**-0.5, size=(100_000, 3)), axis=1)
    assert np.sqrt(np.mean(lengths**2)) == pytest.approx(1, rel=0.01)
    counted = (lengths[:, None] < edges).mean(0)
    np.testing.assert_allclose(ratio_distribution(edges), counted, atol=0.01)
    assert np.median(lengths) == pytest.approx(MEDIAN_OF_PERFECT_ESTIMATOR, abs=0.01)
    rms = rng.uniform(0.2, 2, 100_000)
    shifts = np.linalg.norm(rng.normal(size=(100_000, 2)) * rms[:, None] / 2**0.5, axis=1)
    counted = (shifts[:, None] < edges).mean(0)
    np.testing.assert_allclose(shift_distribution(edges, rms_angstrom=rms), counted, atol=0.01)


def test_halves_that_are_not_independent_are_named(part: Path) -> None:
    text = words_of_section(part, "reconstructions")
    named = "not independent in “Network alone”, “Predicted and refined” and “Refined, filtered”"
    assert named in text and "optimistic" in text
    assert "The half maps are independent in “True poses”" in text
    for kind in ("network", "predicted", "filtered"):
        (part / "reconstruction" / kind / "resolution.json").write_text('{"independent": true}')
    text = words_of_section(part, "reconstructions")
    assert "not independent" not in text and "optimistic" not in text
    for path in (part / "reconstruction").glob("*/resolution.json"):
        path.unlink()
    assert "where one model aligned both half sets" in words_of_section(part, "reconstructions")


@pytest.mark.parametrize("limits", [(0.27, 0.36), (1.1e5, 2.6e5), (0.4, 90.0), (0.005, 700.0), (2.0, 2.1)])
def test_logarithmic_axes_have_a_few_numbers(limits: tuple[float, float]) -> None:
    with panel() as figure:
        axes = figure.add_subplot()
        axes.plot(limits, limits)
        label_logarithmic(axes, x=True)
        low, high = axes.get_xlim()
        shown = [label for at in axes.get_xticks() if low <= at <= high and (label := plain(at))]
    assert 2 <= len(shown) <= 8 and len(set(shown)) == len(shown)
    assert not any("e" in label for label in shown)


def test_page_asks_for_nothing_outside(page_path: Path) -> None:
    page, text = read_page(page_path), page_path.read_text(encoding="utf-8")
    assert all(resource.startswith(("data:", "#")) for resource in page.resources)
    assert not re.search(r"url\((?!#)|@import|<script", text)


def test_inner_links_have_targets(page_path: Path) -> None:
    page, text = read_page(page_path), page_path.read_text(encoding="utf-8")
    targets = {resource[1:] for resource in page.resources if resource.startswith("#")}
    targets |= set(re.findall(r"url\(#([^)]*)\)", text))
    assert targets <= set(page.ids)


@pytest.mark.parametrize(
    ("missing", "dropped"),
    [
        (["truth.star"], {"accuracy"}),
        (["predictions.star"], {"accuracy", "limit", "directions"}),
        (["particles.star"], set()),  # those of the predictions are shown
        (["particles.star", "particles.mrcs"], {"particles"}),
        (["model/log.csv"], {"training"}),
        (["reconstruction"], {"reconstructions"}),
        (["summary.json", "model/model.json"], {"run"}),
    ],
)
def test_missing_files_drop_their_sections(part: Path, missing: list[str], dropped: set[str]) -> None:
    for name in missing:
        path = part / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    write_report(part, part / "report.html")
    assert read_page(part / "report.html").sections == SECTIONS - dropped


def test_poses_are_measured_where_no_summary_gives_their_errors(run: Path, part: Path) -> None:
    (part / "summary.json").unlink()
    summary = json.loads((run / "summary.json").read_text())
    read = read_predictions(part, {}, {})
    measured = accuracy_numbers({}, read)
    assert list(measured["errors"]) == list(summary["errors"])
    for group, expected in summary["errors"].items():
        for name, value in expected.items():
            assert measured["errors"][group][name] == pytest.approx(value, rel=1e-3, abs=1e-4)
        shift = measured["shift_errors"][group]["median_angstrom"]
        assert shift == pytest.approx(summary["shift_errors"][group]["median_angstrom"], rel=1e-3)
    assert measured["bound"] == pytest.approx(summary["bound"], rel=1e-3)
    assert f"Median error {in_degrees(summary['errors']['all']['median_rad'])} on 30" in " ".join(
        read_page_of(part).text
    )


@pytest.mark.parametrize("with_kept_star", [True, False])
def test_histogram_shows_the_particles_that_the_summary_calls_kept(part: Path, with_kept_star: bool) -> None:
    if not with_kept_star:
        (part / "kept.star").unlink()
    kept = json.loads((part / "summary.json").read_text())["errors"]["kept"]
    expected = f"kept: median {np.rad2deg(kept['median_rad']):.1f}°"
    assert any(expected in alt for alt in read_page_of(part).pictures if alt)


def test_a_training_too_short_to_log_its_loss_is_shown(part: Path) -> None:
    columns = "step,images,seconds,validation_median_rad,validation_mean_rad"
    (part / "model" / "log.csv").write_text(f"{columns}\n3,48,1.2,1.9,2.0\n")
    page = read_page_of(part)
    assert page.sections == SECTIONS
    assert any(alt and "Validation error" in alt for alt in page.pictures)


def test_names_are_escaped(part: Path) -> None:
    model = part / "model" / "model.json"
    model.write_text(json.dumps({"name": "<script>alert(1)</script>"}))
    write_report(part, part / "report.html")
    assert "<script" not in (part / "report.html").read_text(encoding="utf-8")


def test_two_reports_of_one_run_agree(run: Path, page_path: Path, tmp_path: Path) -> None:
    write_report(run, tmp_path / "again.html")
    assert (tmp_path / "again.html").read_bytes() == page_path.read_bytes()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("summary.json", "{", r"expected JSON in .*summary\.json"),
        ("summary.json", "[]", r"summary\.json: expected a JSON object, found list"),
        ("model/log.csv", "step,loss\n1,2\n", r"log\.csv: expected a column images, found step, loss"),
        ("model/log.csv", "", r"log\.csv: expected a CSV table"),
    ],
)
def test_broken_files_are_named(part: Path, name: str, content: str, message: str) -> None:
    (part / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        write_report(part, part / "report.html")
    assert not (part / "report.html").exists()


@pytest.mark.parametrize("name", ["truth.star", "network.star"])
def test_poses_of_other_particles_are_refused(part: Path, name: str) -> None:
    path = part / name
    path.write_text(path.read_text().replace("@particles.mrcs", "@other.mrcs"))
    with pytest.raises(ValueError, match=rf"{name}: expected the image .*@particles\.mrcs of row 1"):
        write_report(part, part / "report.html")


def test_view_directions_are_counted_in_cells_of_equal_area() -> None:
    quaternions = random_unitquat(40_000, generator=torch.Generator().manual_seed(1))
    density = sky_density(unitquat_to_rotmat(quaternions)[:, :, 2].numpy(), rows=5)
    np.testing.assert_allclose(density, 1, atol=5 / np.sqrt(40_000 / density.size))
    north = sky_density(np.array([[0.0, 0.0, 1.0]]), rows=5)
    assert north[-1].sum() == north.sum() == north.size


def test_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected results such as"):
        write_report(tmp_path, tmp_path / "report.html")


@pytest.mark.parametrize(("width", "dark"), [(390, True), (1280, False)])
def test_browser_shows_it_without_complaint(page_path: Path, tmp_path: Path, width: int, dark: bool) -> None:
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no chromium on PATH")
    # headless windows are at least 500 px wide, so a frame of the width wanted stands in for a phone
    frame = tmp_path / "frame.html"
    frame.write_text(
        f'<!DOCTYPE html><body style="margin:0"><iframe id="f" src="{page_path.as_uri()}" '
        f'style="border:0;width:{width}px;height:2000px"></iframe><script>'
        "onload = () => { const d = f.contentDocument.documentElement;"
        "document.title = `${d.clientWidth} ${d.scrollWidth}`; }</script>"
    )
    screenshot = tmp_path / "page.png"
    command = [browser, *CHROMIUM_FLAGS.split(), f"--user-data-dir={tmp_path / 'profile'}"]
    command += ["--allow-file-access-from-files", f"--window-size={max(width, 500)},2000"]
    command += ["--force-dark-mode", "--blink-settings=preferredColorScheme=0"] if dark else []
    shot = [*command, f"--screenshot={screenshot}", frame.as_uri()]
    result = subprocess.run(shot, capture_output=True, text=True, timeout=90, check=True)
    assert screenshot.stat().st_size > 10_000
    assert "CONSOLE" not in result.stderr
    dumped = subprocess.run(
        [*command, "--dump-dom", frame.as_uri()], capture_output=True, text=True, timeout=90, check=True
    )
    match = re.search(r"<title>(\d+) (\d+)</title>", dumped.stdout)
    assert match is not None
    assert match.group(1) == match.group(2) == str(width), "the page scrolls sideways"


def test_errors_are_taken_under_the_symmetry_of_the_model() -> None:
    truth = random_unitquat(8, generator=torch.Generator().manual_seed(0))
    origins = torch.zeros(8, 2)
    equivalent = Poses(compose(symmetry_group("D4"), truth), origins)
    poses = PredictedPoses(equivalent, Poses(truth, origins), equivalent, {}, None, 0.75, symmetry="D4")
    errors = poses.errors_rad(poses.poses)
    assert errors is not None and float(errors.max()) < 1e-5
    errors = replace(poses, symmetry="C1").errors_rad(poses.poses)
    assert errors is not None and float(errors[1:].min()) > 1
