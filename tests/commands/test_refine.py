"""`initial-model` and `refine` as commands: what they write, that a kill changes nothing, and no more than is there."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import mrcfile
import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from cryoforum.cli import app
from cryoforum.commands import initial_model as initial_model_command
from cryoforum.commands import refine as refine_command
from cryoforum.commands.initial_model import InitialModelRequest, initial_model
from cryoforum.commands.reference_maps import ReferenceMap
from cryoforum.commands.refine import RefineRequest, refine
from cryoforum.commands.simulate import SimulateRequest, simulate
from cryoforum.dataset.particle_table import number_column
from cryoforum.errors import InputError
from cryoforum.geometry.rotations import geodesic_distance
from cryoforum.io.mrc.maps import read_volume, write_volume
from cryoforum.io.particle_files import load_particle_set
from cryoforum.io.relion.particles import poses_from_table
from cryoforum.io.relion.star_files import read_star
from cryoforum.io.relion.star_text import read_tables
from cryoforum.molecules.structures import load_structure
from cryoforum.reconstruction.fsc import fourier_shell_correlation
from cryoforum.refinement.initial_model import InitialModelConfig
from cryoforum.refinement.refine import RefinementConfig
from cryoforum.simulation.config import Imperfections, SimulationConfig

BOX, PIXEL_SIZE, COUNT = 32, 11.2, 200
REACH = 1.0  # pixels that particles are off-centre, and that searches go
CONFIG = RefinementConfig(50.0, search_rounds=1, most_rounds=3, max_shift_pixel=REACH)
FIRST = InitialModelConfig(steps=12, images_per_step=60, starts=2, race=0.5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two hundred particles and the map that they are of."""
    out = tmp_path_factory.mktemp("set")
    simulate(
        SimulateRequest(
            out, "4v5d", BOX, PIXEL_SIZE, SimulationConfig(count=COUNT, snr=0.5, max_shift_pixel=REACH)
        )
    )
    write_volume(load_structure("4v5d", BOX, PIXEL_SIZE), out / "start.mrc")
    return out


