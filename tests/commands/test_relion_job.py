"""RELION's External job: its arguments, its markers, its table of results; RELION itself as the judge."""

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.children import environment
from typer.testing import CliRunner, Result

from cryoforum.cli import app
from cryoforum.commands.relion_job import ExternalJob, write_output_nodes
from cryoforum.dataset.particle_table import number_column, select_rows, with_columns
from cryoforum.dataset.volumes import Volume
from cryoforum.errors import InputError
from cryoforum.io.mrc.maps import read_volume, write_volume
from cryoforum.io.relion.star_files import read_star, write_star
from cryoforum.io.relion.star_text import read_tables
from cryoforum.network.model_folder import load_model
from cryoforum.reconstruction.reference_files import REFERENCE

COUNT, BOX, PIXEL_SIZE = 80, 28, 12.8
TINY = ("--preset", "tiny", "--split", "60,20,20", "--set", "training.image_passes=64")
TINY += (
    "--set",
    "training.batch_size=16",
    "--set",
    "training.grid_nside=2",
    "--set",
    "training.grid_count=1",
)
TINY += ("--set", "network.widths=[4, 8]", "--set", "network.degree=2")
SEARCH = ("--candidates", "search", "--max-shift", "1")
MARKERS = {
    "RELION_JOB_EXIT_SUCCESS",
    "RELION_JOB_EXIT_FAILURE",
    "RELION_JOB_EXIT_ABORTED",
    "RELION_JOB_ABORT_NOW",
}
PARTICLES, MAP = ("3", "ParticleGroupMetadata.star.relion"), ("6", "DensityMap.mrc")
MADE_BY_RELION = ("run.out", "run.err", "job.star", "note.txt", "default_pipeline.star", "job_pipeline.star")


