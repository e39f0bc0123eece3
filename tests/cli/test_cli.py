"""Every command, and all of them in a row on a small set."""

import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.children import environment, held_by_another_process
from typer.testing import CliRunner, Result

from cryoforum.cli import app
from cryoforum.commands import demo as demonstration
from cryoforum.commands.compare import pose_errors
from cryoforum.commands.train import TrainRequest, train
from cryoforum.config import Config, with_settings
from cryoforum.dataset.particle_table import number_column, select_rows, with_columns
from cryoforum.dataset.poses import Poses
from cryoforum.dataset.split import PAPER_SPLIT
from cryoforum.distributions.bingham import OrientationPosterior
from cryoforum.geometry.rotations import geodesic_distance
from cryoforum.io.mrc.maps import read_volume
from cryoforum.io.relion.particles import particles_from_table, poses_from_table, with_poses
from cryoforum.io.relion.star_files import read_star, write_star
from cryoforum.network.model_folder import load_model
from cryoforum.runtime.reporter import Reporter, TrainingProgress
from cryoforum.storage.locks import FOLDER_LOCK

COMMANDS = (
    "simulate",
    "train",
    "find-rate",
    "predict",
    "relion-job",
    "filter",
    "reconstruct",
    "compare",
    "report",
    "demo",
)
TOML = """
[training]
image_passes = 320
batch_size = 16
grid_nside = 2
grid_count = 2
[network]
widths = [8, 16]
degree = 2
"""


def run(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output + str(result.exception)
    return result


@dataclass(frozen=True)
class Run:
    """The outputs of a whole pipeline, not to be changed."""

    folder: Path

    def __getattr__(self, name: str) -> Path:
        return self.folder / name

    def __truediv__(self, name: str) -> Path:
        return self.folder / name


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("pipeline")
    (folder / "config.toml").write_text(TOML)
    simulated = folder / "particles.star"
    run("simulate", "--out", folder, "--n", 60, "--box", 32, "--pixel-size", 11.2, "--snr", 5, "--seed", 7)
    table = read_star(simulated)
    odd = with_columns(table, {"myLabel": [f"007 # {row}" for row in range(60)], "_x": ["1e3"] * 60})
    write_star(odd, folder / "labelled.star")
    settings = ("--preset", "tiny", "--config", folder / "config.toml", "--split", PAPER_SPLIT)
    run("train", simulated, "--out", folder / "model", *settings)
    run("predict", folder / "model", folder / "labelled.star", "--out", folder / "predictions.star")
    drop = ("--drop-out", folder / "dropped.star")
    run("filter", folder / "predictions.star", "--keep", 0.75, "--out", folder / "kept.star", *drop)
    run("reconstruct", folder / "kept.star", "--out", folder / "reconstruction" / "filtered")
    run("compare", folder / "predictions.star", simulated, "--json", folder / "errors.json")
    run("report", folder)
    return Run(folder)


def test_every_command_has_help_with_an_example() -> None:
    overview = run("--help").output
    for command in COMMANDS:
        assert command in overview
        text = run(command, "--help").output
        assert f"Example: cryoforum {command}" in re.sub(r"\s+", " ", text)


def test_examples_name_only_options_that_exist() -> None:
    for command in COMMANDS:
        text = re.sub(r"\s+", " ", run(command, "--help").output)
        usage, example = text.split("Example: ", 1)
        for option in re.findall(r"--[a-z-]+", example):
            assert option in usage


def test_the_command_line_starts_without_torch() -> None:
    check = "import sys, cryoforum.cli, cryoforum; print([m for m in ('torch', 'scipy') if m in sys.modules])"
    command = [sys.executable, "-c", check]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment())
    assert done.stdout.strip() == "[]"


