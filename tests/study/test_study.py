"""Studies: which runs are planned, and that each is done once, whoever does it."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cryoforum.commands.simulate import SimulateRequest, simulate
from cryoforum.dataset.pose_errors import orientation_errors
from cryoforum.dataset.split import PAPER_SHARES, split_rows
from cryoforum.geometry.point_groups import symmetry_group
from cryoforum.geometry.rotations import unitquat_to_rotmat
from cryoforum.simulation.config import SimulationConfig
from cryoforum.study import runs as study_runs
from cryoforum.study.datasets import d2_complex, junk_rows, molecule, particles_of
from cryoforum.study.pages import write_pages
from cryoforum.study.runs import read_records, run_all
from cryoforum.study.variants import BASE, TABLE_1, Dataset, Run, planned_runs, runs_on

SMALL = Dataset(count=90, box=32, pixel_size_angstrom=11.2, snr=5.0)
QUICK = (
    "preprocessing.box=32",
    "network.widths=[8, 16]",
    "network.degree=2",
    "training.image_passes=64",
    "training.batch_size=16",
    "training.grid_nside=2",
    "training.grid_count=2",
)


def quick_run(label: str = "one", study: str = "snr", seed: int = 0, *more: str) -> Run:
    return Run(study, "block", label, SMALL, "tiny", (*QUICK, *more), seed, "cpu")


def test_every_variant_of_a_block_is_planned_once_a_seed_and_changes_its_own_part_only() -> None:
    runs = planned_runs("table1", "cpu", 2)
    names = [run.name for run in runs]
    assert len(set(names)) == len(names) == 2 * (sum(len(block) for block in TABLE_1.values()) - 3)
    base = next(run for run in runs if run.label == BASE)
    for run in runs:
        changed = replace(run.config, network=base.config.network, training=base.config.training)
        assert changed == base.config, run.name
        assert run.config.training.image_passes == base.config.training.image_passes


@pytest.mark.parametrize("scale", ["cpu", "paper"])
def test_all_studies_have_valid_configurations(scale: str) -> None:
    assert {run.study for run in planned_runs("all", scale, 1)} == {"table1", "snr", "symmetry", "real"}
    assert all(run.config.training.image_passes > 0 for run in planned_runs("all", scale, 1))


def test_the_paper_scale_is_the_papers_preset() -> None:
    base = next(run for run in planned_runs("table1", "paper", 1) if run.label == BASE)
    assert (base.config.training.image_passes, base.config.preprocessing.box, base.tta_copies) == (
        6_300_000,
        128,
        1,
    )


@pytest.mark.parametrize(
    ("study", "scale", "seeds", "only", "said"),
    [
        ("table2", "cpu", 1, None, "expected a study out of table1, snr, symmetry, real or all"),
        ("snr", "gpu", 1, None, "expected --scale cpu or paper"),
        ("snr", "cpu", 0, None, "expected 1 seed or more"),
        ("snr", "cpu", 1, "pooling", "found --only 'pooling'"),
    ],
)
def test_what_cannot_be_planned_is_refused(
    study: str, scale: str, seeds: int, only: str | None, said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        planned_runs(study, scale, seeds, only)


def test_runs_that_are_done_are_not_done_again_and_shards_share_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    runs = [quick_run(label) for label in ("one", "two", "three")]
    run_all(runs, tmp_path, (2, 2))
    assert list(read_records(tmp_path)["variant"]) == ["two"]
    caplog.set_level("INFO", "cryoforum")
    done: list[str] = []
    original = study_runs._done
    monkeypatch.setattr(
        study_runs, "_done", lambda run, advance: done.append(run.label) or original(run, advance)
    )
    run_all(runs, tmp_path)
    assert done == ["one", "three"]
    assert "1 of 3 runs are done already" in caplog.messages
    records = read_records(tmp_path)
    assert sorted(records["variant"]) == ["one", "three", "two"]
    # the same training under three names
    assert records["median_rad"].nunique() == 1


def test_results_of_other_settings_are_not_taken_for_those_of_a_run(tmp_path: Path) -> None:
    run_all([quick_run()], tmp_path)
    with pytest.raises(ValueError, match="found others; move the file away"):
        run_all([quick_run("one", "snr", 0, "training.l2=0.1")], tmp_path)


def test_the_row_of_a_run_says_what_was_done(tmp_path: Path) -> None:
    run_all([quick_run("real", "real", 1)], tmp_path)
    (row,) = read_records(tmp_path).to_dict("records")
    assert (row["study"], row["variant"], row["seed"], row["count"]) == ("real", "real", 1, 30)
    assert row["image_passes"] == 64 and row["training_images"] == 44
    assert row["median_rad"] <= torch.pi and row["share_above_0_3_rad"] <= 1
    assert row["resolution_true_angstrom"] > 0


def test_the_d2_complex_has_its_symmetry_and_no_more() -> None:
    atoms = d2_complex()
    volume = molecule(Dataset("d2", box=96, pixel_size_angstrom=1.6)).voxels
    for turn in unitquat_to_rotmat(symmetry_group("D2", torch.float64))[1:]:
        signs = turn.diagonal().round().int().tolist()
        flips = [axis for axis, sign in zip((2, 1, 0), signs, strict=True) if sign < 0]
        turned = volume.flip(flips).roll([1] * len(flips), flips)
        torch.testing.assert_close(turned, volume, atol=1e-3 * float(volume.max()), rtol=0)
    quarter = volume.transpose(1, 2).flip(1).roll(1, 1)
    assert float((quarter - volume).abs().mean() / volume.abs().mean()) > 0.5
    assert len(atoms) % 4 == 0


def test_junk_shows_something_else_under_poses_that_mean_nothing() -> None:
    clean, spoilt = particles_of(SMALL), particles_of(replace(SMALL, junk=0.2))
    rows = torch.arange(len(clean))
    junk = junk_rows(replace(SMALL, junk=0.2))
    same = (clean.images[rows] == spoilt.images[rows]).flatten(1).all(1)
    test = split_rows(len(clean), *PAPER_SHARES).test
    assert len(junk) == round(0.2 * len(test)) and torch.isin(junk, test).all()
    assert torch.equal((~same).nonzero()[:, 0], junk)
    assert clean.poses is not None and spoilt.poses is not None
    errors = orientation_errors(spoilt.poses.quaternions, clean.poses.quaternions)
    assert not errors[same].any() and float(errors[~same].median()) > 1


def test_a_refinement_of_ones_own_is_a_study_too(tmp_path: Path) -> None:
    """From a STAR file to the pages."""
    config = SimulationConfig(count=90, snr=5.0)
    particle_file = simulate(SimulateRequest(tmp_path / "own", "4v5d", 32, 11.2, config))
    (planned,) = runs_on(particle_file, "C1", "cpu", 1)
    run = replace(planned, preset="tiny", settings=QUICK)
    assert (run.study, run.label, run.dataset.name) == ("real", "particles", "particles")
    run_all([run], tmp_path / "out")
    write_pages(tmp_path / "out")
    assert "| particles | 1 | 0.0" in (tmp_path / "out" / "real.md").read_text()
    assert runs_on(particle_file, "D2", "paper", 2)[1].config.symmetry == "D2"
    run_all([run], tmp_path / "out")  # done already
    particle_file.write_text(particle_file.read_text() + "\n")
    with pytest.raises(ValueError, match="expected results of"):
        run_all([run], tmp_path / "out")
