"""Bad input: exit code 1, one line that begins with Error:, nothing half-written, nothing of old changed."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import mrcfile
import numpy as np
import pytest
from typer.testing import CliRunner, Result

from cryoforum.cli import app
from cryoforum.dataset.particle_table import select_rows
from cryoforum.io.relion.star_files import read_star, write_star
from cryoforum.network import model_folder as checkpoint

TOML = """
[training]
image_passes = 64
batch_size = 16
grid_nside = 2
grid_count = 2
[network]
widths = [4, 8]
degree = 1
"""
SMALL = ("--box", 32, "--pixel-size", 11.2)


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def files_of(folder: Path) -> dict[str, bytes]:
    """All files but the finished batches of an unfinished prediction, which are kept to go on from."""
    files = [path for path in folder.rglob("*") if path.is_file() and ".progress-" not in path.name]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def refused(folder: Path, *arguments: object, words: tuple[str, ...] = (), code: int = 1) -> str:
    """The one line of error of a command that fails and leaves all files of ``folder`` as they were."""
    before = files_of(folder)
    result = invoke(*arguments)
    assert result.exit_code == code, result.output
    assert isinstance(result.exception, SystemExit), result.exception
    assert "Traceback" not in result.output
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("Error: ")]
    assert len(errors) == 1 and lines[-1] == errors[0], result.stderr
    for word in words:
        assert word in errors[0], errors[0]
    assert files_of(folder) == before
    return errors[0]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small run: particles, model and predictions."""
    folder = tmp_path_factory.mktemp("original")
    (folder / "config.toml").write_text(TOML)
    particles = folder / "particles.star"
    assert invoke("simulate", "--out", folder, "--n", 40, *SMALL).exit_code == 0
    settings = ("--preset", "tiny", "--config", folder / "config.toml")
    assert invoke("train", particles, "--out", folder / "model", *settings).exit_code == 0
    assert invoke("predict", folder / "model", particles, "--out", folder / "predictions.star").exit_code == 0
    return folder


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    """A copy to be spoiled."""
    copy = tmp_path / "run"
    shutil.copytree(original, copy)
    return copy


def no_stack(folder: Path) -> None:
    (folder / "particles.mrcs").unlink()


def index_past_the_end(folder: Path) -> None:
    path = folder / "particles.star"
    path.write_text(path.read_text().replace("000040@", "000041@"))


def truncated_stack(folder: Path) -> None:
    path = folder / "particles.mrcs"
    path.write_bytes(path.read_bytes()[:-100])


def pixels_not_numbers(folder: Path) -> None:
    with mrcfile.open(folder / "particles.mrcs", mode="r+") as stack:
        stack.data[12, 3, 4] = np.nan  # of a particle that is learned from


def empty_table(folder: Path) -> None:
    path = folder / "particles.star"
    write_star(select_rows(read_star(path), []), path)


def no_stack_at_all(folder: Path) -> None:
    (folder / "particles.mrcs").write_bytes(b"hello")


def not_a_star_file(folder: Path) -> None:
    (folder / "particles.star").write_bytes(bytes(range(256)))


SPOILERS: dict[str, tuple[Callable[[Path], None], tuple[str, ...]]] = {
    "missing stack": (no_stack, ("row 1", "particles.mrcs not found")),
    "index past the end": (index_past_the_end, ("row 40", "from 1 to 40", "found 41")),
    "truncated stack": (truncated_stack, ("particles.mrcs", "cut off")),
    "NaN pixels": (pixels_not_numbers, ("particles.mrcs, slice 13", "NaN")),
    "empty table": (empty_table, ("particles.star", "empty table")),
    "stack that is none": (no_stack_at_all, ("particles.mrcs", "5 bytes")),
    "STAR file that is none": (not_a_star_file, ("particles.star",)),
}