def test_the_installed_command_runs_and_fails_clearly(tmp_path: Path) -> None:
    start = [sys.executable, "-c", "from cryoforum.cli import main; main()"]
    helped = subprocess.run([*start, "--help"], capture_output=True, text=True, env=environment())
    assert helped.returncode == 0 and "simulate" in helped.stdout
    command = [*start, "compare", "none.star", "none.star"]
    failed = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment())
    assert failed.returncode == 1
    assert failed.stderr == "Error: STAR file none.star not found\n" and failed.stdout == ""


def test_simulated_files_are_what_was_asked(done: Run) -> None:
    particles = particles_from_table(read_star(done / "particles.star"))
    assert (len(particles), particles.box, particles.pixel_size_angstrom) == (60, 32, 11.2)
    assert particles.poses is not None and particles.ctf is not None
    assert (done / "particles.mrcs").stat().st_size == 1024 + 60 * 32 * 32 * 4
    # with noise of variance 1 and a signal five times as strong
    assert float(particles.images[torch.arange(60)].var()) == pytest.approx(6, rel=0.1)


def test_the_model_folder_holds_the_split_and_no_state(done: Run) -> None:
    model = load_model(done / "model")
    counts = {part: list(model.parts.values()).count(part) for part in ("train", "validation", "test")}
    assert counts == {"train": 29, "validation": 11, "test": 20}
    assert model.config.training.image_passes == 320 and model.config.preprocessing.box == 32
    assert sorted(path.name for path in (done / "model").iterdir()) == [
        "log.csv",
        "model.json",
        "reference.json",
        "reference.mrc",
        "reference_half1.mrc",
        "reference_half2.mrc",
        "split.csv",
        "weights.safetensors",
    ]


def test_predict_keeps_every_row_and_column_in_order(done: Run) -> None:
    before, after = read_star(done / "labelled.star"), read_star(done / "predictions.star")
    columns = list(before.particles.columns)
    assert list(after.particles.columns)[: len(columns)] == columns
    for column in columns:
        if not column.startswith(("rlnAngle", "rlnOrigin")):
            assert after.particles[column].tolist() == before.particles[column].tolist()
    assert before.optics is not None and after.optics is not None
    assert after.optics.equals(before.optics)
    old, new = poses_from_table(before), poses_from_table(after)
    assert old is not None and new is not None
    assert float(geodesic_distance(old.quaternions, new.quaternions).median()) > 0.01


def test_the_ten_numbers_are_the_posterior(done: Run) -> None:
    table = read_star(done / "predictions.star")
    matrix = torch.zeros(len(table), 4, 4, dtype=torch.float64)
    for row in range(4):
        for column in range(row, 4):
            values = number_column(table, f"cryoforumA{row + 1}{column + 1}")
            assert values is not None
            matrix[:, row, column] = matrix[:, column, row] = torch.from_numpy(values)
    posterior = OrientationPosterior(matrix)
    merit = number_column(table, "rlnParticleFigureOfMerit")
    for name, expected in (
        ("cryoforumLambdaMax", posterior.lambda_max),
        ("cryoforumTrace", posterior.trace),
    ):
        found = number_column(table, name)
        assert found is not None
        scale = float(matrix.abs().max())
        np.testing.assert_allclose(found, expected.numpy(), atol=1e-4 * max(scale, 1), rtol=1e-3)
    poses = poses_from_table(table)
    assert poses is not None and merit is not None
    expected_error = number_column(table, "cryoforumExpectedErrorDeg")
    np.testing.assert_allclose(merit, 1 / (1 + expected_error), rtol=1e-4)
    assert float(geodesic_distance(posterior.mode.float(), poses.quaternions).max()) < 0.02


