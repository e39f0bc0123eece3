"""Particles as they come: masked, in other units, with ice among them, predicted before."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.clean_images import seeded
from typer.testing import CliRunner, Result

from cryoforum.cli import app
from cryoforum.config import preset, with_symmetry
from cryoforum.dataset.particle_table import ParticleTable, number_column, with_columns
from cryoforum.dataset.pose_errors import orientation_errors
from cryoforum.imaging.noise_model import NoiseModel
from cryoforum.io.mrc.maps import write_volume
from cryoforum.io.mrc.stacks import write_stack
from cryoforum.io.predictions import with_predictions
from cryoforum.io.relion.particles import particles_from_table, poses_from_table
from cryoforum.io.relion.star_files import read_star, write_star
from cryoforum.molecules.structures import load_structure

BOX, PIXEL_SIZE, COUNT = 32, 11.2, 80
REACH = ("--max-shift", 1)  # of the shifts, and of searches for them


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A map and particles of it."""
    folder = tmp_path_factory.mktemp("odd")
    write_volume(load_structure("4v5d", BOX, PIXEL_SIZE), folder / "map.mrc")
    size = ("--box", BOX, "--pixel-size", PIXEL_SIZE, "--n", COUNT, "--snr", 5, *REACH)
    assert invoke("simulate", "--structure", folder / "map.mrc", "--out", folder, *size).exit_code == 0
    return folder


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def aligned(folder: Path, out: Path, images: torch.Tensor) -> tuple[torch.Tensor, Result]:
    """Orientation errors of an alignment of these images instead of the folder's own."""
    table = read_star(folder / "particles.star")
    write_stack(out / "particles.mrcs", [images], COUNT, BOX, PIXEL_SIZE)
    write_star(table, out / "particles.star")
    options = ("--out", out / "found.star", *REACH)
    result = invoke("align", folder / "map.mrc", out / "particles.star", *options)
    assert result.exit_code == 0, result.output + str(result.exception)
    found, true = poses_from_table(read_star(out / "found.star")), poses_from_table(table)
    assert found is not None and true is not None
    return orientation_errors(found.quaternions, true.quaternions), result


@pytest.fixture
def images(folder: Path) -> torch.Tensor:
    return particles_from_table(read_star(folder / "particles.star")).images[torch.arange(COUNT)]


def test_masked_particles_are_posed(folder: Path, tmp_path: Path, images: torch.Tensor) -> None:
    axis = torch.arange(BOX) - BOX // 2
    inside = torch.hypot(axis[:, None].float(), axis.float()) < 0.79 * BOX / 2
    errors, _ = aligned(folder, tmp_path, images * inside)
    assert float(errors.median()) < 0.1


def test_a_few_images_of_ice_do_not_spoil_the_others(
    folder: Path, tmp_path: Path, images: torch.Tensor
) -> None:
    plain = tmp_path / "plain"
    plain.mkdir()
    before, _ = aligned(folder, plain, images)
    images[[7, 40]] *= 100
    after, result = aligned(folder, tmp_path, images)
    assert float(after.median()) < 1.2 * float(before.median()) + 0.01
    assert "explains only" not in result.stderr


@pytest.mark.parametrize("factor", [0.01, 100.0])
def test_units_of_the_images_are_no_matter(
    folder: Path, tmp_path: Path, images: torch.Tensor, factor: float
) -> None:
    plain = tmp_path / "plain"
    plain.mkdir()
    before, _ = aligned(folder, plain, images)
    after, _ = aligned(folder, tmp_path, factor * images)
    torch.testing.assert_close(after.median(), before.median(), rtol=0.1, atol=1e-3)


def test_known_noise_is_taken_over_in_the_units_of_other_images() -> None:
    power = torch.rand(3, 17, generator=seeded()) + 1
    known = NoiseModel((1, 2), power, 2 * power, power.sqrt())
    background = NoiseModel((), 0.04 * power[:1], power[:1], power[:1])
    adapted = known.adapted_to(background)
    assert adapted.groups == ()
    torch.testing.assert_close(adapted.power, 0.04 * power[:1])
    torch.testing.assert_close(adapted.signal, 0.08 * power[:1])
    torch.testing.assert_close(adapted.scale, 0.2 * power[:1].sqrt())


def test_constant_images_are_refused(folder: Path, tmp_path: Path) -> None:
    write_stack(tmp_path / "particles.mrcs", [torch.zeros(COUNT, BOX, BOX)], COUNT, BOX, PIXEL_SIZE)
    write_star(read_star(folder / "particles.star"), tmp_path / "particles.star")
    result = invoke("align", folder / "map.mrc", tmp_path / "particles.star", "--out", tmp_path / "o.star")
    assert result.exit_code == 1 and "constant images" in result.stderr
    assert not (tmp_path / "o.star").exists()