@pytest.mark.parametrize("spoiler", list(SPOILERS))
@pytest.mark.parametrize("command", ["train", "predict", "reconstruct"])
def test_spoiled_particles(folder: Path, spoiler: str, command: str) -> None:
    spoil, words = SPOILERS[spoiler]
    spoil(folder)
    particles, out = folder / "particles.star", folder / "out"
    arguments: dict[str, tuple[object, ...]] = {
        "train": (particles, "--out", out, "--preset", "tiny", "--config", folder / "config.toml"),
        "predict": (folder / "model", particles, "--out", out.with_suffix(".star")),
        "reconstruct": (particles, "--out", out),
    }
    refused(folder, command, *arguments[command], words=words)


@pytest.mark.parametrize("spoiler", ["missing stack", "truncated stack", "NaN pixels"])
def test_results_stay_when_overwriting_fails(folder: Path, spoiler: str) -> None:
    SPOILERS[spoiler][0](folder)
    particles, again = folder / "particles.star", "--overwrite"
    settings = ("--preset", "tiny", "--config", folder / "config.toml")
    refused(folder, "train", particles, "--out", folder / "model", again, *settings)
    refused(folder, "predict", folder / "model", particles, "--out", folder / "predictions.star", again)


def test_nothing_is_overwritten_unasked(folder: Path) -> None:
    particles, predictions, model = (folder / n for n in ("particles.star", "predictions.star", "model"))
    assert invoke("filter", predictions, "--out", folder / "kept.star").exit_code == 0
    assert invoke("reconstruct", particles, "--out", folder / "map").exit_code == 0
    assert invoke("compare", predictions, particles, "--json", folder / "e.json").exit_code == 0
    words = ("--overwrite",)
    refused(folder, "simulate", "--out", folder, "--n", 3, *SMALL, words=words)
    refused(folder, "train", particles, "--out", model, words=words)
    refused(folder, "predict", model, particles, "--out", predictions, words=words)
    refused(folder, "filter", predictions, "--out", folder / "kept.star", words=words)
    drop = ("--drop-out", particles)
    refused(folder, "filter", predictions, "--out", folder / "new.star", *drop, words=words)
    refused(folder, "reconstruct", particles, "--out", folder / "map", words=words)
    refused(folder, "compare", predictions, particles, "--json", folder / "e.json", words=words)


def test_overwriting_replaces_only_what_is_named(folder: Path) -> None:
    before = files_of(folder)
    assert invoke("filter", folder / "predictions.star", "--out", folder / "kept.star").exit_code == 0
    arguments = ("filter", folder / "predictions.star", "--out", folder / "kept.star", "--keep", 0.5)
    assert invoke(*arguments, "--overwrite").exit_code == 0
    after = files_of(folder)
    assert len(read_star(folder / "kept.star")) == 20
    after.pop("kept.star")
    assert after == before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--n", 0), ("--n 0",)),
        (("--n", -5), ("--n -5",)),
        (("--snr", 0), ("--snr 0",)),
        (("--snr", -1), ("--snr -1",)),
        (("--snr", "nan"), ("snr", "found", "nan")),
        (("--structure", "9xyz"), ("9xyz", "4v5d")),
        (("--structure", "none.pdb"), ("none.pdb",)),
        (("--defocus", 30000, 10000), ("30000",)),
        (("--box", 8), ("does not fit",)),
        (("--box", 33), ("even box", "found 33")),
        (("--pixel-size", 0), ("pixel size above 0",)),
    ],
)
def test_bad_options_of_simulate(tmp_path: Path, options: tuple[object, ...], words: tuple[str, ...]) -> None:
    defaults = ("--n", 4, *SMALL)
    refused(tmp_path, "simulate", "--out", tmp_path / "out", *defaults, *options, words=words)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--split", "50,50"), ("--split", "50,17,33", "50,50")),
        (("--split", "a,b,c"), ("a,b,c",)),
        (("--split", "90,30,10"), ("add up to 100", "130")),
        (("--split", "67,0,33"), ("validation above 0",)),
        (("--split", "0.1,49.9,50"), ("more particles",)),
        (("--split", "none.csv"), ("none.csv",)),
        (("--config", "none.toml"), ("none.toml",)),
        (("--max-minutes", 0), ("--max-minutes above 0",)),
        (("--max-minutes", "nan"), ("--max-minutes above 0",)),
        (("--resume",), ("state.pt", "without --resume")),
    ],
)
def test_bad_options_of_train(folder: Path, options: tuple[object, ...], words: tuple[str, ...]) -> None:
    arguments = ("train", folder / "particles.star", "--out", folder / "out", "--preset", "tiny", *options)
    refused(folder, *arguments, words=words)