def test_filter_parts_the_set_by_its_statistic(done: Run) -> None:
    kept, dropped = read_star(done / "kept.star"), read_star(done / "dropped.star")
    assert (len(kept), len(dropped)) == (45, 15)
    kept_error, dropped_error = (
        number_column(table, "cryoforumExpectedErrorDeg") for table in (kept, dropped)
    )
    assert kept_error is not None and dropped_error is not None
    assert kept_error.max() <= dropped_error.min()
    names = [*kept.particles["rlnImageName"], *dropped.particles["rlnImageName"]]
    assert sorted(names) == sorted(read_star(done / "predictions.star").particles["rlnImageName"])
    assert kept.particles["rlnImageName"].is_monotonic_increasing


def test_filter_by_the_other_statistic(done: Run, tmp_path: Path) -> None:
    out = tmp_path / "kept.star"
    assert (
        "kept 30 of 60 (50 %)"
        in run("filter", done / "predictions.star", "--keep", 0.5, "--by", "max", "--out", out).output
    )
    whole, kept = (
        number_column(read_star(path), "cryoforumLambdaMax") for path in (done / "predictions.star", out)
    )
    assert whole is not None and kept is not None
    np.testing.assert_allclose(np.sort(kept), np.sort(whole)[:30])


def test_maps_curve_and_page_are_there(done: Run) -> None:
    folder = done / "reconstruction" / "filtered"
    for name in ("half1.mrc", "half2.mrc", "map.mrc"):
        volume = read_volume(folder / name)
        assert volume.voxels.shape == (32, 32, 32) and volume.pixel_size_angstrom == pytest.approx(11.2)
    assert len((folder / "fsc.csv").read_text().splitlines()) > 10
    assert (done / "report.html").read_text().lstrip().lower().startswith("<!doctype html>")


def test_the_truth_makes_a_map_of_the_molecule_and_no_error(done: Run, tmp_path: Path) -> None:
    output = run(
        "compare", done / "particles.star", done / "particles.star", "--json", tmp_path / "e.json"
    ).output
    assert "0.00° (0.0000)" in output
    assert json.loads((tmp_path / "e.json").read_text())["median_rad"] == pytest.approx(0, abs=1e-5)
    output = run("reconstruct", done / "particles.star", "--out", tmp_path / "map").output
    assert "optimistic" not in output and "resolution at FSC 0.143" in output


def test_one_reference_for_both_halves_is_said_to_be_optimistic(done: Run, tmp_path: Path) -> None:
    together = tmp_path / "together.star"
    run("predict", done / "model", done / "particles.star", "--half-maps", "all", "--out", together)
    output = run("reconstruct", together, "--out", tmp_path / "map", "--root", done.folder).output
    assert "optimistic" in output
    apart = run("reconstruct", done / "kept.star", "--out", tmp_path / "apart").output
    assert "optimistic" not in apart and "halves independent" in apart


def test_compare_counts_and_writes_its_numbers(done: Run) -> None:
    numbers = json.loads((done / "errors.json").read_text())
    assert numbers["count"] == 60 and 0 < numbers["median_rad"] <= np.pi
    said = run("compare", done / "predictions.star", done / "particles.star").output
    errors = pose_errors(read_star(done / "predictions.star"), read_star(done / "particles.star"))
    assert f"median shift error: {float(errors.shifts_angstrom.quantile(0.5)):.2f} Å" in said
    card = numbers["calibration"]
    assert card["coverage"]["all"]["count"] == 60 and card["levels"] == [0.5, 0.68, 0.9, 0.95]
    assert "errors within stated" in said
    assert "quarter" not in said  # of 15 particles each, which is too few to say anything


def test_poses_of_which_no_error_is_stated_have_no_calibration(done: Run, tmp_path: Path) -> None:
    """Nor have those that another program has changed since, and left our columns as they were."""
    assert (
        "errors within stated" not in run("compare", done / "particles.star", done / "particles.star").output
    )
    table = read_star(done / "predictions.star")
    angles = number_column(table, "rlnAngleRot")
    assert angles is not None
    write_star(with_columns(table, {"rlnAngleRot": angles + 5}), tmp_path / "changed.star")
    result = run("compare", tmp_path / "changed.star", done / "particles.star")
    assert "errors within stated" not in result.output
    assert "poses have changed since errors were stated" in result.stderr