def test_labels_are_spelled_as_our_options_and_values_stay() -> None:
    words = (
        "--max_minutes",
        "3",
        "--set=training.max_learning_rate=0.1",
        "--quantile_of=job_1/p.star",
        "a_b",
    )
    job = ExternalJob(Path("External/job001"), "filter", Path("x_1.star"), options=words)
    spelled = [
        "--max-minutes",
        "3",
        "--set=training.max_learning_rate=0.1",
        "--quantile-of=job_1/p.star",
        "a_b",
    ]
    assert job.words[-5:] == spelled


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with particles in Extract/job001 and a training in External/job002; not to be changed."""
    project = tmp_path_factory.mktemp("project")
    shape = (
        "--n",
        COUNT,
        "--box",
        BOX,
        "--pixel-size",
        PIXEL_SIZE,
        "--snr",
        5,
        "--max-shift",
        1,
        "--seed",
        7,
    )
    made = CliRunner().invoke(
        app, [str(word) for word in ("simulate", "--out", project / "Extract" / "job001", *shape)]
    )
    assert made.exit_code == 0, made.output
    path = project / "Extract" / "job001" / "particles.star"
    table = read_star(path)
    names = [
        f"{name.split('@')[0]}@Extract/job001/particles.mrcs" for name in table.particles["rlnImageName"]
    ]
    write_star(with_columns(table, {"rlnImageName": names}), path)
    job = folder_of_relion(project, "External/job002/")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        run(job, "--in_parts", "Extract/job001/particles.star", "--action", "train", *TINY)
    return project


@pytest.fixture
def project(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, as the current folder."""
    shutil.copytree(trained, tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    return tmp_path / "project"


@pytest.fixture(autouse=True)
def as_many_threads_as_before() -> Iterator[None]:
    count = torch.get_num_threads()
    yield
    torch.set_num_threads(count)


def folder_of_relion(project: Path, job: str) -> str:
    """A job's folder as RELION leaves it to the program: with files of its own."""
    (project / job).mkdir(parents=True, exist_ok=True)
    for name in MADE_BY_RELION:
        (project / job / name).write_text(f"RELION's {name}")
    return job


def invoke(job: str, *arguments: object) -> Result:
    return CliRunner().invoke(app, ["relion-job", "--o", job, *map(str, arguments), "--j", "2"])


def run(job: str, *arguments: object) -> Result:
    result = invoke(job, *arguments)
    assert result.exit_code == 0, result.output + str(result.exception)
    assert markers(job) == {"RELION_JOB_EXIT_SUCCESS"}
    return result


def refused(job: str, *arguments: object) -> str:
    """The one line of a failure, which leaves the marker and no table of results."""
    result = invoke(job, *arguments)
    assert result.exit_code == 1 and isinstance(result.exception, SystemExit), result.output
    assert markers(job) == {"RELION_JOB_EXIT_FAILURE"}
    assert not (Path(job) / "RELION_OUTPUT_NODES.star").exists()
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    assert len(lines) == 1 and lines[0].startswith("Error: "), result.stderr
    return lines[0]


def markers(job: str) -> set[str]:
    return {path.name for path in Path(job).iterdir()} & MARKERS


def nodes(job: str) -> dict[str, tuple[str, str]]:
    """Name → number and label of each output node."""
    [(block, table)] = read_tables(Path(job) / "RELION_OUTPUT_NODES.star")
    assert block == "output_nodes"
    names = ["rlnPipeLineNodeName", "rlnPipeLineNodeType", "rlnPipeLineNodeTypeLabel"]
    assert list(table) == names
    return {name: (number, label) for name, number, label in table.itertuples(index=False)}


def predict(job: str, *options: object) -> Result:
    parts = ("--in_parts", "Extract/job001/particles.star")
    return run(job, *parts, "--action", "predict", "--model", "External/job002/", *options)


def test_training_leaves_a_model_and_shows_its_map(project: Path) -> None:
    job = "External/job002/"
    assert markers(job) == {"RELION_JOB_EXIT_SUCCESS"}
    assert nodes(job) == {"External/job002/model/reference.mrc": MAP}
    assert len(load_model(Path(job) / "model").parts) == COUNT
    assert all((Path(job) / name).read_text() == f"RELION's {name}" for name in MADE_BY_RELION)


def test_prediction_and_filter_follow_each_other(project: Path) -> None:
    job = folder_of_relion(project, "External/job003/")
    predict(job, *SEARCH)
    assert nodes(job) == {"External/job003/particles.star": PARTICLES}
    predicted = read_star(project / job / "particles.star")
    assert "cryoforumTrace" in predicted.particles and len(predicted) == COUNT
    assert all((Path(job) / name).read_text() == f"RELION's {name}" for name in MADE_BY_RELION)

    job = folder_of_relion(project, "External/job004/")
    parts = ("--in_parts", "External/job003/particles.star", "--action", "filter")
    run(job, *parts, "--keep", "0.75")
    both = {f"External/job004/{name}.star": PARTICLES for name in ("particles", "dropped")}
    assert nodes(job) == both
    kept, dropped = (set(read_star(Path(name)).particles["rlnImageName"]) for name in both)
    assert len(kept) == 60 and kept | dropped == set(predicted.particles["rlnImageName"])
    run(job, *parts, "--keep", "1.0")  # what was dropped before is no result of this run
    assert nodes(job) == {"External/job004/particles.star": PARTICLES}
    assert not (project / job / "dropped.star").exists()


@pytest.mark.parametrize(
    ("version", "label"),
    [("30001", "ParticlesData.star.relion"), ("50001", "ParticleGroupMetadata.star.relion")],
)
def test_labels_are_those_of_the_relion_that_made_the_folder(
    tmp_path: Path, version: str, label: str
) -> None:
    (tmp_path / "job.star").write_text(f"\n# version {version}\n\ndata_job\n\n_rlnJobIsContinue 0\n")
    (tmp_path / "particles.star").touch()
    write_output_nodes(ExternalJob(tmp_path, "predict", None))
    assert list(nodes(str(tmp_path)).values()) == [("3", label)]


def test_a_model_may_be_named_by_its_own_folder_and_labels_may_have_underscores(project: Path) -> None:
    parts = ("--in_parts", "Extract/job001/particles.star", "--model", "External/job002/model")
    run("External/job003/", *parts, "--no-refine", "--batch_size", "16", "--tta", "1")
    assert len(read_star(project / "External" / "job003" / "particles.star")) == COUNT


def test_the_reference_of_the_form_is_used_and_its_mask_multiplies_it(project: Path) -> None:
    volume = read_volume(project / "External" / "job002" / "model" / REFERENCE)
    write_volume(volume, project / "map.mrc")
    mask = torch.zeros_like(volume.voxels)
    mask[:, :, : BOX // 2] = 1
    write_volume(Volume(mask, PIXEL_SIZE), project / "mask.mrc")
    write_volume(Volume(volume.voxels * mask, PIXEL_SIZE), project / "masked.mrc")
    found = []
    for number, form in enumerate(
        (
            ("--in_3dref", "map.mrc", "--in_mask", "mask.mrc"),
            ("--in_3dref", "masked.mrc"),
            ("--in_3dref", "map.mrc"),
        ),
    ):
        job = f"External/job01{number}/"
        predict(job, *form, *SEARCH)
        found.append(number_column(read_star(project / job / "particles.star"), "cryoforumLogLikelihoodGain"))
    assert (
        np.median(np.abs(found[0] / found[1] - 1)) < 1e-3 < 0.05 < np.median(np.abs(found[0] / found[2] - 1))
    )
    all_of_it = torch.ones(BOX // 2, BOX // 2, BOX // 2)
    write_volume(Volume(all_of_it, 2 * PIXEL_SIZE), project / "coarse.mrc")
    told = predict("External/job020/", "--in_mask", "coarse.mrc", "--half-maps", "all", *SEARCH).stderr
    assert "coarse.mrc: resampled" in told


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "expected --in_parts"),
        (("--in_parts", "none.star", "--action", "filter"), "none.star not found"),
        (("--in_parts", "Extract/job001/particles.star"), "expected --model"),
        (("--in_parts", "Extract/job001/particles.star", "--action", "refine"), "expected --action train"),
        (("--in_parts", "x.star", "--action", "filter", "--kep", "0.5"), "No such option: --kep"),
        (("--in_parts", "x.star", "--action", "filter", "--keep", "much"), "'--keep'"),
        (("--in_parts", "x.star", "--action", "filter", "0.5"), "unexpected extra argument"),
        (
            ("--in_parts", "x.star", "--action", "filter", "--in_mics", "y.star"),
            "expected particles as input, found --in_mics",
        ),
        (("--in_parts", "x.star", "--action", "train", "--in_mask", "m.mrc"), "--action predict alone"),
        (("--in_parts", "x.star", "--model", "none"), "expected a model folder"),
    ],
)
def test_failures_are_one_line_and_a_marker(project: Path, arguments: tuple[str, ...], words: str) -> None:
    job = folder_of_relion(project, "External/job005/")
    for marker in ("RELION_JOB_EXIT_SUCCESS", "RELION_OUTPUT_NODES.star"):
        (project / job / marker).touch()  # of an earlier run
    assert words in refused(job, *arguments)
    assert all((project / job / name).exists() for name in MADE_BY_RELION)


