"""Predicting on files: killed, shared, or cut into shards, it writes what one undisturbed run writes."""

import random
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.children import environment
from typer.testing import CliRunner, Result

from cryoforum.alignment import aligner
from cryoforum.cli import app
from cryoforum.commands import pose_files
from cryoforum.commands.pose_files import shares_of_batches
from cryoforum.config import Config, preset
from cryoforum.dataset.particle_table import number_column, with_columns
from cryoforum.dataset.particles import Particles, loaded_batches
from cryoforum.io.mrc.stacks import write_stack
from cryoforum.io.relion.particles import table_from_particles
from cryoforum.io.relion.star_files import read_star, write_star
from cryoforum.network.model import OrientationNetwork, TrainedModel
from cryoforum.network.model_folder import load_model, save_model
from cryoforum.storage.files import is_leftover

COUNT, BOX, PIXEL_SIZE, BATCH = 90, 32, 4.0, 8
# What a child runs: the command line.
CHILD = """
import os, signal, sys, time
from cryoforum.alignment import aligner
from cryoforum.storage import batch_log as batchlog
{changes}
from cryoforum.cli import app
app(sys.argv[1:])
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set, an untrained model, and whole.star: what an undisturbed run writes."""
    folder = tmp_path_factory.mktemp("predicting")
    torch.manual_seed(3)
    names = tuple(f"{row + 1:06d}@particles.mrcs" for row in range(COUNT))
    particles = Particles(torch.randn(COUNT, BOX, BOX), PIXEL_SIZE, names)
    write_stack(folder / "particles.mrcs", [particles.images], COUNT, BOX, PIXEL_SIZE)
    write_star(table_from_particles(particles, names), folder / "particles.star")
    settings = preset("tiny")
    network = replace(settings.network, widths=(4, 8), head="qcqp")
    config = replace(settings, network=network, preprocessing=replace(settings.preprocessing, box=BOX))
    parts = dict(zip(names, ("train", "test") * (COUNT // 2), strict=True))
    save_model(_model(config, parts), folder / "model")
    predict(folder, folder / "whole.star")
    return folder


def _model(config: Config, parts: dict[str, str]) -> TrainedModel:
    network = OrientationNetwork(config.network, BOX).eval()
    return TrainedModel(network, config, BOX, PIXEL_SIZE, 1.0, [{"step": 1.0}], parts)


@pytest.fixture
def batch_sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the batches that are computed from now on."""
    sizes: list[int] = []
    compute_batch = aligner.predict_batch

    def counted(model: TrainedModel, batch: Particles, *others: Any) -> object:
        sizes.append(len(batch))
        return compute_batch(model, batch, *others)

    monkeypatch.setattr(aligner, "predict_batch", counted)
    return sizes


def command(folder: Path, out: Path, *options: object) -> list[str]:
    arguments = ("predict", folder / "model", folder / "particles.star", "--out", out, "--root", folder)
    return [str(argument) for argument in (*arguments, "--batch-size", BATCH, *options)]


def predict(folder: Path, out: Path, *options: object, code: int = 0) -> Result:
    result = CliRunner().invoke(app, command(folder, out, *options))
    assert result.exit_code == code, result.output + str(result.exception)
    return result


def child(tmp_path: Path, changes: str = "") -> Path:
    path = tmp_path / "child.py"
    path.write_text(CHILD.format(changes=changes))
    return path


def leftovers(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if is_leftover(path))


def test_a_kill_at_any_moment_loses_no_finished_batch(
    folder: Path, tmp_path: Path, batch_sizes: list[int]
) -> None:
    """One run after the other is killed from outside until one is through; together they do every row once."""
    slow = "batch = aligner.predict_batch\naligner.predict_batch = lambda *a: time.sleep(0.03) or batch(*a)"
    script, out = child(tmp_path, slow), tmp_path / "out.star"
    log = tmp_path / ".out.star.progress-1-of-1"
    running = subprocess.Popen(
        [sys.executable, script, *command(folder, out)],
        env=environment(threads=torch.get_num_threads()),
        stderr=subprocess.DEVNULL,
    )
    while not (log.exists() and log.stat().st_size) and running.poll() is None:
        time.sleep(0.005)
    time.sleep(random.uniform(0, 0.25))
    running.kill()
    running.wait()
    assert leftovers(tmp_path) == [log] and not out.exists()
    result = predict(folder, out)
    done = COUNT - sum(batch_sizes)
    assert done % BATCH == 0 and 0 < done < COUNT
    assert f"continuing: {done} of {COUNT} particles were done" in result.stderr
    assert out.read_bytes() == (folder / "whole.star").read_bytes()
    assert leftovers(tmp_path) == []


def test_a_kill_inside_a_write_and_one_before_the_last_moment(
    folder: Path, tmp_path: Path, batch_sizes: list[int]
) -> None:
    """The fourth batch is written by half; then all is computed but the file has not got its name."""
    torn = (
        "write, calls = batchlog.BatchLog._write, []\n"
        "def tearing(log, content):\n"
        "    calls.append(1)\n"
        "    write(log, content if len(calls) < 5 else content[: len(content) // 2])\n"
        "    if len(calls) == 5: os.kill(os.getpid(), signal.SIGKILL)\n"
        "batchlog.BatchLog._write = tearing"
    )
    unnamed = "os.replace = lambda *names: os.kill(os.getpid(), signal.SIGKILL)"
    out = tmp_path / "out.star"
    for changes in (torn, unnamed):
        arguments = [sys.executable, child(tmp_path, changes), *command(folder, out)]
        killed = subprocess.run(
            arguments, env=environment(threads=torch.get_num_threads()), capture_output=True, text=True
        )
        assert killed.returncode == -9 and not out.exists()
    assert f"continuing: {3 * BATCH} of {COUNT}" in killed.stderr
    assert len(leftovers(tmp_path)) == 2
    predict(folder, out)
    assert batch_sizes == []
    assert out.read_bytes() == (folder / "whole.star").read_bytes()
    assert leftovers(tmp_path) == []


def interrupt_after(monkeypatch: pytest.MonkeyPatch, batch_count: int) -> None:
    """Ctrl-C when so many batches were logged."""
    logged = []
    columns = pose_files.prediction_columns

    def stopping(predictions: object) -> object:
        if len(logged) == batch_count:
            raise KeyboardInterrupt
        logged.append(1)
        return columns(predictions)

    monkeypatch.setattr(pose_files, "prediction_columns", stopping)


@pytest.fixture
def interrupted(folder: Path, tmp_path: Path) -> Path:
    """An output of which five batches are done."""
    with pytest.MonkeyPatch.context() as patch:
        interrupt_after(patch, 5)
        result = predict(folder, tmp_path / "out.star", code=130)
    assert "a prediction when run again" in result.stderr
    assert len(leftovers(tmp_path)) == 1
    return tmp_path / "out.star"


def test_other_options_and_rows_start_anew(folder: Path, interrupted: Path, batch_sizes: list[int]) -> None:
    said = predict(folder, interrupted, "--part", "test").stderr
    assert "continuing" not in said
    assert "starting anew: 40 particles were done with other options or files" in said
    assert sum(batch_sizes) == COUNT // 2 == len(read_star(interrupted))
    assert leftovers(interrupted.parent) == []


def test_another_precision_starts_anew_and_a_line_says_which(
    folder: Path, interrupted: Path, batch_sizes: list[int]
) -> None:
    said = predict(folder, interrupted, "--device", "cpu", "--precision", "bfloat16").stderr
    assert "the network runs on cpu, bfloat16" in said
    assert "starting anew: 40 particles" in said and sum(batch_sizes) == COUNT
    assert interrupted.read_bytes() != (folder / "whole.star").read_bytes()


def test_a_device_that_is_not_there_is_refused_before_any_work(folder: Path, tmp_path: Path) -> None:
    said = predict(folder, tmp_path / "out.star", "--device", "cuda:7", code=1).stderr
    assert "expected a device out of auto, cpu" in said and "found 'cuda:7'" in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("changed", ["nothing", "table", "weights", "images"])
def test_changed_inputs_start_anew(
    folder: Path, tmp_path: Path, batch_sizes: list[int], changed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, out = tmp_path / "work", tmp_path / "out.star"
    subprocess.run(["cp", "-rp", folder, work], check=True)
    with monkeypatch.context() as patch:
        interrupt_after(patch, 5)
        predict(work, out, code=130)
    batch_sizes.clear()
    if changed == "table":
        table = read_star(work / "particles.star")
        write_star(with_columns(table, {"label": ["x"] * COUNT}), work / "particles.star")
    elif changed == "weights":
        model = load_model(work / "model")
        with torch.no_grad():
            model.network.dense.bias += 1
        save_model(model, work / "model")
    elif changed == "images":
        write_stack(work / "particles.mrcs", [torch.randn(COUNT, BOX, BOX)], COUNT, BOX, PIXEL_SIZE)
    result = predict(work, out)
    assert ("continuing: 40 of 90" in result.stderr) == (changed == "nothing")
    assert sum(batch_sizes) == (COUNT - 5 * BATCH if changed == "nothing" else COUNT)
    assert (out.read_bytes() == (folder / "whole.star").read_bytes()) == (changed == "nothing")


@pytest.mark.parametrize("some", [("--shard", "1/2"), ("--part", "test")])
def test_some_rows_of_changed_images_start_anew(
    folder: Path,
    tmp_path: Path,
    batch_sizes: list[int],
    monkeypatch: pytest.MonkeyPatch,
    some: tuple[str, str],
) -> None:
    work, out = tmp_path / "work", tmp_path / "out.star"
    subprocess.run(["cp", "-rp", folder, work], check=True)
    with monkeypatch.context() as patch:
        interrupt_after(patch, 2)
        predict(work, out, *some, code=130)
    write_stack(work / "particles.mrcs", [torch.randn(COUNT, BOX, BOX)], COUNT, BOX, PIXEL_SIZE)
    batch_sizes.clear()
    assert "starting anew: 16 particles" in predict(work, out, *some).stderr
    assert sum(batch_sizes) == len(read_star(out))


def test_two_processes_write_what_one_does_even_after_one_has_failed(folder: Path, tmp_path: Path) -> None:
    """First started without a launcher, that would end the one that waits: the lost connection tells it."""
    failing = (
        "batch = aligner.predict_batch\n"
        "def failing(model, particles, *others):\n"
        "    if particles.names[0].startswith('000073'): os._exit(3)\n"
        "    return batch(model, particles, *others)\n"
        "aligner.predict_batch = failing"
    )
    out, logs = tmp_path / "out.star", [tmp_path / f".out.star.progress-{rank}-of-2" for rank in (1, 2)]
    arguments = [sys.executable, str(child(tmp_path, failing)), *command(folder, out)]
    group = environment(threads=torch.get_num_threads()) | {
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }
    running = [
        subprocess.Popen(arguments, env=group | {"RANK": rank}, stderr=subprocess.PIPE, text=True)
        for rank in "01"
    ]
    errors = [process.communicate(timeout=120)[1] for process in running]
    assert [process.returncode for process in running] == [1, 3]
    assert errors[0].strip().splitlines()[-1].startswith("Error: expected all 2 processes")
    assert leftovers(tmp_path) == logs and not out.exists()

    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    arguments = [*launch, str(child(tmp_path)), *command(folder, out)]
    done = subprocess.run(
        arguments,
        env=environment(threads=torch.get_num_threads()),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("continuing: 48 of 48 particles were done") == 1
    assert done.stdout.count(f"{COUNT} poses in {out}") == 1
    assert out.read_bytes() == (folder / "whole.star").read_bytes()
    assert leftovers(tmp_path) == []


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def test_joined_shards_are_the_whole(folder: Path, tmp_path: Path) -> None:
    shards = [tmp_path / f"{index}.star" for index in (1, 2, 3)]
    for index, out in enumerate(shards, 1):
        predict(folder, out, "--shard", f"{index}/3")
    assert [len(read_star(out)) for out in shards] == [32, 32, 26]
    # as the README says
    names = " ".join(path.name for path in shards[1:])
    joining = f"(sed '$d' {shards[0].name}; grep -h @ {names}; echo) > joined.star"
    subprocess.run(joining, shell=True, cwd=tmp_path, check=True)
    assert (tmp_path / "joined.star").read_bytes() == (folder / "whole.star").read_bytes()


def test_the_input_is_never_replaced(folder: Path) -> None:
    table = folder / "particles.star"
    before = table.read_bytes()
    assert "another name at --out" in predict(folder, table, "--overwrite", code=1).stderr
    assert table.read_bytes() == before


def test_the_result_hardly_depends_on_the_size_of_a_batch(folder: Path, tmp_path: Path) -> None:
    predict(folder, tmp_path / "out.star", "--batch-size", 40)
    found, expected = read_star(tmp_path / "out.star"), read_star(folder / "whole.star")
    for column in ("cryoforumTrace", "cryoforumA11", "rlnParticleFigureOfMerit", "rlnAngleTilt"):
        np.testing.assert_allclose(
            number_column(found, column), number_column(expected, column), rtol=1e-3, atol=1e-3
        )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--shard", "0/3"), "expected --shard as 1/4"),
        (("--shard", "4/3"), "found '4/3'"),
        (("--shard", "half"), "found 'half'"),
        (("--shard", "1/13"), "at most 12, one for each batch of 8 of 90 particles, found 13"),
        (("--batch-size", 0), "--batch-size of 1 or more, found 0"),
    ],
)
def test_bad_options(folder: Path, tmp_path: Path, options: tuple[object, ...], words: str) -> None:
    assert words in predict(folder, tmp_path / "out.star", *options, code=1).stderr
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_keeps_the_finished_batches(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch_sizes: list[int]
) -> None:
    out = tmp_path / "out.star"

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(pose_files, "write_particle_file", full)
        lines = predict(folder, out, code=1).stderr.strip().splitlines()
    assert lines[-1] == "Error: No space left on device" and not out.exists()
    batch_sizes.clear()
    predict(folder, out)
    assert batch_sizes == [] and out.read_bytes() == (folder / "whole.star").read_bytes()


def test_a_folder_that_cannot_be_written_is_told_before_any_work(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch_sizes: list[int]
) -> None:
    assert "no folder" in predict(folder, tmp_path / "none" / "further" / "out.star", code=1).stderr
    (tmp_path / ".out.star.progress-1-of-1").mkdir()
    assert "out.star.progress-1-of-1: Is a directory" in predict(folder, tmp_path / "out.star", code=1).stderr
    assert batch_sizes == []


@pytest.mark.parametrize(("rows", "shares", "size"), [(90, 3, 8), (1, 4, 8), (64, 8, 8), (1000, 7, 1)])
def test_shares_are_contiguous_whole_batches(rows: int, shares: int, size: int) -> None:
    found = shares_of_batches(rows, shares, size)
    assert [row for share in found for row in share] == list(range(rows))
    assert len(found) == shares and all(share.start % size == 0 for share in found if share)
    lengths = [len(share) for share in found]
    assert max(lengths) - min(lengths) <= 2 * size


class FailingImages:
    """Images whose row 5 cannot be read."""

    shape = (8, 4, 4)

    def __len__(self) -> int:
        return 8

    def __getitem__(self, rows: torch.Tensor) -> torch.Tensor:
        if 5 in rows.tolist():
            raise ValueError("row 5")
        return rows[:, None, None].expand(-1, 4, 4).float()


def test_reading_ahead_keeps_the_order_and_passes_errors_on() -> None:
    names = tuple("abcdefgh")
    particles = Particles(FailingImages(), 1.0, names)
    seen: list[str] = []

    def read() -> Iterator[Particles]:
        for batch in loaded_batches(particles, 3):
            assert float(batch.images[:, 0, 0][0]) == names.index(batch.names[0])
            seen.extend(batch.names)
            yield batch

    with pytest.raises(ValueError, match="row 5"):
        list(read())
    assert seen == ["a", "b", "c"]
    abandoned = loaded_batches(particles.select(torch.arange(5)), 2)
    next(abandoned)
    abandoned.close()


def test_a_log_file_gets_lines_of_progress_with_the_time_left(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cryoforum.runtime.progress.LINE_SECONDS", 0.0)
    lines = predict(folder, tmp_path / "out.star").stderr.splitlines()
    progress = [line for line in lines if "aligning" in line and "images/s" in line]
    assert len(progress) >= COUNT // BATCH
    assert all(re.search(r"\d:\d\d:\d\d (left|in all)", line) for line in progress)