def test_predict_of_one_part_of_the_split(done: Run, tmp_path: Path) -> None:
    out = tmp_path / "test.star"
    alone = ("predict", done / "model", "--no-refine")
    run(*alone, done / "particles.star", "--part", "test", "--out", out)
    run(*alone, done / "particles.star", "--out", tmp_path / "whole.star")
    parts = load_model(done / "model").parts
    names = read_star(out).particles["rlnImageName"]
    assert len(names) == 20 and {parts[name] for name in names} == {"test"}
    whole = read_star(tmp_path / "whole.star").particles.set_index("rlnImageName")
    expected = whole.loc[names, "cryoforumTrace"].astype(float)
    found = read_star(out).particles["cryoforumTrace"].astype(float)
    np.testing.assert_allclose(found, expected, rtol=1e-2)


def test_particles_are_held_back_for_tests_only_where_asked_for(done: Run, tmp_path: Path) -> None:
    common = ("train", done / "particles.star", "--preset", "tiny", "--config", done / "config.toml")
    said = run(*common, "--out", tmp_path / "all").output
    assert "learned from 54 particles, validated on 6, kept none for tests (--split)" in said
    refused = run(
        "predict",
        tmp_path / "all",
        done / "particles.star",
        "--part",
        "test",
        "--out",
        tmp_path / "t.star",
        code=1,
    )
    assert "found none kept for test; train with --split" in refused.stderr
    assert not (tmp_path / "t.star").exists()


def test_files_elsewhere_are_found_with_root(done: Run, tmp_path: Path) -> None:
    out, copy = tmp_path / "p.star", tmp_path / "particles.star"
    copy.write_bytes((done / "particles.star").read_bytes())
    assert "--root" in run("predict", done / "model", copy, "--out", out, code=1).stderr
    assert not out.exists()
    hint = f"later steps may need --root {done.folder}\n"
    assert hint in run("predict", done / "model", copy, "--out", out, "--root", done.folder).output
    assert len(read_star(out)) == 60
    assert hint in run("filter", done / "predictions.star", "--out", tmp_path / "kept.star").output
    assert "--root" in run("report", tmp_path, code=1).stderr
    run("report", tmp_path, "--root", done.folder)
    assert 'id="particles"' in (tmp_path / "report.html").read_text()


def test_a_split_can_be_given_by_shares_and_by_file(done: Run, tmp_path: Path) -> None:
    common = ("train", done / "particles.star", "--preset", "tiny", "--config", done / "config.toml")
    run(*common, "--out", tmp_path / "shares", "--split", "50,25,25")
    parts = load_model(tmp_path / "shares").parts
    assert [list(parts.values()).count(part) for part in ("train", "validation", "test")] == [30, 15, 15]
    run(*common, "--out", tmp_path / "file", "--seed", 9, "--split", tmp_path / "shares" / "split.csv")
    assert load_model(tmp_path / "file").parts == parts


def test_simulation_is_the_same_for_the_same_seed(done: Run, tmp_path: Path) -> None:
    run("simulate", "--out", tmp_path, "--n", 60, "--box", 32, "--pixel-size", 11.2, "--snr", 5, "--seed", 7)
    assert (tmp_path / "particles.star").read_bytes() == (done / "particles.star").read_bytes()
    first, again = (
        particles_from_table(read_star(folder / "particles.star")) for folder in (done.folder, tmp_path)
    )
    rows = torch.arange(60)
    torch.testing.assert_close(again.images[rows], first.images[rows], atol=1e-4, rtol=1e-4)