@pytest.mark.parametrize("threads", ["0", "two", "-1"])
def test_a_wrong_number_of_threads_is_refused(project: Path, threads: str) -> None:
    result = CliRunner().invoke(app, ["relion-job", "--o", "External/job005/", "--j", threads])
    assert result.exit_code == 1 and f"found '{threads}'" in result.stderr
    assert markers("External/job005/") == {"RELION_JOB_EXIT_FAILURE"}


@pytest.mark.parametrize(
    ("shape", "value", "words"),
    [
        ((BOX, BOX, BOX), 7.0, "a mask with values from 0 to 1, found 0 to 7"),
        ((BOX, BOX, BOX), 0.0, "a mask with values from 0 to 1, found 0 to 0"),
        ((BOX, BOX, BOX), -1.0, "a mask with values from 0 to 1, found -1 to 0"),
    ],
)
def test_what_is_no_mask_is_refused(project: Path, shape: tuple[int, ...], value: float, words: str) -> None:
    voxels = torch.zeros(shape)
    voxels[4:9] = value
    write_volume(Volume(voxels, PIXEL_SIZE), project / "mask.mrc")
    parts = ("--in_parts", "Extract/job001/particles.star", "--model", "External/job002/")
    last = refused_after_bars("External/job005/", *parts, "--in_mask", "mask.mrc")
    assert last.startswith("Error: ") and words in last


