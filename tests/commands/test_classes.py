"""Several states of a molecule: aligned against the map of each, and learned by one model."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from cryoforum.alignment.class_aligner import ClassAligner, class_aligner, in_likeliest_classes
from cryoforum.alignment.config import AlignmentConfig
from cryoforum.cli import app
from cryoforum.commands.align import AlignRequest, align
from cryoforum.commands.pose_files import PoseOutput
from cryoforum.commands.predict import predict
from cryoforum.commands.predict_request import PredictRequest
from cryoforum.commands.reference_maps import ReferenceMap, load_reference_map, reference_maps
from cryoforum.commands.simulate import SimulateRequest, simulate
from cryoforum.commands.train import TrainRequest, train
from cryoforum.config import preset, updated
from cryoforum.dataset.particle_table import number_column, select_rows, with_columns
from cryoforum.dataset.particles import Particles
from cryoforum.dataset.predictions import Predictions
from cryoforum.distributions.bingham import OrientationPosterior
from cryoforum.errors import InputError
from cryoforum.geometry.rotations import compose
from cryoforum.io.load_and_save import load_particles, predictions_from_file
from cryoforum.io.particle_files import write_particle_file
from cryoforum.io.relion.star_files import read_star
from cryoforum.reconstruction.reference_files import load_references
from cryoforum.simulation.config import Imperfections, SimulationConfig

BOX, PIXEL_SIZE, COUNT, TRAINED = 32, 11.2, 300, 216
NEAR = AlignmentConfig(max_shift_pixel=1.0)  # as far as particles are off-centre
STATES = Imperfections(conformation_shares=(0.65, 0.35), hinge_angle_deg=40.0)
CONFIG = updated(preset("tiny"), {"training": {"image_passes": 64}}, where="test")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Particles of two states: those with true poses and classes to learn from, and new ones."""
    out = tmp_path_factory.mktemp("states")
    config = SimulationConfig(count=COUNT, snr=0.5, max_shift_pixel=1.0)
    simulate(SimulateRequest(out, "4v5d", BOX, PIXEL_SIZE, config, STATES))
    truth = read_star(out / "truth.star")
    write_particle_file(select_rows(truth, slice(0, TRAINED)), out / "known.star")
    write_particle_file(select_rows(truth, slice(TRAINED, COUNT)), out / "new_truth.star")
    write_particle_file(
        select_rows(read_star(out / "particles.star"), slice(TRAINED, COUNT)), out / "new.star"
    )
    return out


@pytest.fixture(scope="module")
def model(folder: Path) -> Path:
    train(TrainRequest([folder / "known.star"], folder / "model", CONFIG, split="90,10,0", by_class=True))
    return folder / "model"


@pytest.fixture(scope="module")
def found(folder: Path) -> tuple[ClassAligner, Particles, Predictions]:
    """New particles and what is found against the true maps of both states."""
    particles = load_particles(folder / "new.star")
    references = [
        load_reference_map(ReferenceMap(str(folder / f"conformation{number}.mrc")), particles, "C1")
        for number in (1, 2)
    ]
    aligner = class_aligner(references, particles, config=NEAR)
    return aligner, particles, aligner.align_batch(particles)


@pytest.fixture(scope="module")
def predicted(model: Path, folder: Path) -> Path:
    predict(
        PredictRequest(model, [folder / "new.star"], PoseOutput(folder / "predicted.star"), alignment=NEAR)
    )
    return folder / "predicted.star"


def classes_in(path: Path) -> np.ndarray:
    numbers = number_column(read_star(path), "rlnClassNumber")
    assert numbers is not None
    return numbers


def test_each_particle_is_found_in_its_state(
    found: tuple[ClassAligner, Particles, Predictions], folder: Path
) -> None:
    _, _, predictions = found
    assert predictions.class_number is not None and predictions.class_probability is not None
    assert (predictions.class_number.numpy() == classes_in(folder / "new_truth.star")).mean() > 0.95
    assert (
        0.5 <= float(predictions.class_probability.min()) <= float(predictions.class_probability.max()) <= 1
    )


def test_classes_do_not_depend_on_batches(found: tuple[ClassAligner, Particles, Predictions]) -> None:
    aligner, particles, all_at_once = found
    few = aligner.align_batch(particles.select(slice(3, 10)))
    assert few.class_probability is not None and all_at_once.class_probability is not None
    torch.testing.assert_close(few.class_probability, all_at_once.class_probability[3:10])


