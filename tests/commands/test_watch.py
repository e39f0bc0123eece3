"""On the fly: whatever comes in whatever order, killed or not, the result is that of all at once."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.children import environment, held_by_another_process
from helpers.messages import messages
from typer.testing import CliRunner

from cryoforum.alignment import aligner
from cryoforum.cli import app
from cryoforum.commands.pose_files import PoseOutput
from cryoforum.commands.predict import predict
from cryoforum.commands.predict_request import PredictRequest
from cryoforum.commands.watch import portions, results
from cryoforum.commands.watch.job import WatchRequest
from cryoforum.commands.watch.sums import load_sums
from cryoforum.commands.watch.watch import watch
from cryoforum.config import preset
from cryoforum.curation.selection import quantile_threshold
from cryoforum.dataset.image_grid import ImageGrid
from cryoforum.dataset.levelling import levelled
from cryoforum.dataset.particle_table import ParticleTable, number_column, select_rows, with_columns
from cryoforum.dataset.particles import Particles
from cryoforum.io.mrc.maps import read_volume
from cryoforum.io.mrc.stacks import write_stack
from cryoforum.io.particle_files import write_particle_file
from cryoforum.io.relion.particles import particles_from_table, table_from_particles
from cryoforum.io.relion.star_files import read_star, write_star
from cryoforum.network.model import OrientationNetwork, TrainedModel
from cryoforum.network.model_folder import load_model, save_model
from cryoforum.reconstruction.inversion import HalfSums, reconstruct
from cryoforum.report.watch import write_watch_report
from cryoforum.storage.files import is_leftover

BOX, PIXEL_SIZE, EVERY = 32, 4.0, 0.05
CHILD = """
import signal, sys, time
from cryoforum.alignment import aligner
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background would ignore it
batch = aligner.predict_batch
aligner.predict_batch = lambda *a: time.sleep(0.05) or batch(*a)
from cryoforum.cli import app
app(sys.argv[1:])
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained network without a reference: what it says is nonsense, but always the same nonsense."""
    folder = tmp_path_factory.mktemp("watching") / "model"
    torch.manual_seed(3)
    settings = preset("tiny")
    network = replace(settings.network, widths=(4, 8), head="qcqp")
    config = replace(settings, network=network, preprocessing=replace(settings.preprocessing, box=BOX))
    trained = TrainedModel(
        OrientationNetwork(config.network, BOX).eval(),
        config,
        BOX,
        PIXEL_SIZE,
        1.0,
        [{"step": 1.0}],
        {"a": "test"},
    )
    save_model(trained, folder)
    return folder


@pytest.fixture(autouse=True)
def no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than all else."""
    monkeypatch.setattr(results, "write_watch_report", lambda *arguments: None)