@pytest.fixture
def no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nobody looks at it: drawing takes longer than refining few particles."""
    monkeypatch.setattr(refine_command, "write_report", lambda *arguments: None)


def request(folder: Path, out: Path) -> RefineRequest:
    return RefineRequest([folder / "particles.star"], [ReferenceMap(str(folder / "start.mrc"))], out, CONFIG)


@pytest.fixture(scope="module")
def refined(folder: Path) -> Path:
    refine(request(folder, folder / "refined"))
    return folder / "refined"


def test_everything_to_go_on_with_is_written(refined: Path, folder: Path) -> None:
    given, found = (
        load_particle_set([at / name])
        for at, name in ((folder, "particles.star"), (refined, "predictions.star"))
    )
    assert set(given.table.particles.columns) <= set(found.table.particles.columns)
    assert given.particles.poses is not None and found.particles.poses is not None
    errors = geodesic_distance(found.particles.poses.quaternions, given.particles.poses.quaternions)
    assert float(errors.median()) < 0.1
    maps = refined / "map"
    names = (
        "half1.mrc",
        "half2.mrc",
        "map.mrc",
        "mask.mrc",
        "postprocessed.mrc",
        "fsc.csv",
        "resolution.json",
    )
    assert all((maps / name).is_file() for name in names)
    assert '"independent": true' in (maps / "resolution.json").read_text()
    rounds = pd.read_csv(refined / "rounds.csv")
    assert list(rounds["round"]) == [1, 2, 3]
    assert "Rounds" in (refined / "report.html").read_text()
    assert sorted(path.name for path in refined.iterdir() if path.name.startswith(".")) == []


def test_relion_makes_the_same_half_maps_and_finds_the_same_resolution(
    relion: Path, refined: Path, folder: Path, tmp_path: Path
) -> None:
    """`relion_reconstruct` from the poses and half sets, `relion_postprocess` from the maps and their mask."""
    stacks = read_star(refined / "predictions.star")
    assert stacks.particles["rlnImageName"].str.endswith("@particles.mrcs").all()
    shutil.copy(refined / "predictions.star", folder / "predictions.star")  # names are relative to there
    for half in ("1", "2"):
        words = [
            "--i",
            "predictions.star",
            "--o",
            str(tmp_path / f"half{half}.mrc"),
            "--subset",
            half,
            "--ctf",
        ]
        command = [relion.with_name("relion_reconstruct"), *words, "--angpix", str(PIXEL_SIZE)]
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
    theirs, ours = (
        [read_volume(at / f"half{half}.mrc") for half in (1, 2)] for at in (tmp_path, refined / "map")
    )
    extent, mask = BOX * PIXEL_SIZE, read_volume(refined / "map" / "mask.mrc")
    reached = json.loads((refined / "map" / "resolution.json").read_text())["corrected"]
    shell = int(extent / reached)
    for one, other in zip(theirs, ours, strict=True):
        masked = (replace(volume, voxels=volume.voxels * mask.voxels) for volume in (one, other))
        alike = fourier_shell_correlation(*masked)[1 : shell + 1]
        assert float(alike[: shell * 3 // 4].min()) > 0.9  # beyond, each program weighs noise in its way
    program = relion.with_name("relion_postprocess")
    halves = ["--i", tmp_path / "half1.mrc", "--i2", tmp_path / "half2.mrc"]
    rest = ["--mask", refined / "map" / "mask.mrc", "--o", tmp_path / "theirs", "--angpix", PIXEL_SIZE]
    # It ends with an error where the program that draws its PDF is not installed, after it wrote the curves.
    subprocess.run([program, *map(str, [*halves, *rest]), "--force_mask"], capture_output=True)
    curve = dict(read_tables(tmp_path / "theirs.star"))["fsc"]["rlnFourierShellCorrelationCorrected"]
    first_below = int((curve.astype(float).to_numpy()[1:] < 0.143).argmax()) + 1
    assert abs(first_below - extent / reached) <= 1.0


def test_a_folder_of_refine_stands_for_its_particles(refined: Path, folder: Path) -> None:
    done = CliRunner().invoke(app, ["compare", str(refined), str(folder / "particles.star")])
    assert done.exit_code == 0 and str(COUNT) in done.output


@pytest.mark.usefixtures("no_page")
@pytest.mark.parametrize("saved", [0, 2])
def test_after_a_kill_the_same_command_goes_on(
    saved: int, folder: Path, refined: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed as the state of a round has been written, or is just not."""
    written, save = [], refine_command.save_state

    def killed(state: dict, path: Path) -> None:
        if len(written) == saved:
            raise KeyboardInterrupt
        save(state, path)
        written.append(path)

    monkeypatch.setattr(refine_command, "save_state", killed)
    with pytest.raises(KeyboardInterrupt):
        refine(request(folder, tmp_path / "out"))
    monkeypatch.setattr(refine_command, "save_state", save)
    refine(request(folder, tmp_path / "out"))
    columns = ["rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi", "cryoforumExpectedErrorDeg"]
    one, other = (read_star(at / "predictions.star").particles[columns] for at in (refined, tmp_path / "out"))
    pd.testing.assert_frame_equal(one, other)
    assert (refined / "map" / "half1.mrc").read_bytes()[1024:] == (
        tmp_path / "out/map/half1.mrc"
    ).read_bytes()[1024:]
    assert len(pd.read_csv(tmp_path / "out" / "rounds.csv")) == 3