def test_a_bad_configuration(folder: Path) -> None:
    (folder / "config.toml").write_text("[network]\nhead = 'bingham'\n")
    options = ("--preset", "tiny", "--config", folder / "config.toml")
    arguments = ("train", folder / "particles.star", "--out", folder / "out", *options)
    refused(folder, *arguments, words=("config.toml", "head", "qcqp", "bingham"))


def test_the_split_of_other_particles(folder: Path) -> None:
    (folder / "other.csv").write_text("image,part\n1@other.mrcs,train\n")
    arguments = ("train", folder / "particles.star", "--out", folder / "out", "--preset", "tiny")
    refused(folder, *arguments, "--split", folder / "other.csv", words=("other.csv", "none of this set"))
    refused(folder, *arguments, "--split", folder / "particles.star", words=("columns image and part",))


def test_what_is_no_particle_file(folder: Path) -> None:
    words = ("found a folder; give a file in it",)
    refused(folder, "train", folder, "--out", folder / "out", words=words)
    refused(folder, "check", folder, words=words)


def test_system_errors_have_no_numbers(folder: Path) -> None:
    arguments = ("train", folder / "particles.star", "--out", folder / "particles.star" / "out")
    assert "Errno" not in refused(folder, *arguments, words=("particles.star", "Not a directory"))
    arguments = (
        "train",
        folder / "particles.star",
        "--out",
        folder / "out",
        "--config",
        folder / "none.toml",
    )
    assert "Errno" not in refused(folder, *arguments, words=("none.toml", "No such file"))
    (folder / "model" / "split.csv").unlink()
    arguments = ("predict", folder / "model", folder / "particles.star", "--out", folder / "out.star")
    assert "Errno" not in refused(folder, *arguments, words=("expected a model folder",))


def test_the_table_is_told_where_its_images_are_not_there(folder: Path) -> None:
    no_stack(folder)
    refused(folder, "check", folder / "particles.star", words=("particles.mrcs not found",))
    said = invoke("check", folder / "particles.star").stderr
    assert "40 particles, CTF, poses, half sets" in said


def test_particles_that_nobody_predicted_are_not_filtered(folder: Path) -> None:
    arguments = ("filter", folder / "particles.star", "--out", folder / "kept.star")
    refused(folder, *arguments, words=("expected predicted poses", "'cryoforum predict'"))


@pytest.mark.parametrize("command", ["train", "reconstruct", "compare"])
def test_particles_without_poses(folder: Path, command: str) -> None:
    path = folder / "particles.star"
    table = read_star(path)
    frame = table.particles.drop(columns=["rlnAngleTilt"])
    write_star(type(table)(table.path, table.optics, frame), path)
    arguments: dict[str, tuple[object, ...]] = {
        "train": (path, "--out", folder / "out"),
        "reconstruct": (path, "--out", folder / "out"),
        "compare": (folder / "predictions.star", path),
    }
    refused(folder, command, *arguments[command], words=("particles.star", "rlnAngleTilt"))