@pytest.fixture
def posed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many particles are predicted from now on, batch by batch."""
    sizes: list[int] = []
    compute_batch = aligner.predict_batch

    def counted(model: TrainedModel, batch: Particles, *others: Any) -> object:
        sizes.append(len(batch))
        return compute_batch(model, batch, *others)

    monkeypatch.setattr(aligner, "predict_batch", counted)
    return sizes


def images_of(start: int, stop: int) -> torch.Tensor:
    """Images that depend on their numbers alone, each of its own strength."""
    generators = (torch.Generator().manual_seed(number) for number in range(start, stop))
    return torch.stack([torch.randn(BOX, BOX, generator=generator) for generator in generators])


def frame(start: int, stop: int, stack: str = "p.mrcs") -> ParticleTable:
    names = tuple(f"{row + 1:06d}@{stack}" for row in range(stop - start))
    return table_from_particles(Particles(images_of(start, stop), PIXEL_SIZE, names), names)


def deliver(folder: Path, start: int, stop: int) -> Path:
    """p.star and p.mrcs of these particles, written a minute ago."""
    folder.mkdir(parents=True, exist_ok=True)
    write_stack(folder / "p.mrcs", [images_of(start, stop)], stop - start, BOX, PIXEL_SIZE)
    os.utime(folder / "p.mrcs", (time.time() - 60,) * 2)
    write_star(frame(start, stop), folder / "p.star")
    return folder / "p.star"


def look(
    live: Path, model: Path, out: Path, heard: Callable[[str], object] = str, **options: Any
) -> list[str]:
    """Process what is there (or as options say); what was told, each line to ``heard`` at once."""
    choice: dict[str, Any] = {"every_seconds": EVERY, "once": "until_idle_seconds" not in options}
    with messages(heard) as told:
        watch(WatchRequest(live, model, out, **{**choice, **options}))
    return told


def at_once(tables: Sequence[Path], model: Path, folder: Path) -> ParticleTable:
    """All particles of all files in one, predicted in one go; image names are absolute."""
    folder.mkdir()
    frames = [read_star(path) for path in tables]
    for path, each in zip(tables, frames, strict=True):
        names = each.particles["rlnImageName"].str.replace("@", f"@{path.parent.absolute()}/")
        each.particles["rlnImageName"] = names
    rows = [row for each in frames for row in each.particles.to_dict("records")]
    whole = replace(frames[0], particles=frames[0].particles.iloc[:0].from_records(rows).astype(str))
    write_star(whole, folder / "whole.star")
    predict(PredictRequest(model, [folder / "whole.star"], PoseOutput(folder / "predicted.star")))
    return read_star(folder / "predicted.star")


def identities(table: ParticleTable) -> list[bytes]:
    """The images themselves tell which particles a file has."""
    images = particles_from_table(table).images
    return [image.numpy().tobytes() for image in images[torch.arange(len(images))]]


def assert_is_that_of_all_at_once(out: Path, tables: Sequence[Path], model: Path, folder: Path) -> None:
    """Same particles, predictions, threshold, half maps and map, and no temporary file."""
    expected, found = at_once(tables, model, folder), read_star(out / "all.star")
    row_of = {image: row for row, image in enumerate(identities(expected))}
    order = [row_of[image] for image in identities(found)]
    assert sorted(order) == list(range(len(expected)))
    for column in ("cryoforumTrace", "cryoforumExpectedErrorDeg", "cryoforumA11"):
        a, b = number_column(found, column), number_column(expected, column)
        assert a is not None and b is not None
        np.testing.assert_allclose(a, b[order], rtol=1e-3, atol=1e-3)
    errors = number_column(found, "cryoforumExpectedErrorDeg")
    assert errors is not None
    threshold = quantile_threshold(torch.from_numpy(errors), 0.75)
    kept = read_star(out / "kept.star")
    assert kept.particles.equals(select_rows(found, errors <= threshold).particles)
    maps = reconstruct(levelled(particles_from_table(kept)))
    for name, volume in (("half1", maps.half1), ("half2", maps.half2), ("map", maps.full)):
        torch.testing.assert_close(
            read_volume(out / "map" / f"{name}.mrc").voxels, volume.voxels, rtol=1e-3, atol=1e-4
        )
    assert [path for path in out.rglob("*") if is_leftover(path)] == []


def test_what_comes_in_pieces_gives_what_all_at_once_gives(
    tmp_path: Path, model: Path, posed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "write_watch_report", write_watch_report)
    live, out = tmp_path / "live", tmp_path / "out"
    tables = [deliver(live / "a", 0, 30)]
    assert "no reference" in look(live, model, out)[0]
    assert sum(posed) == 30 == len(read_star(out / "all.star"))
    tables.append(deliver(live / "deep" / "er" / "b", 30, 70))
    tables.append(deliver(live / "0", 70, 95))
    said = " ".join(look(live, model, out))
    assert sum(posed) == 95 and "95 particles, " in said and "left out" not in said
    assert "95 particles, " not in " ".join(look(live, model, out))
    assert sum(posed) == 95
    assert_is_that_of_all_at_once(out, tables, model, tmp_path / "at_once")
    page = (out / "report.html").read_text()
    assert "95 particles so far" in page and "Resolution against particles" in page
    assert "optimistic" in page
    counts = [int(line.split(",")[1]) for line in (out / "history.csv").read_text().splitlines()[1:]]
    assert counts == sorted(set(counts)) and (counts[0], counts[-1]) == (30, 95)


def test_cryosparc_files_are_taken(tmp_path: Path, model: Path, posed: list[int]) -> None:
    live, out = tmp_path / "live", tmp_path / "out"
    table = deliver(live, 0, 12)
    write_particle_file(read_star(table), live / "p.cs")
    table.unlink()
    look(live, model, out, pattern="*.cs")
    assert sum(posed) == 12 == len(read_star(out / "all.star"))
    assert sorted(identities(read_star(out / "all.star"))) == sorted(
        image.numpy().tobytes() for image in images_of(0, 12)
    )


def test_its_own_results_are_no_input_however_the_folder_is_called(
    tmp_path: Path, model: Path, posed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    project = tmp_path / "project"
    deliver(project / "Extract", 0, 10)
    (tmp_path / "link").symlink_to(project)
    monkeypatch.chdir(project)
    for folder in (Path("../project"), tmp_path / "link", Path(".")):
        look(folder, model, Path("live"))
    assert sum(posed) == 10 == len(read_star(project / "live" / "all.star"))


def test_images_that_are_gone_do_not_stop_it(tmp_path: Path, model: Path, posed: list[int]) -> None:
    live, out = tmp_path / "live", tmp_path / "out"
    deliver(live / "a", 0, 10)
    look(live, model, out)
    (live / "a" / "p.mrcs").unlink()
    (live / "a" / "p.star").unlink()
    deliver(live / "b", 10, 20)
    with pytest.raises(ValueError, match="p.mrcs not found"):
        look(live, model, out, keep=0.5)
    assert posed == [10, 10] and len(read_star(out / "all.star")) == 20


def test_a_file_that_was_mended_is_taken_though_its_images_are_the_same(
    tmp_path: Path, model: Path, posed: list[int]
) -> None:
    live, out = tmp_path / "live", tmp_path / "out"
    path, halves = deliver(live, 0, 10), tmp_path / "halves"
    right = read_star(path)
    names = right.particles["rlnImageName"].tolist()
    for half, known in enumerate((names[:5], names[5:]), 1):
        save_model(replace(load_model(model), parts=dict.fromkeys(known, "train")), halves / f"half{half}")
    write_star(with_columns(right, {"rlnRandomSubset": np.array(5 * [2] + 5 * [1])}), path)

    def mend(line: str) -> None:
        if "left out until it changes" in line:
            write_star(right, path)

    told = look(live, halves, out, heard=mend, until_idle_seconds=1.0)
    assert any("left out until it changes" in line for line in told)
    assert sum(posed) == 10


def test_a_clock_that_is_ahead_delays_nothing_for_good(tmp_path: Path, model: Path, posed: list[int]) -> None:
    live = tmp_path / "live"
    deliver(live, 0, 10)
    os.utime(live / "p.mrcs", (time.time() + 3600,) * 2)
    look(live, model, tmp_path / "out")
    assert posed == [10]


def test_particles_of_the_training_are_known_under_other_names(tmp_path: Path, model: Path) -> None:
    live, knowing = tmp_path / "live", tmp_path / "knowing"
    path = deliver(live, 0, 10)
    particles = particles_from_table(read_star(path))
    assert particles.sources is not None
    learned = dict.fromkeys(particles.sources.tolist(), "train")
    parts = {f"{row}@moved/elsewhere.mrcs": "train" for row in range(10)}
    save_model(replace(load_model(model), parts=parts, sources=learned), knowing)
    told = look(live, knowing, tmp_path / "out")
    assert any("halves are not kept apart" in line for line in told), told


def test_images_of_another_box_come_to_that_of_the_model(tmp_path: Path, model: Path) -> None:
    live, out = tmp_path / "live", tmp_path / "out"
    deliver(live / "a", 0, 30)
    fine, half = live / "fine", BOX * 2
    fine.mkdir()
    images = torch.randn(20, half, half, generator=torch.Generator().manual_seed(1))
    write_stack(fine / "q.mrcs", [images], 20, half, PIXEL_SIZE / 2)
    os.utime(fine / "q.mrcs", (time.time() - 60,) * 2)
    names = tuple(f"{row + 1}@q.mrcs" for row in range(20))
    write_star(table_from_particles(Particles(images, PIXEL_SIZE / 2, names), names), fine / "q.star")
    told = look(live, model, out)
    assert any("resampled from 64 px" in line for line in told), told
    found = read_star(out / "all.star")
    assert len(found) == 50 and found.optics is not None
    assert sorted(found.optics["rlnImageSize"]) == ["32", "64"]
    assert read_volume(out / "map" / "map.mrc").voxels.shape == (BOX,) * 3


def test_two_half_models_keep_what_they_learned_from_in_their_half(tmp_path: Path, model: Path) -> None:
    live, halves = tmp_path / "live", tmp_path / "halves"
    deliver(live, 0, 30)
    names = frame(0, 30).particles["rlnImageName"].tolist()
    learned = {1: names[:10], 2: names[10:20]}
    for half, known in learned.items():
        save_model(replace(load_model(model), parts=dict.fromkeys(known, "train")), halves / f"half{half}")
    look(live, halves, tmp_path / "out")
    found = read_star(tmp_path / "out" / "all.star")
    columns = [number_column(found, name) for name in ("rlnRandomSubset", "cryoforumModelHalf")]
    assert columns[0] is not None and columns[1] is not None
    np.testing.assert_array_equal(columns[0], columns[1])
    numbers = [int(name.split("@")[0]) for name in found.particles["rlnImageName"]]
    half_of = dict(zip(numbers, columns[0].tolist(), strict=True))
    assert [half_of[number] for number in range(1, 21)] == 10 * [1] + 10 * [2]
    assert {half_of[number] for number in range(21, 31)} == {1, 2}


def test_of_a_file_that_grows_only_the_new_rows_are_predicted(
    tmp_path: Path, model: Path, posed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(portions, "ROWS", 16)
    live, out = tmp_path / "live", tmp_path / "out"
    path = deliver(live, 0, 40)
    look(live, model, out)
    assert posed == [16, 16, 8]
    deliver(live, 0, 60)
    look(live, model, out)
    assert posed == [16, 16, 8, 16, 4]
    assert_is_that_of_all_at_once(out, [path], model, tmp_path / "at_once")


@pytest.mark.parametrize("change", ["value", "fewer", "optics"])
def test_a_changed_file_is_predicted_again(
    tmp_path: Path, model: Path, posed: list[int], change: str
) -> None:
    live, out = tmp_path / "live", tmp_path / "out"
    tables = [deliver(live / "a", 0, 30), deliver(live / "b", 30, 50)]
    look(live, model, out)
    table = read_star(tables[0])
    assert table.optics is not None
    if change == "value":
        table.particles.loc[29, "rlnOpticsGroup"] = "2"
        table.optics.loc[1] = table.optics.loc[0]
        table.optics.loc[1, ["rlnOpticsGroup", "rlnOpticsGroupName"]] = ["2", "second"]
    elif change == "fewer":
        table = select_rows(table, range(1, 30))
    else:
        table.optics["rlnVoltage"] = "200.000000"
    write_star(table, tables[0])
    told = look(live, model, out)
    assert posed == [30, 20, len(table)]
    assert not any("in another file" in line for line in told)
    assert len(list((out / "predicted").iterdir())) == 2
    assert_is_that_of_all_at_once(out, tables, model, tmp_path / "at_once")


def test_a_half_written_star_file_is_told_once_and_waited_for(tmp_path: Path, model: Path) -> None:
    live, out = tmp_path / "live", tmp_path / "out"
    path = deliver(live, 0, 30)
    text = path.read_text()
    (live / "p.star").write_text(text[: text.rindex("000020@") + 9])
    told = look(live, model, out, until_idle_seconds=6 * EVERY)
    assert len([line for line in told if "p.star" in line]) == 1 and "cut off" in told[0]
    assert not (out / "all.star").exists()
    path.write_text(text)
    look(live, model, out)
    assert_is_that_of_all_at_once(out, [path], model, tmp_path / "at_once")


def test_a_file_that_is_being_written_is_left_alone_until_it_rests(
    tmp_path: Path, model: Path, posed: list[int]
) -> None:
    """Line by line, each shorter version would make a valid file."""
    live, out = tmp_path / "live", tmp_path / "out"
    path = deliver(live, 0, 40)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-30]))

    def write() -> None:
        for line in lines[-30:]:
            with open(path, "a") as file:
                file.write(line)
            time.sleep(0.03)

    writer = threading.Thread(target=write)
    writer.start()
    look(live, model, out, every_seconds=0.3, until_idle_seconds=1.5)
    writer.join()
    assert posed == [40]
    assert len(read_star(out / "all.star")) == 40


@pytest.mark.parametrize("missing", ["all", "half"])
def test_half_written_stacks_are_waited_for(tmp_path: Path, model: Path, missing: str) -> None:
    live, out = tmp_path / "live", tmp_path / "out"
    path = deliver(live, 0, 30)
    whole = (live / "p.mrcs").read_bytes()
    if missing == "all":
        (live / "p.mrcs").unlink()
    else:
        (live / "p.mrcs").write_bytes(whole[: len(whole) // 2])

    reason = "not found" if missing == "all" else "cut off"
    told: list[str] = []

    def complete() -> None:
        deadline = time.monotonic() + 30
        while not any(reason in line for line in told) and time.monotonic() < deadline:
            time.sleep(0.01)
        (live / "rest").write_bytes(whole)  # in one step: a look in the midst of it may tell another length
        (live / "rest").replace(live / "p.mrcs")

    writer = threading.Thread(target=complete)
    writer.start()
    look(live, model, out, heard=told.append, until_idle_seconds=1.0)
    writer.join()
    assert len([line for line in told if reason in line]) == 1
    assert_is_that_of_all_at_once(out, [path], model, tmp_path / "at_once")


def test_one_bad_file_stops_nothing_and_is_tried_again_when_its_images_change(
    tmp_path: Path, model: Path, posed: list[int]
) -> None:
    live, out = tmp_path / "live", tmp_path / "out"
    tables = [deliver(live / "a", 0, 20), deliver(live / "b", 20, 40)]
    images = images_of(0, 20)
    images[7, 3, 3] = torch.nan
    write_stack(live / "a" / "p.mrcs", [images], 20, BOX, PIXEL_SIZE)
    os.utime(live / "a" / "p.mrcs", (time.time() - 60,) * 2)
    (live / "job.star").write_text("data_job\n\n_rlnJobTypeLabel relion.extract\n")
    told = look(live, model, out, until_idle_seconds=6 * EVERY)
    assert len([line for line in told if "slice 8: found pixels that are NaN" in line]) == 1
    assert len([line for line in told if "job.star" in line]) == 1
    assert posed == [20] and len(read_star(out / "all.star")) == 20
    deliver(live / "a", 0, 20)
    look(live, model, out)
    assert_is_that_of_all_at_once(out, tables, model, tmp_path / "at_once")


def test_a_file_of_another_dialect_is_left_out(tmp_path: Path, model: Path) -> None:
    live, out = tmp_path / "live", tmp_path / "out"
    tables = [deliver(live / "a", 0, 20), deliver(live / "b", 20, 40)]
    old = read_star(tables[1])
    write_star(
        with_columns(
            replace(old, optics=None),
            {"rlnDetectorPixelSize": ["4"] * 20, "rlnMagnification": ["10000"] * 20},
        ),
        tables[1],
    )
    told = look(live, model, out)
    assert len([line for line in told if "b/p.star: expected data_optics as in" in line]) == 1
    assert_is_that_of_all_at_once(out, tables[:1], model, tmp_path / "at_once")


def test_an_image_that_two_files_name_counts_once(tmp_path: Path, model: Path) -> None:
    live, out = tmp_path / "live", tmp_path / "out"
    path = deliver(live / "a", 0, 30)
    (live / "b").mkdir()
    again = select_rows(read_star(path), range(10, 20))
    names = again.particles["rlnImageName"].str.replace("@", "@../a/")
    write_star(with_columns(again, {"rlnImageName": names.tolist()}), live / "b" / "some.star")
    told = look(live, model, out)
    assert len([line for line in told if "10 of 10 images were predicted in another file" in line]) == 1
    assert_is_that_of_all_at_once(out, [path], model, tmp_path / "at_once")


def test_images_of_one_name_in_two_folders_are_two(tmp_path: Path, model: Path) -> None:
    live, out = tmp_path / "live", tmp_path / "out"
    deliver(live / "a", 0, 20)
    deliver(live / "b", 20, 40)
    look(live, model, out)
    names = read_star(out / "all.star").particles["rlnImageName"]
    assert names.is_unique and len(names) == 40


def test_rows_are_joined_once_though_one_of_the_files_could_not_be_written(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    live, out = tmp_path / "live", tmp_path / "out"
    deliver(live / "a", 0, 20)
    look(live, model, out)
    request = WatchRequest(live, model, out, max_error_deg=180.0)
    found = results.Results(request, "C1", ImageGrid(BOX, PIXEL_SIZE))
    found.update()
    deliver(live / "b", 20, 40)
    look(live, model, tmp_path / "other")
    _, new = portions.listed_portions(tmp_path / "other" / "predicted")
    found.add(new)

    def full_disk(tables: Sequence[ParticleTable]) -> bool:
        raise OSError("no space left")

    with monkeypatch.context() as patched, pytest.raises(OSError, match="no space"):
        patched.setattr(found._kept, "append", full_disk)
        found.update()
    found.update()
    joined = identities(read_star(out / "all.star"))
    assert len(joined) == len(set(joined)) == 40


def test_a_stack_may_have_an_at_sign_in_its_name(tmp_path: Path, model: Path) -> None:
    live, out = tmp_path / "live", tmp_path / "out"
    deliver(live / "a@b", 0, 20).unlink()
    write_star(frame(0, 20, "a@b/p.mrcs"), live / "p.star")
    look(live, model, out)
    assert len(read_star(out / "all.star")) == 20


def test_names_that_lead_to_the_images_from_the_output_stay_as_they_are(tmp_path: Path, model: Path) -> None:
    """As of a RELION project, whose names are relative to its folder."""
    live = tmp_path / "Extract" / "job001"
    path = deliver(live, 0, 20)
    names = [f"{row + 1:06d}@Extract/job001/p.mrcs" for row in range(20)]
    write_star(with_columns(read_star(path), {"rlnImageName": names}), path)
    look(live, model, tmp_path / "live")
    assert read_star(tmp_path / "live" / "all.star").particles["rlnImageName"].tolist() == names


def test_half_sets_are_kept_or_drawn_once_and_for_all(tmp_path: Path, model: Path) -> None:
    live, out = tmp_path / "live", tmp_path / "out"
    given = deliver(live / "given", 0, 30)
    half_sets = torch.arange(30) % 3 % 2 + 1
    write_star(with_columns(read_star(given), {"rlnRandomSubset": half_sets}), given)
    deliver(live / "drawn", 30, 130)
    look(live, model, out)
    first = halves_by_image(out / "all.star")
    assert [first[image.numpy().tobytes()] for image in images_of(0, 30)] == half_sets.tolist()
    drawn = [first[image.numpy().tobytes()] for image in images_of(30, 130)]
    assert 25 < drawn.count(1) < 75 and drawn.count(1) + drawn.count(2) == 100
    look(live, model, tmp_path / "again")
    assert halves_by_image(tmp_path / "again" / "all.star") == first


def halves_by_image(path: Path) -> dict[bytes, float]:
    table = read_star(path)
    halves = number_column(table, "rlnRandomSubset")
    assert halves is not None
    return dict(zip(identities(table), halves.tolist(), strict=True))


def test_the_threshold_stays_where_the_first_particles_set_it(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "FIRST_COUNT", 30)
    live, out = tmp_path / "live", tmp_path / "out"

    def errors(name: str) -> np.ndarray:
        found = number_column(read_star(out / name), "cryoforumExpectedErrorDeg")
        assert found is not None
        return found

    deliver(live / "a", 0, 40)
    look(live, model, out)
    threshold = quantile_threshold(torch.from_numpy(errors("all.star")[:30]), 0.75)
    assert len(errors("kept.star")) == (errors("all.star") <= threshold).sum()
    deliver(live / "b", 40, 80)
    look(live, model, out)
    assert json.loads((out / "watch.json").read_text())["max_error_deg"] == pytest.approx(threshold, rel=1e-6)
    assert sorted(errors("kept.star")) == sorted(errors("all.star")[errors("all.star") <= threshold])
    middle = float(np.median(errors("all.star")))
    look(live, model, out, max_error_deg=middle)
    assert sorted(errors("kept.star")) == sorted(errors("all.star")[errors("all.star") <= middle])
    maps = reconstruct(levelled(particles_from_table(read_star(out / "kept.star"))))
    torch.testing.assert_close(
        read_volume(out / "map" / "map.mrc").voxels, maps.full.voxels, rtol=1e-3, atol=1e-4
    )


def test_torn_results_are_made_again(tmp_path: Path, model: Path, posed: list[int]) -> None:
    """As a power cut may leave them."""
    live, out = tmp_path / "live", tmp_path / "out"
    tables = [deliver(live / "a", 0, 20), deliver(live / "b", 20, 40)]
    look(live, model, out)
    portion = min((out / "predicted").iterdir())
    portion.write_bytes(portion.read_bytes()[:-40])
    for name in ("sums.npz", "all.star"):
        (out / name).write_bytes((out / name).read_bytes()[:1000])
    look(live, model, out)
    assert posed == [20, 20, 20]
    assert_is_that_of_all_at_once(out, tables, model, tmp_path / "at_once")


def command(live: Path, model: Path, out: Path, *options: object) -> list[str]:
    arguments = ("watch", live, "--model", model, "--out", out, "--every", EVERY, *options)
    return [str(argument) for argument in arguments]


def start(tmp_path: Path, *arguments: str) -> subprocess.Popen[str]:
    script = tmp_path / "child.py"
    script.write_text(CHILD)
    command = [sys.executable, str(script), *arguments]
    return subprocess.Popen(command, env=environment(threads=1), stderr=subprocess.PIPE, text=True)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As in the processes of `start`: the last digit may depend on the number of threads."""
    count = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(count)