def test_every_setting_can_be_changed_on_the_command_line(done: Run, tmp_path: Path) -> None:
    """The paper's preset, made small."""
    settings = (
        "preprocessing.box=64",
        "network.widths=[4, 4, 8, 8]",
        "training.image_passes=48",
        "training.batch_size=8",
        "training.pairs=random",
        "network.blur=gaussian",
        "network.head=svd",
    )
    given = [word for setting in settings for word in ("--set", setting)]
    run("train", done / "particles.star", "--out", tmp_path / "model", "--preset", "paper", *given)
    config = load_model(tmp_path / "model").config
    assert (config.network.backbone, config.network.pooling, config.training.loss) == ("vgg", "gem", "pairs")
    assert (config.network.widths, config.network.head) == ((4, 4, 8, 8), "svd")
    assert (config.training.image_passes, config.training.pairs) == (48, "random")
    run("predict", tmp_path / "model", done / "particles.star", "--out", tmp_path / "predicted.star")
    assert len(read_star(tmp_path / "predicted.star")) == 60
    wrong = ("train", done / "particles.star", "--out", tmp_path / "none", "--set", "network.pooling=jam")
    assert "expected one of flatten, max" in run(*wrong, code=1).stderr and not (tmp_path / "none").exists()


def test_bars_of_a_training_end_where_they_say(done: Run, tmp_path: Path) -> None:
    announced: dict[str, int] = {}
    reached: Counter[str] = Counter()

    fractions: list[float] = []

    class Counting(Reporter):
        def progress(self, description: str, total: int) -> Callable[[int], None]:
            announced[description] = total
            return lambda count: reached.update({description: count})

        def training(self, progress: TrainingProgress) -> None:
            fractions.append(progress.fraction)

    config = load_model(done / "model").config
    train(TrainRequest([done / "particles.star"], tmp_path / "model", config), Counting())
    assert announced and reached == announced
    assert fractions == sorted(fractions) and fractions[-1] == 1


def test_a_learning_rate_is_suggested_and_its_curve_written(done: Run, tmp_path: Path) -> None:
    curve = tmp_path / "curve.csv"
    common = ("find-rate", done / "particles.star", "--preset", "tiny", "--config", done / "config.toml")
    output = run(*common, "--steps", 24, "--out", curve).output
    found = re.search(r"--set (training.max_learning_rate=\S+)", output)
    assert found is not None
    rates, losses = np.loadtxt(curve, delimiter=",", skiprows=1).T
    assert curve.read_text().splitlines()[0] == "learning_rate,loss"
    assert len(rates) == 24 and (np.diff(rates) > 0).all() and np.isfinite(losses).all()
    rate = with_settings(Config(), [found[1]]).training.max_learning_rate
    assert rates[0] / 10 < rate < rates[-1]
    assert "--overwrite" in run(*common, "--steps", 24, "--out", curve, code=1).stderr
    simulated = ("--set", "augmentation.simulated_share=0.5", "--out", tmp_path / "simulated.csv")
    assert "suggested" in run(*common, "--steps", 20, *simulated).output
    assert "expected --steps of 18 or more" in run(*common, "--steps", 17, code=1).stderr


def test_simulated_images_are_made_where_there_is_a_reference(done: Run, tmp_path: Path) -> None:
    common = (
        "--preset",
        "tiny",
        "--config",
        done / "config.toml",
        "--set",
        "augmentation.simulated_share=0.5",
    )
    run("train", done / "particles.star", "--out", tmp_path / "model", *common)
    assert load_model(tmp_path / "model").config.augmentation.simulated_share == 0.5
    one_half = with_columns(read_star(done / "particles.star"), {"rlnRandomSubset": ["1"] * 60})
    write_star(one_half, tmp_path / "one_half.star")
    alone = ("train", tmp_path / "one_half.star", "--out", tmp_path / "alone", "--root", done.folder)
    assert "learning from the particles alone" in run(*alone, *common).stderr
    assert load_model(tmp_path / "alone").config.augmentation.simulated_share == 0