def test_what_is_no_model(folder: Path) -> None:
    particles, out = folder / "particles.star", folder / "out.star"
    words = ("expected a model folder written by 'cryoforum train'",)
    for no_model in (folder / "none", folder):
        refused(folder, "predict", no_model, particles, "--out", out, words=words)
    forgotten = invoke("predict", particles, particles, "--out", out)
    assert forgotten.exit_code == 2 and "expected the folder of a model before" in forgotten.stderr
    (folder / "model" / "weights.safetensors").write_bytes(b"damaged")
    refused(folder, "predict", folder / "model", particles, "--out", out, words=words)


def test_bad_options_of_predict(folder: Path) -> None:
    arguments = ("predict", folder / "model", folder / "particles.star", "--out")
    refused(folder, *arguments, folder / "nowhere" / "further" / "out.star", words=("no folder", "nowhere"))


@pytest.mark.parametrize("keep", ["0", "-0.1", "1.5", "nan"])
def test_shares_to_keep(folder: Path, keep: str) -> None:
    arguments = ("filter", folder / "predictions.star", "--out", folder / "kept.star", "--keep", keep)
    refused(folder, *arguments, words=("share to keep", keep))


def test_bad_options_of_filter(folder: Path) -> None:
    predictions, out = folder / "predictions.star", folder / "kept.star"
    refused(folder, "filter", folder / "particles.star", "--out", out, words=("cryoforumTrace", "predict"))
    refused(folder, "filter", predictions, "--out", out, "--drop-out", out, words=("two files",))
    other = folder / "dropped.txt"
    refused(folder, "filter", predictions, "--out", out, "--drop-out", other, words=("dropped.txt", ".star"))
    assert not out.exists()
    nowhere = folder / "nowhere" / "further" / "dropped.star"
    refused(
        folder, "filter", predictions, "--out", out, "--drop-out", nowhere, words=("no folder", "nowhere")
    )


def test_filter_never_replaces_what_it_reads(folder: Path) -> None:
    predictions, out = folder / "predictions.star", folder / "kept.star"
    filtered = ("filter", predictions, "--keep", 1, "--overwrite")
    words = ("other names to write to", "predictions.star")
    refused(folder, *filtered, "--out", predictions, words=words)
    refused(folder, *filtered, "--out", out, "--drop-out", predictions, words=words)
    shutil.copy(predictions, folder / "others.star")
    others = ("--quantile-of", folder / "others.star", "--out", out, "--drop-out", folder / "others.star")
    refused(folder, *filtered, *others, words=("other names to write to", "others.star"))


def test_comparing_with_other_particles(folder: Path) -> None:
    some = folder / "some.star"
    write_star(select_rows(read_star(folder / "particles.star"), range(10)), some)
    refused(
        folder, "compare", folder / "predictions.star", some, words=("some.star", "000011@particles.mrcs")
    )
    numbers = ("--json", folder / "nowhere" / "further" / "errors.json")
    refused(folder, "compare", some, folder / "particles.star", *numbers, words=("no folder", "nowhere"))


def test_reporting_on_no_folder(tmp_path: Path) -> None:
    refused(tmp_path, "report", tmp_path / "none", words=("folder of results",))


def test_a_demo_that_cannot_be_run_changes_nothing(folder: Path) -> None:
    out = ("--out", folder / "model", "--overwrite")
    refused(folder, "demo", *out, words=("not ours",))
    refused(folder, "demo", "--out", folder / "demo", "--max-minutes", 0, words=("--max-minutes above 0",))
    refused(folder, "demo", "--out", folder / "demo", "--n", 2, words=("more particles",))


WRITERS: dict[str, tuple[object, ...]] = {
    "simulate": ("--n", 4, *SMALL, "--out", "{}"),
    "train": ("{}/particles.star", "--preset", "tiny", "--config", "{}/config.toml", "--out", "{}/model"),
    "predict": ("{}/model", "{}/particles.star", "--out", "{}/predictions.star"),
    "filter": ("{}/predictions.star", "--out", "{}/particles.star"),
}