def wait_for_work(running: subprocess.Popen[str], out: Path) -> None:
    """Until the process is past its imports: it has changed something."""
    begun = time.time()
    while running.poll() is None:
        changes = [path.stat().st_mtime for path in out.rglob("*") if path.exists()] if out.exists() else []
        if changes and max(changes) > begun:
            return
        time.sleep(0.005)


def grids_of(sums: HalfSums) -> tuple[torch.Tensor, ...]:
    return (*sums.data, *sums.weight)


def test_kills_at_any_moment_lose_and_double_nothing(tmp_path: Path, model: Path, one_thread: None) -> None:
    live, out = tmp_path / "live", tmp_path / "out"
    tables = [deliver(live / str(number), 20 * number, 20 * number + 20) for number in range(8)]
    for _ in range(3):
        running = start(tmp_path, *command(live, model, out, "--until-idle", 60))
        wait_for_work(running, out)
        time.sleep(random.uniform(0, 1.0))
        running.kill()
        assert running.wait() == -signal.SIGKILL
    look(live, model, out)
    undisturbed = tmp_path / "undisturbed"
    look(live, model, undisturbed)
    expected, found = read_star(undisturbed / "all.star"), read_star(out / "all.star")
    by_name = expected.particles.sort_values("rlnImageName").reset_index(drop=True)
    assert found.particles.sort_values("rlnImageName").reset_index(drop=True).equals(by_name)
    sums, expected_sums = load_sums(out / "sums.npz"), load_sums(undisturbed / "sums.npz")
    assert sums is not None and expected_sums is not None
    assert len(set(sums[1])) == len(sums[1]) == 8
    for grid, other in zip(grids_of(sums[0]), grids_of(expected_sums[0]), strict=True):
        torch.testing.assert_close(grid, other, rtol=1e-4, atol=1e-3)
    assert_is_that_of_all_at_once(out, tables, model, tmp_path / "at_once")


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_it_stops_cleanly(tmp_path: Path, model: Path, stop: signal.Signals) -> None:
    live, out = tmp_path / "live", tmp_path / "out"
    tables = [deliver(live / str(number), 20 * number, 20 * number + 20) for number in range(6)]
    running = start(tmp_path, *command(live, model, out))
    while not (out / "all.star").exists() and running.poll() is None:
        time.sleep(0.005)
    running.send_signal(stop)
    _, errors = running.communicate(timeout=60)
    assert running.returncode == 130
    assert errors.splitlines()[-1] == "stopped; the same command goes on" and "Traceback" not in errors
    assert 0 < len(read_star(out / "all.star")) < 120
    look(live, model, out)
    assert_is_that_of_all_at_once(out, tables, model, tmp_path / "at_once")


