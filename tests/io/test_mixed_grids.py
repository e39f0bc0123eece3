"""Particles of several boxes and pixel sizes, in one file or several, through every step."""

import json
from dataclasses import replace
from pathlib import Path

import mrcfile
import numpy as np
import pandas as pd
import pytest
import torch
from helpers.messages import messages
from helpers.models import untrained_model
from typer.testing import CliRunner, Result

from cryoforum.cli import app
from cryoforum.dataset.image_grid import ImageGrid
from cryoforum.dataset.particle_table import number_column, with_columns
from cryoforum.dataset.pose_errors import orientation_errors
from cryoforum.io.join import joined
from cryoforum.io.mrc.maps import write_volume
from cryoforum.io.relion.particles import particles_from_table, poses_from_table
from cryoforum.io.relion.star_files import read_star, write_star
from cryoforum.molecules.structures import load_structure
from cryoforum.network.model_folder import load_model
from cryoforum.network.predict import check_compatible, resampled_to_model

COARSE, FINE = ImageGrid(32, 11.2), ImageGrid(48, 7.0)
MANY, FEW = 90, 60
REACH = ("--max-shift", 1.5)  # of the shifts, and of searches for them, pixels


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A map, and particles of it: many and few, coarse and fine."""
    folder = tmp_path_factory.mktemp("mixed")
    write_volume(load_structure("4v5d", 48, 7.0), folder / "map.mrc")
    for name, sampling in (("coarse", COARSE), ("fine", FINE)):
        for amount, count in (("many", MANY), ("few", FEW)):
            options = ("--box", sampling.box, "--pixel-size", sampling.pixel_size_angstrom, *REACH)
            out = folder / f"{amount}_{name}"
            seed = ("--seed", len(f"{amount}{name}"))
            done = run("simulate", "--out", out, "--n", count, "--snr", 2, *options, *seed)
            assert done.exit_code == 0, done.output
    return folder


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def files(folder: Path, mixture: str) -> list[Path]:
    first, second = {"coarse": ("many_coarse", "few_fine"), "fine": ("many_fine", "few_coarse")}[mixture]
    return [folder / first / "particles.star", folder / second / "particles.star"]


@pytest.mark.parametrize(("mixture", "told"), [("coarse", (FINE, COARSE)), ("fine", (COARSE, FINE))])
def test_aligning_a_mixture_finds_the_poses_of_both(
    folder: Path, tmp_path: Path, mixture: str, told: tuple[ImageGrid, ImageGrid]
) -> None:
    """Also where images are brought to smaller pixels than they had: what they do not hold is not looked for."""
    paths = files(folder, mixture)
    result = run("align", folder / "map.mrc", *paths, "--out", tmp_path / "found.star", *REACH)
    assert result.exit_code == 0, result.output + str(result.exception)
    assert f"{FEW} of {FEW + MANY} particles are resampled from {told[0]} to {told[1]}" in result.stderr
    assert "explains only" not in result.stderr
    found = read_star(tmp_path / "found.star")
    assert len(found.optics) == 2
    assert set(number_column(found, "rlnImagePixelSize")) == {11.2, 7.0}
    assert number_column(found, "rlnImageSize").tolist() == [told[1].box] * MANY + [told[0].box] * FEW
    poses, true = poses_from_table(found), [poses_from_table(read_star(path)) for path in paths]
    errors = orientation_errors(poses.quaternions, torch.cat([one.quaternions for one in true]))
    shifts = poses.shifts_angstrom - torch.cat([one.shifts_angstrom for one in true])
    expected = torch.deg2rad(torch.from_numpy(number_column(found, "cryoforumExpectedErrorDeg")))
    for rows in (slice(MANY), slice(MANY, None)):
        assert float(errors[rows].median()) < 0.05
        assert float(shifts[rows].norm(dim=1).median()) < 2.0
        # the median of a Rayleigh-like error is about 0.89 of its root mean square
        assert 0.5 < float((errors[rows] / expected[rows]).median()) < 1.5


def test_a_mixture_is_refined_from_a_map(folder: Path, tmp_path: Path) -> None:
    paths, out = files(folder, "coarse"), tmp_path / "out"
    few_rounds = ("--initial-resolution", 50, "--most-rounds", 1)
    result = run("refine", *paths, "--reference", folder / "map.mrc", "--out", out, *few_rounds, *REACH)
    assert result.exit_code == 0, result.output + str(result.exception)
    found = read_star(out / "predictions.star")
    assert number_column(found, "rlnImageSize").tolist() == [COARSE.box] * MANY + [FINE.box] * FEW
    poses, true = poses_from_table(found), [poses_from_table(read_star(path)) for path in paths]
    errors = orientation_errors(poses.quaternions, torch.cat([one.quaternions for one in true]))
    assert max(float(part.median()) for part in errors.split([MANY, FEW])) < 0.1


def test_reconstructing_a_mixture(folder: Path, tmp_path: Path) -> None:
    result = run("reconstruct", *files(folder, "coarse"), "--out", tmp_path / "map")
    assert result.exit_code == 0, result.output + str(result.exception)
    assert f"are resampled from {FINE} to {COARSE}" in result.stderr
    with mrcfile.open(tmp_path / "map" / "map.mrc") as found:
        assert found.data.shape == (32, 32, 32) and float(found.voxel_size.x) == pytest.approx(11.2)
        expected = load_structure("4v5d", 32, 11.2).voxels.numpy()
        assert np.corrcoef(found.data.ravel(), expected.ravel())[0, 1] > 0.9


def test_halves_posed_by_one_prediction_are_dependent_beside_a_refinement_too(
    folder: Path, tmp_path: Path
) -> None:
    refined, other = (folder / name / "particles.star" for name in ("many_coarse", "few_coarse"))
    predicted = folder / "few_coarse" / "predicted.star"
    write_star(with_columns(read_star(other), {"cryoforumTrace": np.full(FEW, -9.0)}), predicted)
    for paths, independent in (((refined, other), True), ((predicted, refined), False)):
        out = tmp_path / str(independent)
        result = run("reconstruct", *paths, "--out", out)
        assert result.exit_code == 0, result.output + str(result.exception)
        assert json.loads((out / "resolution.json").read_text())["independent"] is independent
        assert ("optimistic" in result.output) is not independent


def test_images_near_the_wanted_pixel_size_are_taken_as_they_are(folder: Path) -> None:
    table = read_star(folder / "many_coarse" / "particles.star")
    optics = pd.concat([table.optics] * 3, ignore_index=True)
    optics["rlnOpticsGroup"], optics["rlnImagePixelSize"] = ["1", "2", "3"], ["11.2", "11.24", "11.6"]
    groups = np.repeat([1, 2, 3], [20, 40, 30])
    mixed = replace(with_columns(table, {"rlnOpticsGroup": groups}), optics=optics)
    with messages() as told:
        found = particles_from_table(mixed, grid=COARSE)
    assert [one.split(" of ")[0] for one in told] == ["30"]
    plain, rows = particles_from_table(table), torch.arange(60)
    assert torch.equal(found.images[rows], plain.images[rows])
    assert found.pixel_size_angstrom == 11.24


def test_predicting_resamples_to_the_model(folder: Path, tmp_path: Path) -> None:
    model = untrained_model(
        COARSE.box, 11.25, tmp_path / "model"
    )  # 0.4 % off: these images are taken as they are
    for name, count in (("few_fine", FEW), ("few_coarse", 0)):
        path = folder / name / "particles.star"
        result = run("predict", model, path, "--out", tmp_path / f"{name}.star")
        assert result.exit_code == 0, result.output + str(result.exception)
        notice = f"{FEW} of {FEW} particles are resampled from {FINE} to 32 px and 11.25 Å/px"
        assert (notice in result.stderr) == bool(count)
        before, after = read_star(path), read_star(tmp_path / f"{name}.star")
        assert after.optics.equals(before.optics)
        assert after.particles["rlnOriginXAngst"].equals(before.particles["rlnOriginXAngst"])
    both = [folder / name / "particles.star" for name in ("few_fine", "few_coarse")]
    result = run("predict", model, *both, "--out", tmp_path / "both.star")
    assert result.exit_code == 0
    assert f"resampled from {FINE} to {COARSE}" in result.stderr  # the pixel size that the others really have
    # every image gets the same answer as in its own file
    together = read_star(tmp_path / "both.star").particles["cryoforumTrace"][FEW:].astype(float).to_numpy()
    alone = read_star(tmp_path / "few_coarse.star").particles["cryoforumTrace"].astype(float).to_numpy()
    assert np.allclose(together, alone, rtol=1e-3)
    again = run("predict", model, *reversed(both), "--out", tmp_path / "both.star")
    assert again.exit_code == 1 and "--overwrite" in again.stderr


def test_particles_in_memory_are_matched_to_a_model(folder: Path, tmp_path: Path) -> None:
    model = load_model(untrained_model(COARSE.box, COARSE.pixel_size_angstrom, tmp_path / "model"))
    fine = particles_from_table(read_star(folder / "few_fine" / "particles.star"))
    with pytest.raises(
        ValueError, match="expects particles of 32 px and 11.2 Å/px, found 48 px .*resampled_to_model"
    ):
        check_compatible(model, fine)
    found = resampled_to_model(fine, model)
    check_compatible(model, found)
    assert found.poses is fine.poses and found.images[torch.arange(2)].shape == (2, 32, 32)
    assert resampled_to_model(found, model) is found


def test_a_wrong_slice_of_a_mixture_is_named_with_its_row(folder: Path, tmp_path: Path) -> None:
    table = joined([read_star(path) for path in files(folder, "coarse")])
    table.particles.loc[MANY + 4, "rlnImageName"] = "000099@few_fine/particles.mrcs"
    write_star(table, tmp_path / "x.star")
    with pytest.raises(
        ValueError, match=rf"000099@few_fine/particles.mrcs \(row {MANY + 5}\): expected a slice"
    ):
        particles_from_table(read_star(tmp_path / "x.star"), folder)


def test_training_and_finding_a_rate_take_several_files(folder: Path, tmp_path: Path) -> None:
    small = (
        "--set", "network.widths=[8, 16]", "--set", "network.degree=2", "--set", "preprocessing.box=32",
        "--set", "training.batch_size=16", "--set", "training.image_passes=32",
    )  # fmt: skip
    paths = files(folder, "coarse")
    result = run(
        "train", *paths, "--out", tmp_path / "model", "--split", "50,20,30", "--preset", "tiny", *small
    )
    assert result.exit_code == 0, result.output + str(result.exception)
    assert f"{FEW} of {FEW + MANY} particles are resampled" in result.stderr
    model = load_model(tmp_path / "model")
    assert (model.box, model.pixel_size_angstrom) == (COARSE.box, COARSE.pixel_size_angstrom)
    assert len(model.parts) == MANY + FEW
    assert {name.partition("@")[2] for name in model.parts} == {
        "many_coarse/particles.mrcs", "few_fine/particles.mrcs"
    }  # fmt: skip
    result = run("find-rate", *paths, "--preset", "tiny", *small, "--steps", 20)
    assert result.exit_code == 0 and "particles are resampled" in result.stderr, result.output
    result = run("predict", tmp_path / "model", *paths, "--part", "test", "--out", tmp_path / "t.star")
    assert result.exit_code == 0, result.output + str(result.exception)
    assert len(read_star(tmp_path / "t.star")) == sum(part == "test" for part in model.parts.values())


def test_an_odd_box_loses_its_last_row_and_column_and_says_so(tmp_path: Path) -> None:
    """Also beside images of the even box, as those of a model; the centre stays pixel n // 2."""
    done = run("simulate", "--out", tmp_path, "--n", 6, "--box", 32, "--pixel-size", 11.2)
    assert done.exit_code == 0, done.output
    table = read_star(tmp_path / "particles.star")
    even = particles_from_table(table).images[torch.arange(6)]
    odd = np.pad(even.numpy(), ((0, 0), (0, 1), (0, 1)), constant_values=7.0)
    assert table.optics is not None
    for name, count in (("odd", 6), ("both", 2)):
        optics = pd.concat([table.optics] * 2, ignore_index=True)
        optics = optics.assign(rlnOpticsGroup=["1", "2"], rlnImageSize=["33", "32"])
        groups = [1] * count + [2] * (6 - count)
        stacks = ["odd.mrcs"] * count + ["particles.mrcs"] * (6 - count)
        names = [f"{row + 1}@{stack}" for row, stack in enumerate(stacks)]
        mixed = with_columns(replace(table, optics=optics), {"rlnOpticsGroup": groups, "rlnImageName": names})
        with mrcfile.new(tmp_path / "odd.mrcs", odd, overwrite=True):
            pass
        for wanted in (None, ImageGrid(32, 11.25)):
            with messages() as found:
                particles = particles_from_table(mixed, grid=wanted)
            assert found == [
                f"{count} of 6 particles have an odd box of 33 px; their last row and column are left out, and "
                "the centre stays the same pixel"
            ], name
            torch.testing.assert_close(particles.images[torch.arange(6)], even, rtol=1e-5, atol=1e-5)


def test_a_format_behind_a_colon_is_no_part_of_a_name(tmp_path: Path) -> None:
    done = run("simulate", "--out", tmp_path, "--n", 3, "--box", 32, "--pixel-size", 11.2)
    assert done.exit_code == 0, done.output
    table = read_star(tmp_path / "particles.star")
    (tmp_path / "particles.mrcs").rename(tmp_path / "particles.stk")
    hinted = with_columns(table, {"rlnImageName": [f"{n}@particles.stk:mrcs" for n in (1, 2, 3)]})
    assert particles_from_table(hinted).images.shape == (3, 32, 32)
