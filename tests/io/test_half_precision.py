"""Particles in float16 (mode 12), from the stack to the map: as float32 within its rounding."""

from pathlib import Path

import mrcfile
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from cryoforum.cli import app
from cryoforum.dataset.pose_errors import orientation_errors
from cryoforum.io.mrc.maps import read_volume
from cryoforum.io.relion.particles import particles_from_table, poses_from_table
from cryoforum.io.relion.star_files import read_star, write_star
from cryoforum.network.model_folder import load_model

TOML = "[training]\nimage_passes = 64\nbatch_size = 16\ngrid_nside = 2\ngrid_count = 2\n[network]\nwidths = [4, 8]\ndegree = 1\n"
COUNT = 60


def run(*arguments: object) -> None:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output + str(result.exception)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """All commands on float32 and on float16 images of the same particles."""
    single, half = tmp_path_factory.mktemp("single"), tmp_path_factory.mktemp("half")
    run("simulate", "--out", single, "--box", 32, "--pixel-size", 11.2, "--n", COUNT, "--snr", 5)
    write_star(read_star(single / "particles.star"), half / "particles.star")
    with mrcfile.open(single / "particles.mrcs") as wide, mrcfile.new(half / "particles.mrcs") as mrc:
        mrc.set_data(wide.data.astype(np.float16))
        mrc.set_image_stack()
        assert int(mrc.header.mode) == 12
    for folder in (single, half):
        (folder / "config.toml").write_text(TOML)
        particles, config = folder / "particles.star", folder / "config.toml"
        run("train", particles, "--out", folder / "model", "--preset", "tiny", "--config", config)
        run("predict", folder / "model", particles, "--out", folder / "refined.star")
        run("reconstruct", folder / "refined.star", "--root", folder, "--out", folder / "map")
    return single, half


def test_float16_images_are_those_of_float32_but_for_rounding(folders: tuple[Path, Path]) -> None:
    wide, narrow = (
        particles_from_table(read_star(folder / "particles.star")).images[torch.arange(COUNT)]
        for folder in folders
    )
    assert not torch.equal(wide, narrow)
    torch.testing.assert_close(narrow, wide, rtol=2**-11, atol=1e-4)


def test_float16_results_are_those_of_float32_but_for_rounding(folders: tuple[Path, Path]) -> None:
    poses = [poses_from_table(read_star(folder / "refined.star")) for folder in folders]
    errors = orientation_errors(poses[0].quaternions, poses[1].quaternions)
    true = poses_from_table(read_star(folders[0] / "particles.star"))
    assert float(errors.median()) < 0.05 * float(
        orientation_errors(poses[0].quaternions, true.quaternions).median()
    )
    maps = [read_volume(folder / "map" / "map.mrc").voxels.flatten() for folder in folders]
    assert float(torch.corrcoef(torch.stack(maps))[0, 1]) > 0.999
    models = [load_model(folder / "model") for folder in folders]
    assert models[0].validation_median_rad == pytest.approx(models[1].validation_median_rad, rel=0.05)
