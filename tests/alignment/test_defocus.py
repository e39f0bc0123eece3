"""Each particle's own defocus: its derivative, how exactly it is found, and what a file says of it."""

from pathlib import Path

import numpy as np
import torch
from helpers.clean_images import (
    PIXEL_SIZE,
    blobs,
    clean_images,
    random_ctf,
    random_poses,
    seeded,
    whitened,
)
from typer.testing import CliRunner

from cryoforum.alignment.defocus import PRIOR_ANGSTROM, defocus_change
from cryoforum.cli import app
from cryoforum.dataset.particle_table import number_column, with_columns
from cryoforum.imaging.ctf import ctf_at, ctf_defocus_slope_at
from cryoforum.imaging.fft import frequency_points
from cryoforum.imaging.projection import cropped_transform
from cryoforum.io.mrc.maps import write_volume
from cryoforum.io.relion.star_files import read_star, write_star
from cryoforum.molecules.structures import load_structure

BOX, COUNT = 32, 60


def test_the_slope_of_the_ctf_is_that_of_autograd() -> None:
    points = frequency_points(BOX, 15)
    kx, ky = points.kx.double() / 100, points.ky.double() / 100
    ctf = random_ctf(4)
    change = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    value = ctf_at(ctf.defocused_by(change), kx, ky)
    weights = torch.randn(value.shape, generator=seeded(), dtype=torch.float64)
    (gradient,) = torch.autograd.grad((weights * value).sum(), change)
    torch.testing.assert_close((weights * ctf_defocus_slope_at(ctf, kx, ky)).sum(1), gradient)


def test_a_defocus_without_noise_is_found_and_one_with_noise_to_its_bound() -> None:
    voxels, points = blobs(BOX), frequency_points(BOX, 14)
    transform = cropped_transform(voxels, 14)
    quaternions, origins = random_poses(COUNT)
    given = random_ctf(COUNT)
    true_change = 300 * torch.randn(COUNT, generator=seeded(1))
    clean = clean_images(voxels, quaternions, origins, given.defocused_by(true_change))
    weight = torch.ones(COUNT, len(points.kx)) / BOX

    def found(images: torch.Tensor, variance: float) -> torch.Tensor:
        prepared = whitened(images, given, points, variance)
        return defocus_change(
            transform, prepared, weight / variance**0.5, given, PIXEL_SIZE, quaternions, origins
        )

    assert float((found(clean, 1e-6) - true_change).abs().max()) < 1
    noisy = clean + 0.2 * torch.randn(clean.shape, generator=seeded(2))
    extent = BOX * PIXEL_SIZE
    slope = ctf_defocus_slope_at(given.defocused_by(true_change), points.kx / extent, points.ky / extent)
    power = whitened(clean_images(voxels, quaternions, origins), None, points, 0.04).values.abs().square()
    # As a Bayesian's: the prior is what the changes were drawn from, but for its width.
    deviation = (2 * (slope.square() * power).sum(1) + PRIOR_ANGSTROM**-2).rsqrt()
    ratio = (found(noisy, 0.04) - true_change) / deviation
    assert 0.75 < float(ratio.square().mean().sqrt()) < 1.35
    assert float(deviation.median()) < 150


def test_predictions_with_a_refined_defocus_write_it_and_others_leave_it(tmp_path: Path) -> None:
    volume = load_structure("6z6u", 48, 3.5)
    write_volume(volume, tmp_path / "map.mrc")
    run(
        "simulate",
        "--structure",
        tmp_path / "map.mrc",
        "--box",
        48,
        "--pixel-size",
        3.5,
        "--n",
        60,
        "--snr",
        5,
    )
    table = read_star(tmp_path / "particles.star")
    true_u = number_column(table, "rlnDefocusU")
    wrong = np.where(np.arange(60) % 2, 600.0, -600.0)
    columns = {name: number_column(table, name) + wrong for name in ("rlnDefocusU", "rlnDefocusV")}
    write_star(with_columns(table, columns), tmp_path / "particles.star")
    found = []
    for name, options in (("plain", ()), ("refined", ("--refine-defocus",))):
        align = (
            "align",
            tmp_path / "map.mrc",
            tmp_path / "particles.star",
            "--out",
            tmp_path / f"{name}.star",
        )
        run(*align, "--symmetry", "O", *options)
        found.append(read_star(tmp_path / f"{name}.star"))
    plain, refined = found
    assert "cryoforumDefocusChange" not in plain.particles.columns
    np.testing.assert_allclose(number_column(plain, "rlnDefocusU"), true_u + wrong, atol=0.01)
    error = np.abs(number_column(refined, "rlnDefocusU") - true_u)
    assert np.median(error) < 150
    change = number_column(refined, "rlnDefocusV") - number_column(plain, "rlnDefocusV")
    np.testing.assert_allclose(change, number_column(refined, "cryoforumDefocusChange"), atol=0.01)
    gain = [number_column(table, "cryoforumLogLikelihoodGain") for table in found]
    assert np.mean(gain[1] > gain[0]) > 0.8


def test_particles_without_ctf_have_no_defocus_to_refine(tmp_path: Path) -> None:
    write_volume(load_structure("4v5d", 32, 11.2), tmp_path / "map.mrc")
    run(
        "simulate",
        "--structure",
        tmp_path / "map.mrc",
        "--box",
        32,
        "--pixel-size",
        11.2,
        "--n",
        60,
        "--snr",
        5,
    )
    table = read_star(tmp_path / "particles.star")
    frame = table.particles.drop(columns=[c for c in table.particles if c.startswith("rlnDefocus")])
    write_star(type(table)(table.path, table.optics, frame), tmp_path / "bare.star")
    arguments = ("align", tmp_path / "map.mrc", tmp_path / "bare.star", "--out", tmp_path / "out.star")
    result = CliRunner().invoke(app, [str(word) for word in (*arguments, "--refine-defocus")])
    assert result.exit_code == 1 and "CTF parameters to refine their defocus" in result.stderr
    assert not (tmp_path / "out.star").exists()


def run(*arguments: object) -> None:
    if arguments[0] == "simulate":
        arguments = (*arguments, "--out", Path(str(arguments[2])).parent)
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output + str(result.exception)