def test_nobody_writes_into_a_folder_where_another_process_is_at_work(done: Run, tmp_path: Path) -> None:
    out, particles = tmp_path / "out", done / "particles.star"
    with held_by_another_process(out):
        for command in (
            ("train", particles, "--out", out, "--preset", "tiny", "--config", done / "config.toml"),
            ("train", particles, "--out", out, "--half-set-models", "--overwrite"),
            ("simulate", "--out", out, "--n", 3, "--box", 32, "--pixel-size", 11.2, "--overwrite"),
            ("reconstruct", particles, "--out", out, "--overwrite"),
            ("demo", "--out", out, "--overwrite"),
        ):
            refused = run(*command, code=1).stderr
            assert re.search(r"process \d+ on .* is at work in", " ".join(refused.split())), refused
        assert [path.name for path in out.iterdir()] == [FOLDER_LOCK]


def test_a_model_whose_folder_was_taken_meanwhile_is_kept_elsewhere(
    done: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cryoforum.commands import train as command

    out = tmp_path / "out"

    def taken_meanwhile(*arguments: object) -> object:
        (out / FOLDER_LOCK).write_text('{"process": 12, "host": "node7"}')
        (out / "model.json").write_text("of another training")
        return calibrate(*arguments)

    calibrate = command.calibrated
    monkeypatch.setattr(command, "calibrated", taken_meanwhile)
    common = ("train", done / "particles.star", "--preset", "tiny", "--config", done / "config.toml")
    said = " ".join(run(*common, "--out", out, code=1).stderr.split())
    assert "by process 12 on node7" in said and "the model of this training is in" in said
    assert (out / "model.json").read_text() == "of another training"
    (aside,) = tmp_path.glob("out-of-process-*")
    assert len(load_model(aside).parts) == 60


def test_a_network_that_learned_nothing_is_not_used_without_a_word(done: Run, tmp_path: Path) -> None:
    folder, out = tmp_path / "model", tmp_path / "p.star"
    shutil.copytree(done / "model", folder)
    known = json.loads((folder / "model.json").read_text())
    chance = known["training"]["chance_median_rad"]
    assert known["training"]["images_per_second"] > 0 and chance > 1
    for median, warned in ((0.9 * chance, True), (0.1 * chance, False)):
        (folder / "model.json").write_text(json.dumps(known | {"validation_median_rad": median}))
        said = run(
            "predict", folder, done / "particles.star", "--no-refine", "--out", out, "--overwrite"
        ).stderr
        assert ("the network has learned next to nothing" in said) == warned


def test_an_interrupted_training_is_resumed(
    done: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cryoforum.training import loop as training

    monkeypatch.setattr(training, "STATE_INTERVAL_SECONDS", 0.0)
    save, saved = training.save_state, []

    def kill_after_the_third(state: dict, path: Path) -> None:
        save(state, path)
        saved.append(path)
        if len(saved) == 3:
            raise KeyboardInterrupt

    out = tmp_path / "model"
    common = (
        "train",
        done / "particles.star",
        "--preset",
        "tiny",
        "--config",
        done / "config.toml",
        "--split",
        PAPER_SPLIT,
        "--out",
        out,
    )
    run(*common, "--resume", code=1)
    monkeypatch.setattr(training, "save_state", kill_after_the_third)
    result = run(*common, code=130)
    assert "interrupted" in result.stderr and "Traceback" not in result.stderr
    assert [path.name for path in out.iterdir()] == ["state.pt"]
    assert "--overwrite" in run(*common, code=1).stderr
    run(*common, "--resume")
    resumed, undisturbed = load_model(out), load_model(done / "model")
    assert not (out / "state.pt").exists()
    for name, tensor in undisturbed.network.state_dict().items():
        torch.testing.assert_close(resumed.network.state_dict()[name], tensor, atol=1e-4, rtol=1e-3)


def test_the_demonstration_shows_poses_before_and_after_local_refinement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demonstration, "BOX", 32)
    monkeypatch.setattr(demonstration, "PIXEL_SIZE_ANGSTROM", 11.2)
    out = tmp_path / "demo"
    output = run("demo", "--out", out, "--n", 200, "--preset", "tiny", "--max-minutes", 0.02).output
    assert {path.name for path in out.iterdir()} == demonstration.RESULTS
    summary = json.loads((out / "summary.json").read_text())
    truth = read_star(out / "truth.star")
    tables = {name: read_star(out / f"{name}.star") for name in ("network", "predictions", "kept")}
    assert [len(table) for table in (truth, *tables.values())] == [66, 66, 66, 50]
    for group, table in zip(("network", "all", "kept"), tables.values(), strict=True):
        errors = pose_errors(table, truth)
        median = float(errors.orientations_rad.quantile(0.5))
        assert summary["errors"][group]["median_rad"] == pytest.approx(median, rel=1e-5)
        pixels = errors.shifts_angstrom.quantile(0.5) / 11.2
        assert summary["shift_errors"][group]["median_pixel"] == pytest.approx(float(pixels), rel=1e-5)
    bound = number_column(tables["predictions"], "cryoforumBoundDeg")
    assert bound is not None and summary["bound"]["median_deg"] == pytest.approx(np.median(bound), rel=1e-4)
    assert number_column(tables["network"], "cryoforumBoundDeg") is None
    independent = {kind: values["independent"] for kind, values in summary["resolutions"].items()}
    assert independent == {"true": True, "network": False, "predicted": True, "filtered": True}
    steps = [entry["step"] for entry in summary["timings"]]
    assert steps.index("predict, network alone") < steps.index("predict and refine")
    for words in ("refined", "Cramér-Rao bound", "median shift error: network alone", "optimistic"):
        assert words in output
    page = (out / "report.html").read_text()
    assert "Poses at the limit of the noise" in page and "before local refinement" in page
    run("demo", "--out", out, code=1)


def test_shift_errors_are_matched_by_name(done: Run) -> None:
    truth = read_star(done / "particles.star")
    poses = poses_from_table(truth)
    assert poses is not None
    length = torch.arange(60.0)
    moved = torch.stack([0.6 * length, -0.8 * length], dim=-1)
    table = with_poses(truth, Poses(poses.quaternions, poses.shifts_angstrom + moved))
    order = torch.arange(60).flip(0)
    found = pose_errors(select_rows(table, order), truth).shifts_angstrom
    torch.testing.assert_close(found, length[order], atol=1e-3, rtol=1e-4)


def test_symmetry_goes_from_training_into_errors_and_maps(done: Run, tmp_path: Path) -> None:
    model, predicted = tmp_path / "model", tmp_path / "predicted.star"
    settings = ("--preset", "tiny", "--config", done / "config.toml", "--symmetry", "O")
    run("train", done / "particles.star", "--out", model, *settings)
    trained = load_model(model)
    assert trained.config.symmetry == "O" and trained.config.network.degree == 4
    run("predict", model, done / "particles.star", "--out", predicted)
    medians = {}
    for symmetry in ("C1", "O"):
        path = tmp_path / f"{symmetry}.json"
        run("compare", predicted, done / "particles.star", "--symmetry", symmetry, "--json", path)
        medians[symmetry] = json.loads(path.read_text())["median_rad"]
    # No two rotations are further apart than 62.8° under the group of the cube.
    assert medians["O"] < np.deg2rad(62.9) < medians["C1"]
    run("reconstruct", done / "particles.star", "--out", tmp_path / "map", "--symmetry", "O")
    voxels = read_volume(tmp_path / "map" / "map.mrc").voxels
    turned = voxels.transpose(1, 2).flip(2)[1:, 1:, :-1]
    assert float((turned - voxels[1:, 1:, 1:]).norm() / voxels.norm()) < 1e-3


def test_the_version_is_shown_and_threads_are_set() -> None:
    from importlib.metadata import version

    assert run("--version").output == f"cryoforum {version('cryo-forum')}\n"
    before = torch.get_num_threads()
    try:
        run("--threads", 1, "compare", "none.star", "none.star", code=1)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
    run("--threads", 0, "compare", "none.star", "none.star", code=2)


def test_a_forgotten_model_is_named(done: Run, tmp_path: Path) -> None:
    for particles in ((done / "particles.star",), (done / "particles.star", done / "labelled.star")):
        said = run("predict", *particles, "--out", tmp_path / "x.star", code=2).stderr
        assert "expected the folder of a model" in " ".join(said.replace("│", " ").split())


def test_filter_says_its_threshold_and_takes_one(done: Run, tmp_path: Path) -> None:
    errors = number_column(read_star(done / "predictions.star"), "cryoforumExpectedErrorDeg")
    assert errors is not None
    limit = float(np.median(errors))
    common = ("filter", done / "predictions.star", "--out", tmp_path / "kept.star", "--overwrite")
    said = run(*common, "--max-error", limit).output
    count = int((errors <= limit).sum())
    assert f"kept {count} of 60" in said and f"50 % {limit:.2f}°" in said and "knee" in said
    kept = number_column(read_star(tmp_path / "kept.star"), "cryoforumExpectedErrorDeg")
    assert kept is not None and kept.max() <= limit and len(kept) == count
    assert run(*common, "--keep", 75).output == run(*common, "--keep", 0.75).output
    assert "alone" in run(*common, "--keep", 75, "--max-error", 3, code=1).stderr
    assert "the surest has" in run(*common, "--max-error", 1e-9, code=1).stderr


def test_one_missing_folder_is_made_and_that_is_said(done: Run, tmp_path: Path) -> None:
    out = tmp_path / "new" / "kept.star"
    said = run("filter", done / "predictions.star", "--out", out).stderr
    assert out.is_file() and f"made the folder {out.parent}" in said
    far = tmp_path / "a" / "b" / "kept.star"
    assert "no folder" in run("filter", done / "predictions.star", "--out", far, code=1).stderr
    assert not (tmp_path / "a").exists()


def test_reconstruct_says_what_to_publish_and_writes_its_mask(done: Run, tmp_path: Path) -> None:
    said = run("reconstruct", done / "particles.star", "--out", tmp_path / "map").output
    resolution = json.loads((tmp_path / "map" / "resolution.json").read_text())
    assert f"halves independent: publish {resolution['corrected']:.1f} Å" in said
    mask = read_volume(tmp_path / "map" / "mask.mrc").voxels
    assert float(mask.min()) == 0 and float(mask.max()) == 1
    table = read_star(done / "particles.star")
    bare = replace(table, particles=table.particles.drop(columns="rlnRandomSubset"))
    write_star(bare, done / "bare.star")
    result = run("reconstruct", done / "bare.star", "--out", tmp_path / "drawn")
    assert "half sets are drawn" in result.stderr and "halves not independent" in result.output


def test_the_report_finds_the_names_of_the_readme(done: Run, tmp_path: Path) -> None:
    run("reconstruct", done / "kept.star", "--out", tmp_path / "map")
    for name in ("predictions.star", "kept.star"):
        (tmp_path / name).write_bytes((done / name).read_bytes())
    (tmp_path / "model").symlink_to(done / "model")
    result = run("report", tmp_path, "--root", done.folder)
    assert "truth.star (known poses)" in result.stderr and "kept.star" not in result.stderr
    page = (tmp_path / "report.html").read_text()
    for section in ("reconstructions", "particles", "training", "limit"):
        assert f'<section id="{section}">' in page
    corrected = json.loads((tmp_path / "map" / "resolution.json").read_text())["corrected"]
    assert f"to publish: {corrected:.1f} Å" in page