def test_an_unfinished_run_of_another_kind_is_left_alone(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refine_command, "write_csv", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        refine(request(folder, tmp_path / "out"))
    state = (tmp_path / "out" / refine_command.STATE).read_bytes()
    other = replace(request(folder, tmp_path / "out"), config=replace(CONFIG, most_rounds=2))
    with pytest.raises(InputError, match="holds an unfinished run with other options or particles"):
        refine(other)
    assert (tmp_path / "out" / refine_command.STATE).read_bytes() == state


@pytest.mark.usefixtures("no_page")
def test_two_processes_find_what_one_does(refined: Path, folder: Path, tmp_path: Path) -> None:
    arguments = [
        "refine",
        folder / "particles.star",
        "--reference",
        folder / "start.mrc",
        "--out",
        tmp_path / "two",
    ]
    options = ["--initial-resolution", "50", "--most-rounds", "1", "--max-shift", str(REACH)]
    command = [sys.executable, "-m", "cryoforum", *map(str, arguments), *options, "--devices", "2"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    one = replace(request(folder, tmp_path / "one"), config=replace(CONFIG, search_rounds=2, most_rounds=1))
    refine(one)
    found = [poses_from_table(read_star(tmp_path / name / "predictions.star")) for name in ("one", "two")]
    assert found[0] is not None and found[1] is not None
    assert float(geodesic_distance(found[0].quaternions, found[1].quaternions).quantile(0.98)) < 2e-3
    maps = [mrcfile.read(tmp_path / name / "map" / "map.mrc") for name in ("one", "two")]
    assert np.corrcoef(maps[0].ravel(), maps[1].ravel())[0, 1] > 0.9999


@pytest.mark.usefixtures("no_page")
def test_nothing_is_found_in_noise(folder: Path, tmp_path: Path) -> None:
    simulate(SimulateRequest(tmp_path, "4v5d", BOX, PIXEL_SIZE, SimulationConfig(count=300, snr=1e-6)))
    noise = replace(request(folder, tmp_path / "out"), particles=[tmp_path / "particles.star"])
    summary = refine(replace(noise, config=replace(CONFIG, initial_resolution_angstrom=90.0)))
    assert summary.found_nothing
    fsc = pd.read_csv(tmp_path / "out" / "map" / "fsc.csv")
    beyond = fsc[fsc["resolution_angstrom"] < 90]
    assert float(beyond["fsc_unmasked"][1:].max()) < 0.143  # but for the shell of the edge


def test_a_first_map_after_a_kill_is_the_same(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    particles = [folder / "particles.star"]
    (whole,) = initial_model(InitialModelRequest(particles, tmp_path / "whole", FIRST))
    monkeypatch.setattr(initial_model_command, "STEPS_A_STATE", 4)
    save = initial_model_command.save_state

    def killed(state: dict, path: Path) -> None:
        save(state, path)
        if state["step"] == 8:
            raise KeyboardInterrupt

    monkeypatch.setattr(initial_model_command, "save_state", killed)
    with pytest.raises(KeyboardInterrupt):
        initial_model(InitialModelRequest(particles, tmp_path / "torn", FIRST))
    monkeypatch.setattr(initial_model_command, "save_state", save)
    (again,) = initial_model(InitialModelRequest(particles, tmp_path / "torn", FIRST))
    assert np.array_equal(mrcfile.read(whole), mrcfile.read(again))
    assert not (tmp_path / "torn" / initial_model_command.STATE).exists()
    assert "central" in (tmp_path / "torn" / "report.html").read_text().lower()


def test_classes_are_columns(tmp_path: Path) -> None:
    states = Imperfections(conformation_shares=(0.5, 0.5), hinge_angle_deg=40.0)
    config = SimulationConfig(count=COUNT, snr=0.5, max_shift_pixel=REACH)
    simulate(SimulateRequest(tmp_path, "4v5d", BOX, PIXEL_SIZE, config, states))
    maps = [ReferenceMap(str(tmp_path / f"conformation{number}.mrc")) for number in (1, 2)]
    settings = replace(CONFIG, classes=2, most_rounds=1)
    summary = refine(RefineRequest([tmp_path / "particles.star"], maps, tmp_path / "out", settings))
    found, truth = read_star(tmp_path / "out" / "predictions.star"), read_star(tmp_path / "truth.star")
    numbers, true_numbers = number_column(found, "rlnClassNumber"), number_column(truth, "rlnClassNumber")
    probability = number_column(found, "cryoforumClassProbability")
    assert numbers is not None and true_numbers is not None and probability is not None
    assert (numbers == true_numbers).mean() > 0.95
    assert ((probability >= 0.5) & (probability <= 1)).all()
    assert [one.count for one in summary.classes] == [int((numbers == one).sum()) for one in (1, 2)]
    assert (tmp_path / "out" / "reconstruction" / "class2" / "half1.mrc").is_file()
    assert "Class 2" in (tmp_path / "out" / "report.html").read_text()