def test_threads_are_those_that_relion_gives(project: Path) -> None:
    write = "import torch, sys; from cryoforum.cli import app\n"
    write += "app(sys.argv[1:], standalone_mode=False)\n"
    write += "from cryoforum.imaging import kernels; print(torch.get_num_threads(), kernels.thread_count())"
    free = {k: v for k, v in environment().items() if k not in ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS")}
    shown = subprocess.run(
        [sys.executable, "-c", write, "relion-job", "--o", "External/job006", "--j", "1"],
        env=free,
        capture_output=True,
        text=True,
    )
    assert shown.stdout.split()[-2:] == ["1", "1"], shown.stdout + shown.stderr


SLOW = """
import os, sys, time
from cryoforum.alignment import aligner
once = aligner.predict_batch
def slow(*arguments):
    time.sleep(0.5)
    return once(*arguments)
aligner.predict_batch = slow
from cryoforum.cli import app
app(sys.argv[1:])
"""


def started(project: Path, job: str) -> subprocess.Popen[str]:
    """A prediction that takes its time, one batch done."""
    (project / "External" / "job002" / "model" / "reference.json").unlink(missing_ok=True)
    arguments = ("relion-job", "--o", job, "--in_parts", "Extract/job001/particles.star", "--model")
    arguments += ("External/job002", "--batch-size", "4", "--j", "1")
    running = subprocess.Popen(
        [sys.executable, "-c", SLOW, *arguments],
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),  # as in the background of a shell
    )
    log = project / job / ".particles.star.progress-1-of-1"
    while not (log.exists() and log.stat().st_size) and running.poll() is None:
        time.sleep(0.02)
    return running


@pytest.mark.parametrize(
    ("stop", "marker"),
    [
        ("RELION_JOB_ABORT_NOW", "RELION_JOB_EXIT_ABORTED"),
        (signal.SIGTERM, "RELION_JOB_EXIT_FAILURE"),
    ],
)
def test_a_job_that_is_stopped_says_so_and_goes_on_when_continued(
    project: Path, stop: str | signal.Signals, marker: str
) -> None:
    job = folder_of_relion(project, "External/job007/")
    running = started(project, job)
    if isinstance(stop, signal.Signals):
        running.send_signal(stop)
    else:
        (project / job / stop).touch()
    running.communicate(timeout=60)
    assert running.returncode != 0
    assert markers(job) == {marker} and not (project / job / "RELION_OUTPUT_NODES.star").exists()
    told = predict(job, "--batch-size", "4").stderr
    assert "continuing:" in told and len(read_star(project / job / "particles.star")) == COUNT
    assert all((project / job / name).read_text() == f"RELION's {name}" for name in MADE_BY_RELION)


def test_an_abort_asked_for_before_the_start_is_heard(project: Path) -> None:
    job = folder_of_relion(project, "External/job008/")
    (project / job / "RELION_JOB_ABORT_NOW").touch()
    result = invoke(job, "--in_parts", "Extract/job001/particles.star", "--action", "train", *TINY)
    assert result.exit_code == 130 and markers(job) == {"RELION_JOB_EXIT_ABORTED"}
    assert not (project / job / "model").exists()


