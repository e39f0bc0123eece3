"""Progress where a file takes what is shown: lines that a person can read afterwards."""

import io
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.children import environment
from rich.console import Console

from cryoforum.runtime.progress import LINE_SECONDS, Lines, progress_on
from cryoforum.runtime.reporter import TrainingProgress


class Clock:
    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def file() -> io.StringIO:
    return io.StringIO()


def test_a_step_says_a_line_every_half_minute_and_one_at_its_end(clock: Clock, file: io.StringIO) -> None:
    advance = Lines(Console(file=file, width=120), clock).progress("aligning", 1000)
    for _ in range(10):
        clock.seconds += LINE_SECONDS / 3
        advance(100)
    assert file.getvalue().splitlines() == [
        "aligning: 300 of 1000, 10 images/s, 0:01:10 left",
        "aligning: 600 of 1000, 10 images/s, 0:00:40 left",
        "aligning: 900 of 1000, 10 images/s, 0:00:10 left",
        "aligning: 1000 of 1000, 10 images/s, 0:01:40 in all",
    ]


def test_a_training_that_goes_on_counts_what_it_does_itself(clock: Clock, file: io.StringIO) -> None:
    lines = Lines(Console(file=file, width=120), clock)
    lines.training(TrainingProgress(0.5, 5000, 1.0, None))
    clock.seconds = LINE_SECONDS
    lines.training(TrainingProgress(0.75, 8000, 0.5, 0.1))
    clock.seconds += LINE_SECONDS - 1
    lines.training(TrainingProgress(0.9, 9000, 0.5, 0.1))
    lines.training(TrainingProgress(1.0, 10900, 0.5, 0.1))
    assert file.getvalue().splitlines() == [
        "training: 75 %, loss 0.50, error 5.7° (0.1000 rad), 100 images/s, 0:00:30 left",
        "training: 100 %, loss 0.50, error 5.7° (0.1000 rad), 100 images/s, 0:00:59 in all",
    ]


def test_a_step_without_images_says_nothing(clock: Clock, file: io.StringIO) -> None:
    Lines(Console(file=file), clock).progress("nothing", 0)(0)
    assert file.getvalue() == ""


def test_a_terminal_gets_bars(file: io.StringIO) -> None:
    with_bar = progress_on(Console(file=file, force_terminal=True))
    with_bar.progress("aligning", 2)(2)
    with_bar.close()
    assert "━" in file.getvalue()


@pytest.mark.parametrize("job", [False, True])
def test_a_command_into_a_file_shows_lines_and_no_bars(tmp_path: Path, job: bool) -> None:
    start = [sys.executable, "-m", "cryoforum"]
    made = ["simulate", "--n", "40", "--box", "32", "--pixel-size", "11.2", "--snr", "5", "--out", "."]
    subprocess.run([*start, *made], cwd=tmp_path, env=environment(), check=True, capture_output=True)
    (tmp_path / "tiny.toml").write_text("[training]\nimage_passes = 64\ngrid_nside = 2\ngrid_count = 2\n")
    common = ["--preset", "tiny", "--config", "tiny.toml"]
    train = ["train", "particles.star", "--out", "model", *common]
    if job:
        train = ["relion-job", "--o", "job/", "--in_parts", "particles.star", "--action", "train", *common]
    done = subprocess.run([*start, *train], cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^training: 100 %, loss .* images/s, .* in all$", done.stderr, re.MULTILINE)
    assert "━" not in done.stderr + done.stdout