def test_a_doubtful_class_counts_in_the_error(
    found: tuple[ClassAligner, Particles, Predictions],
) -> None:
    """Of two poses that lie 0.5 rad apart and are as likely, the one is wrong by that in half of the cases."""
    one = found[2][0:1]
    turn = torch.tensor([[np.sin(0.25), 0.0, 0.0, np.cos(0.25)]], dtype=torch.float32)
    turned = compose(turn, one.posterior.mode)
    other = replace(
        one, posterior=OrientationPosterior(50 * (torch.eye(4) - turned[:, :, None] * turned[:, None, :]))
    )
    sure = in_likeliest_classes([one, other], torch.tensor([[1.0, 0.0]]), "C1")
    torch.testing.assert_close(sure.expected_error_rad, one.expected_error_rad)
    doubtful = in_likeliest_classes([one, other], torch.tensor([[0.5, 0.5]]), "C1")
    expected = (one.expected_error_rad.square() + 0.5 * 0.5**2).sqrt()
    torch.testing.assert_close(doubtful.expected_error_rad, expected, rtol=1e-4, atol=1e-5)


def test_a_model_of_a_classified_set_finds_the_state_of_new_particles(
    model: Path, predicted: Path, folder: Path
) -> None:
    """The smaller class has the noisier map: without what is not known of it, the larger one would win."""
    assert len(load_references(model)) == 2
    numbers, true = classes_in(predicted), classes_in(folder / "new_truth.star")
    assert (numbers == true).mean() > 0.9
    assert (numbers[true == 2] == 2).mean() > 0.85


def test_align_writes_the_classes_of_several_maps(folder: Path, tmp_path: Path) -> None:
    write_particle_file(select_rows(read_star(folder / "new.star"), slice(0, 40)), folder / "few.star")
    maps = [str(folder / f"conformation{number}.mrc") for number in (1, 2)]
    out = tmp_path / "out.star"
    words = [
        "align",
        maps[0],
        str(folder / "few.star"),
        "--reference",
        maps[1],
        "--out",
        str(out),
        "--max-shift",
        "1",
    ]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert (classes_in(out) == classes_in(folder / "new_truth.star")[:40]).mean() > 0.8
    assert predictions_from_file(out).class_probability is not None


def test_a_class_that_a_file_came_with_stays_where_there_is_one_map(folder: Path, tmp_path: Path) -> None:
    table = select_rows(read_star(folder / "new.star"), slice(0, 40))
    write_particle_file(
        with_columns(table, {"rlnClassNumber": np.full(len(table), 7)}), folder / "seventh.star"
    )
    references = reference_maps([str(folder / "conformation1.mrc")])
    align(
        AlignRequest(references, [folder / "seventh.star"], PoseOutput(tmp_path / "out.star"), alignment=NEAR)
    )
    found = read_star(tmp_path / "out.star")
    assert set(number_column(found, "rlnClassNumber")) == {7.0}
    assert "cryoforumClassProbability" not in found.particles


def test_a_model_trained_anew_on_one_map_forgets_its_classes(
    model: Path, folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "model"
    shutil.copytree(model, out)
    train(TrainRequest([folder / "known.star"], out, CONFIG, split="90,10,0", overwrite=True))
    assert len(load_references(out)) == 1
    assert not (out / "class1").exists()


def test_classes_that_are_asked_for_have_to_be_there(folder: Path, tmp_path: Path) -> None:
    request = TrainRequest([folder / "particles.star"], tmp_path / "model", CONFIG, by_class=True)
    table = read_star(folder / "known.star")
    bare = replace(table, particles=table.particles.drop(columns="rlnClassNumber"))
    write_particle_file(bare, folder / "bare.star")
    with pytest.raises(InputError, match="expected rlnClassNumber for --by-class, found none"):
        train(replace(request, particles=[folder / "bare.star"]))
    assert not (tmp_path / "model" / "model.json").exists()


def test_a_folder_stands_for_its_maps(folder: Path, tmp_path: Path) -> None:
    for number in (1, 2):
        place = tmp_path / "refined" / "reconstruction" / f"class{number}"
        place.mkdir(parents=True)
        shutil.copy(folder / f"conformation{number}.mrc", place / "map.mrc")
    specs = [given.spec for given in reference_maps([str(tmp_path / "refined")])]
    assert specs == [str(tmp_path / "refined" / "reconstruction" / f"class{n}" / "map.mrc") for n in (1, 2)]
    done = CliRunner().invoke(
        app, ["align", str(tmp_path), str(folder / "new.star"), "--out", str(tmp_path / "out.star")]
    )
    assert done.exit_code == 1
    assert "expected a map, or a folder written by initial-model or refine" in done.output