def test_a_training_is_repeated_or_resumed_in_its_folder(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, parts = "External/job002/", ("--in_parts", "Extract/job001/particles.star", "--action", "train")
    seen = []
    monkeypatch.setattr(
        "cryoforum.commands.train.train", lambda request, reporter: seen.append(request.resume) or stop()
    )

    def stop() -> None:
        raise InputError("enough")

    assert "enough" in refused_after_bars(job, *parts, *TINY)
    (project / job / "model" / "state.pt").touch()
    assert "enough" in refused_after_bars(job, *parts, *TINY)
    assert seen == [False, True]
    load_model(project / job / "model")  # the earlier model stays until there is a new one


def refused_after_bars(job: str, *arguments: object) -> str:
    result = invoke(job, *arguments)
    assert result.exit_code == 1 and markers(job) == {"RELION_JOB_EXIT_FAILURE"}
    return result.stderr.strip().splitlines()[-1]


def test_half_sets_train_two_models_and_both_maps_are_shown(project: Path) -> None:
    parts = ("--in_parts", "Extract/job001/particles.star", "--action", "train")
    run("External/job009/", *parts, "--half-set-models", *TINY, "--set", "augmentation.simulated_share=0")
    folder = project / "External" / "job009" / "model"
    shown = [f"External/job009/model/half{half}/reference.mrc" for half in (1, 2)]
    assert nodes("External/job009/") == {name: MAP for name in shown if (project / name).exists()}
    assert all((folder / half / "model.json").exists() for half in ("half1", "half2"))


def test_relion_reads_the_particles(project: Path, relion: Path) -> None:
    job = folder_of_relion(project, "External/job003/")
    predict(job, "--no-refine", "--tta", "1")
    handler = [relion.with_name("relion_star_handler"), "--select", "rlnAngleTilt"]
    subprocess.run([*handler, "--i", f"{job}particles.star", "--o", "handled.star"], check=True)
    ours, theirs = read_star(project / job / "particles.star"), read_star(project / "handled.star")
    assert theirs.particles["rlnImageName"].tolist() == ours.particles["rlnImageName"].tolist()


def test_relions_pipeline_runs_the_job_and_takes_its_results(project: Path, relion: Path) -> None:
    """The real thing: RELION makes the folder, calls the program, and reads marker and table."""
    pipeliner = relion.with_name("relion_pipeliner")
    script = project / "cryoforum"
    source = environment()["PYTHONPATH"]
    script.write_text(
        f"#!/bin/sh\nPYTHONPATH={source} exec {sys.executable} -c "
        "'from cryoforum.cli import main; main()' \"$@\"\n"
    )
    script.chmod(0o755)
    (project / "default_pipeline.star").write_text(
        "\n# version 30001\n\ndata_pipeline_general\n\n_rlnPipeLineJobCounter 3\n\n"
    )
    common = f"fn_exe == {script} relion-job;in_part == Extract/job001/particles.star;nr_threads == 1"
    good = "param1_label == model;param1_value == External/job002/;param2_label == no-refine"
    for form in (good, "param1_label == action;param1_value == filter;param2_label == wrong"):
        command = [pipeliner, "--addJob", "External", "--addJobOptions", f"{common};{form}"]
        subprocess.run(command, check=True, capture_output=True)
    for job in ("External/job003/", "External/job004/"):
        command = [pipeliner, "--RunJobs", job, "--schedule", job[9:15], "--sec_wait_after", "1"]
        subprocess.run(command, check=True, capture_output=True, timeout=120)
    assert markers("External/job003/") == {"RELION_JOB_EXIT_SUCCESS"}
    assert markers("External/job004/") == {"RELION_JOB_EXIT_FAILURE"}
    tables = dict(read_tables(project / "default_pipeline.star"))
    status = tables["pipeline_processes"].set_index("rlnPipeLineProcessName")["rlnPipeLineProcessStatus"]
    assert status.to_dict() == {"External/job003/": "2", "External/job004/": "3"}  # finished, failed
    kinds = tables["pipeline_nodes"].set_index("rlnPipeLineNodeName")["rlnPipeLineNodeType"]
    assert kinds["External/job003/particles.star"] == "3"
    edges = tables["pipeline_output_edges"]
    assert edges["rlnPipeLineEdgeToNode"].tolist() == ["External/job003/particles.star"]
    assert not select_rows(read_star(project / "External/job003/particles.star"), [0]).particles.empty