def test_what_an_earlier_prediction_said_does_not_outlive_it() -> None:
    names = ["1@a.mrcs", "2@a.mrcs"]
    table = ParticleTable(Path(), None, pd.DataFrame({"rlnImageName": names, "label": ["a", "b"]}, dtype=str))
    earlier = ("cryoforumReferenceHalf", "cryoforumBoundDeg", "rlnMaxValueProbDistribution")
    table = with_columns(table, dict.fromkeys(earlier, np.array([1.0, 2.0])))
    numbers = {"qx": [0, 0], "qy": [0, 0], "qz": [0, 1], "qw": [1, 0], "cryoforumTrace": [-1, -2]}
    new = with_predictions(table, {name: np.array(v, dtype=np.float32) for name, v in numbers.items()})
    assert not set(earlier) & set(new.particles.columns)
    assert new.particles["label"].tolist() == ["a", "b"]
    assert number_column(new, "cryoforumTrace").tolist() == [-1, -2]


def test_refined_particles_are_filtered_by_expected_error_and_others_by_trace(tmp_path: Path) -> None:
    names = [f"{row}@a.mrcs" for row in (1, 2, 3, 4)]
    table = ParticleTable(Path(), None, pd.DataFrame({"rlnImageName": names}, dtype=str))
    trace, error = np.array([-9.0, -8, -2, -1]), np.array([40.0, 1, 2, 30])
    network = with_columns(table, {"cryoforumTrace": trace, "cryoforumExpectedErrorDeg": error})
    refined = with_columns(network, {"cryoforumBoundDeg": np.ones(4)})
    for frame, options, expected in (
        (network, (), [0, 1]),
        (refined, (), [1, 2]),
        (refined, ("--by", "trace"), [0, 1]),
    ):
        write_star(frame, tmp_path / "p.star")
        done = invoke("filter", tmp_path / "p.star", "--keep", 0.5, "--out", tmp_path / "k.star", *options)
        assert done.exit_code == 0, done.output
        kept = read_star(tmp_path / "k.star").particles["rlnImageName"].tolist()
        assert kept == [names[row] for row in expected]
        (tmp_path / "k.star").unlink()


def test_axes_of_too_high_an_order_for_the_network_are_refused_with_a_way_out() -> None:
    assert with_symmetry(preset("tiny"), "C16").network.degree == 16
    with pytest.raises(ValueError, match="cryoforum align"):
        with_symmetry(preset("tiny"), "D17")


def test_particles_of_other_strengths_are_refined_at_their_own(
    folder: Path, tmp_path: Path, images: torch.Tensor
) -> None:
    """The signal of every second particle is a third, of the others one and two thirds."""
    noise = torch.randn(images.shape, generator=seeded(3))
    strength = torch.where(torch.arange(COUNT) % 2 == 0, 1 / 3, 5 / 3)[:, None, None]
    plain, _ = aligned(folder, tmp_path, strength * images + noise)
    (tmp_path / "found.star").unlink()
    options = ("--out", tmp_path / "found.star", "--refine-scale", *REACH)
    assert invoke("align", folder / "map.mrc", tmp_path / "particles.star", *options).exit_code == 0
    found = read_star(tmp_path / "found.star")
    poses, true = poses_from_table(found), poses_from_table(read_star(folder / "particles.star"))
    assert poses is not None and true is not None
    refined = orientation_errors(poses.quaternions, true.quaternions)
    assert float(refined.median()) < 1.02 * float(plain.median())
    scale = number_column(found, "cryoforumSignalScale")
    assert scale is not None and np.median(scale[1::2]) / np.median(scale[::2]) == pytest.approx(5, rel=0.2)


def test_particles_that_nobody_has_posed_are_refused(folder: Path, tmp_path: Path) -> None:
    """As after extraction: all angles are there, and 0."""
    table = read_star(folder / "particles.star")
    zeros = dict.fromkeys(("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi"), np.zeros(COUNT))
    write_star(with_columns(table, zeros), folder / "unposed.star")
    for step in ("train", "reconstruct"):
        result = invoke(step, folder / "unposed.star", "--out", tmp_path / step)
        assert result.exit_code == 1 and f"found the same one in all {COUNT} rows" in result.stderr
        assert not (tmp_path / step).exists()
