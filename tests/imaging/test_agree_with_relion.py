"""RELION as an outside judge of projections, CTF, shifts and files; real particles from end to end."""

import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from helpers.models import untrained_model
from typer.testing import CliRunner

from cryoforum.cli import app
from cryoforum.commands.simulate import SimulateRequest
from cryoforum.commands.simulate import simulate as simulate_files
from cryoforum.io.mrc.maps import write_volume
from cryoforum.io.relion.particles import particles_from_table, table_from_particles
from cryoforum.io.relion.star_files import read_star, write_star
from cryoforum.molecules.structures import load_structure
from cryoforum.simulation.config import SimulationConfig
from cryoforum.simulation.ideal import SimulatedImages, simulate


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.output


def test_projections_with_ctf_and_shifts_are_those_of_relion(relion: Path, tmp_path: Path) -> None:
    volume = load_structure("4v5d", 64, 5.6)
    write_volume(volume, tmp_path / "map.mrc")
    plan = simulate(volume, SimulationConfig(count=12, seed=3))
    write_star(table_from_particles(plan, plan.names), tmp_path / "plan.star")
    command = [relion, "--i", "map.mrc", "--ang", "plan.star", "--ctf", "--angpix", "5.6", "--o", "theirs"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    theirs = particles_from_table(read_star(tmp_path / "theirs.star")).images[torch.arange(12)]
    images = plan.images
    assert isinstance(images, SimulatedImages)
    clean = replace(images, signal_scale=1.0, seed=None)
    ours = clean[torch.arange(12)]
    for mine, other in zip(ours, theirs, strict=True):
        assert np.corrcoef(mine.flatten(), other.flatten())[0, 1] > 0.999


def test_relion_reads_predictions_and_keeps_our_columns(relion: Path, tmp_path: Path) -> None:
    table = simulate_files(SimulateRequest(tmp_path, "4v5d", 32, 11.2, SimulationConfig(count=10)))
    model = untrained_model(32, 11.2, tmp_path / "model")
    run("predict", model, table, "--out", tmp_path / "predicted.star")
    handler = relion.with_name("relion_star_handler")
    command = [handler, "--i", "predicted.star", "--o", "handled.star", "--select", "rlnAngleTilt"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    ours, theirs = read_star(tmp_path / "predicted.star"), read_star(tmp_path / "handled.star")
    assert len(theirs) == 10
    for column in ("cryoforumLambdaMax", "cryoforumTrace", "cryoforumA34", "rlnParticleFigureOfMerit"):
        mine = ours.particles[column].astype(float)
        np.testing.assert_allclose(theirs.particles[column].astype(float), mine, rtol=1e-5, atol=1e-5)


def test_experimental_particles_go_through_every_step(shared_data: Path, tmp_path: Path) -> None:
    # The file names its stack sample.mrcs; a link in the user's folder is what --root is for.
    (tmp_path / "sample.mrcs").symlink_to(shared_data / "aspire_sample.mrcs")
    table = shared_data / "aspire_sample_particles_relion31.star"
    particles = particles_from_table(read_star(table), tmp_path)
    assert len(particles) == 17 and particles.box == 200
    assert particles.poses is not None and particles.ctf is not None
    model = untrained_model(200, particles.pixel_size_angstrom, tmp_path / "model")
    predicted = tmp_path / "predicted.star"
    run("predict", model, table, "--root", tmp_path, "--out", predicted)
    assert list(read_star(predicted).particles["rlnImageName"]) == list(particles.names)
    run("filter", predicted, "--keep", "0.5", "--out", tmp_path / "kept.star")
    run("reconstruct", predicted, "--root", tmp_path, "--out", tmp_path / "map")
    assert (tmp_path / "map" / "fsc.csv").exists()