def test_only_what_a_kill_tore_is_removed_from_the_output(tmp_path: Path, model: Path) -> None:
    live, out, elsewhere = tmp_path / "live", tmp_path / "out", tmp_path / "elsewhere"
    deliver(live, 0, 20)
    look(live, model, out)
    elsewhere.mkdir()
    torn = [out / ".all.01234567.partial.star", out / "map" / ".map.01234567.partial.mrc"]
    own = [out / "map" / ".notes.partial.txt", elsewhere / ".all.01234567.partial.star"]
    (out / "map").mkdir(exist_ok=True)
    for path in (*torn, *own):
        path.write_text("text")
    (out / "link").symlink_to(elsewhere)
    look(live, model, out)
    assert not any(path.exists() for path in torn) and all(path.exists() for path in own)


def test_one_watcher_at_a_time_and_one_job_in_a_folder(tmp_path: Path, model: Path) -> None:
    live, out = tmp_path / "live", tmp_path / "out"
    deliver(live, 0, 20)
    look(live, model, out)
    with held_by_another_process(out), pytest.raises(ValueError, match=r"process \d+ on .* is at work in"):
        look(live, model, out)
    with pytest.raises(ValueError, match="another folder"):
        look(tmp_path, model, out)
    with pytest.raises(ValueError, match="another refine"):
        look(live, model, out, refine=False)
    with pytest.raises(ValueError, match="another keep_ramp"):
        look(live, model, out, keep_ramp=True)
    other = tmp_path / "model"
    subprocess.run(["cp", "-r", model, other], check=True)
    (other / "split.csv").write_text((other / "split.csv").read_text() + "b,test\n")
    with pytest.raises(ValueError, match="another model"):
        look(live, other, out)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(ValueError, match=r"holds thesis.tex but no watch.json"):
        look(live, model, tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--keep", 0), "--keep above 0"),
        (("--max-error", -1), "--max-error above 0"),
        (("--once", "--until-idle", 3), "found both"),
        (("--pattern", ""), "--pattern"),
    ],
)
def test_bad_options_are_one_line(tmp_path: Path, model: Path, options: Sequence[object], words: str) -> None:
    found = CliRunner().invoke(app, command(tmp_path, model, tmp_path / "out", *options))
    assert found.exit_code == 1 and words in " ".join(found.stderr.split())
    assert not (tmp_path / "out").exists()
    with contextlib.suppress(KeyError):
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def test_the_output_may_lie_in_the_folder_that_is_watched(
    tmp_path: Path, model: Path, posed: list[int]
) -> None:
    deliver(tmp_path, 0, 20)
    for _ in range(2):
        look(tmp_path, model, tmp_path / "out")
    assert posed == [20]
