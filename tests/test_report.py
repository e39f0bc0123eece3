"""The report: every section from its files, none without them, and a page that needs nothing else."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from run_folder import write_run

from cryoforum.reporting import write_report
from cryoforum.reporting.figures import sky_density
from cryoforum.reporting.inputs import PredictedPoses
from cryoforum.rotations import compose, random_unitquat, unitquat_to_rotmat
from cryoforum.symmetry import symmetry_group

SECTIONS = {"accuracy", "reconstructions", "directions", "particles", "training", "run"}
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
def page_path(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("page") / "report.html"
    write_report(run, output)
    return output


@pytest.fixture
def part(run: Path, tmp_path: Path) -> Path:
    """A copy of the run to take files from."""
    return Path(shutil.copytree(run, tmp_path / "part"))


def read_page(path: Path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


def test_every_section_is_there(page_path: Path) -> None:
    page = read_page(page_path)
    assert page.sections == SECTIONS
    # 1 pairs, 3 certainty, 3 maps, 3 FSC, 2 directions, 4 particle stages, 3 training
    assert len(page.pictures) == 19
    assert all(page.pictures)
    assert len(page.ids) == len(set(page.ids))


def test_headline_and_tables_say_the_numbers(run: Path, page_path: Path) -> None:
    errors = json.loads((run / "summary.json").read_text())["errors"]
    text = " ".join(read_page(page_path).text)
    whole, kept = (f"{np.rad2deg(errors[group]['median_rad']):.1f}°" for group in ("all", "kept"))
    assert f"Median error {whole} on 30 test particles; dropping the 27\u202f% least certain: {kept}" in text
    for words in ("22.4 Å", "config.network.widths", "16, 32, 64", "simulate", "optimistic", "–"):
        assert words in text


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
        (["predictions.star"], {"accuracy", "directions"}),
        (["particles.star"], {"particles"}),
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


def test_errors_are_measured_where_no_summary_gives_them(run: Path, part: Path) -> None:
    (part / "summary.json").unlink()
    write_report(part, part / "report.html")
    errors = json.loads((run / "summary.json").read_text())["errors"]["all"]
    expected = f"Median error {np.rad2deg(errors['median_rad']):.1f}° on 30 test particles"
    assert expected in " ".join(read_page(part / "report.html").text)


@pytest.mark.parametrize("with_kept_star", [True, False])
def test_histogram_shows_the_particles_that_the_summary_calls_kept(part: Path, with_kept_star: bool) -> None:
    if not with_kept_star:
        (part / "kept.star").unlink()
    write_report(part, part / "report.html")
    kept = json.loads((part / "summary.json").read_text())["errors"]["kept"]
    expected = f"kept: median {np.rad2deg(kept['median_rad']):.1f}°"
    assert expected in " ".join(read_page(part / "report.html").text)


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


def test_truth_of_other_particles_is_refused(part: Path) -> None:
    truth = part / "truth.star"
    truth.write_text(truth.read_text().replace("@particles.mrcs", "@other.mrcs"))
    with pytest.raises(ValueError, match=r"truth\.star: expected the image .*@particles\.mrcs of row 1"):
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


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("dark", [False, True])
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
    equivalent = compose(symmetry_group("D4"), truth)
    poses = PredictedPoses(equivalent, truth, None, None, None, 0.75, symmetry="D4")
    assert poses.errors_rad is not None and float(poses.errors_rad.max()) < 1e-5
    plain = PredictedPoses(equivalent, truth, None, None, None, 0.75)
    assert plain.errors_rad is not None and float(plain.errors_rad[1:].min()) > 1