@pytest.mark.parametrize("command", list(WRITERS))
@pytest.mark.parametrize("failure", ["full disk", "kill"])
def test_writing_is_all_or_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, command: str, failure: str
) -> None:
    """The files are written, but a failure comes before the last moment, when they get their names."""
    error = OSError(28, "No space left on device") if failure == "full disk" else KeyboardInterrupt()

    def fail(source: object, target: object) -> None:
        raise error

    monkeypatch.setattr(os, "replace", fail)
    arguments = [str(argument).format(folder) for argument in WRITERS[command]]
    before = files_of(folder)
    result = invoke(command, *arguments, "--overwrite")
    assert result.exit_code == (1 if failure == "full disk" else 130), result.output
    assert "Traceback" not in result.output
    assert (
        result.stderr.strip()
        .splitlines()[-1]
        .startswith("Error: No space left on device" if failure == "full disk" else "interrupted")
    )
    assert files_of(folder) == before


@pytest.mark.parametrize("command", ["simulate", "train", "predict", "reconstruct"])
def test_a_limit_of_the_system_on_writing_is_told_in_one_line(folder: Path, command: str) -> None:
    """A limit on the size of files stands in for a full disk: real writes fail half-way."""
    resource = pytest.importorskip("resource")
    options: dict[str, tuple[object, ...]] = {
        "simulate": ("--n", 4, *SMALL, "--out", folder / "out"),
        "train": (*WRITERS["train"][:-1], folder / "out"),
        "predict": (*WRITERS["predict"][:-1], folder / "out.star"),
        "reconstruct": (folder / "particles.star", "--out", folder / "out"),
    }
    arguments = [command, *(str(option).format(folder) for option in options[command])]
    before = files_of(folder)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        done = invoke(*arguments)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert done.exit_code == 1 and isinstance(done.exception, SystemExit), done.output
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert lines[-1].startswith("Error: ") and "Traceback" not in done.output
    assert files_of(folder) == before


def test_a_kill_between_two_files_of_a_model_is_noticed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new model folder that lacks its description is no model."""

    def kill(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint.json, "dumps", kill)
    arguments = [str(argument).format(folder) for argument in (*WRITERS["train"][:-1], folder / "new")]
    assert invoke("train", *arguments).exit_code == 130
    monkeypatch.undo()
    particles = folder / "particles.star"
    refused(folder, "predict", folder / "new", particles, "--out", folder / "o.star", words=("model.json",))


def test_symmetries_that_do_not_exist(folder: Path) -> None:
    particles, out, wrong = folder / "particles.star", folder / "out", ("--symmetry", "D2h")
    words = ("expected a point group out of C1 to C99", "found 'D2h'")
    refused(folder, "train", particles, "--out", out, *wrong, words=words)
    refused(folder, "reconstruct", particles, "--out", out, *wrong, words=words)
    refused(folder, "compare", folder / "predictions.star", particles, *wrong, words=words)


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: not enough memory: …")])
def test_memory_that_there_is_not_is_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*arguments: object) -> None:
        raise error

    monkeypatch.setattr("cryoforum.commands.simulate.load_structure", fail)
    refused(
        folder, "simulate", "--out", folder / "new", "--n", 3, words=("not enough memory", "--batch-size")
    )


def test_sizes_beyond_all_memory_are_refused(folder: Path) -> None:
    refused(folder, "simulate", "--out", folder / "new", "--box", 100_000, words=("1024", "100000"))
    out = ("train", folder / "particles.star", "--out", folder / "new", "--set")
    for setting, limit in (
        ("training.grid_nside=2000", "16"),
        ("training.batch_size=1000000000", "65536"),
        ("preprocessing.box=100000", "1024"),
        ("network.widths=[100000]", "4096"),
        ("network.depth=1000", "64"),
    ):
        refused(folder, *out, setting, words=(limit, setting.partition("=")[2].strip("[]")))
