"""Poses from a reference, on files: found with and without a model, and doubted where there is reason to.

The model is one that cannot err: its numbers, that a network would read from images, are made from the
true orientations. What is tested is all that comes after.
"""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner, Result

from cryoforum.alignment import map_aligner
from cryoforum.alignment.config import AlignmentConfig
from cryoforum.alignment.fitting import fitted_aligner
from cryoforum.alignment.global_search import Candidates, Templates
from cryoforum.cli import app
from cryoforum.commands.compare import pose_errors
from cryoforum.dataset.particle_table import number_column, select_rows, with_columns
from cryoforum.dataset.particles import Particles
from cryoforum.dataset.pose_errors import orientation_errors
from cryoforum.dataset.predictions import Predictions
from cryoforum.dataset.split import PAPER_SPLIT
from cryoforum.dataset.volumes import Volume
from cryoforum.distributions.bingham import OrientationPosterior
from cryoforum.distributions.exponential_family import rotation_polynomials
from cryoforum.geometry.rotations import compose, geodesic_distance
from cryoforum.imaging.likelihood import WhitenedImages
from cryoforum.io.mrc.maps import read_volume, write_volume
from cryoforum.io.mrc.stacks import write_stack
from cryoforum.io.relion.particles import particles_from_table, poses_from_table
from cryoforum.io.relion.star_files import read_star, write_star
from cryoforum.molecules.structures import load_structure
from cryoforum.network import predict as inference
from cryoforum.network.model import TrainedModel
from cryoforum.network.model_folder import load_model
from cryoforum.reconstruction.half_sets import drawn_half_sets
from cryoforum.reconstruction.reference_files import load_reference

BOX, PIXEL_SIZE, COUNT = 32, 11.2, 160
SMALL = ("--box", BOX, "--pixel-size", PIXEL_SIZE, "--snr", 5, "--max-shift", 1.2)
REACH = ("--max-shift", 1.2)  # of searches: as far as there is something to find
MAP = "the lab's map"
NETWORK = ("--candidates", "network")
TOML = """
[training]
image_passes = 64
batch_size = 16
grid_nside = 2
grid_count = 2
[network]
widths = [4, 8]
degree = 6
"""


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def run(*arguments: object) -> Result:
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output + str(result.exception)
    return result


def refused(*arguments: object) -> str:
    """The one line of a command that fails with exit code 1."""
    result = invoke(*arguments)
    assert result.exit_code == 1 and isinstance(result.exception, SystemExit), result.output
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("Error: ")]
    assert len(errors) == 1 and lines[-1] == errors[0] and "Traceback" not in result.output
    return errors[0]


@dataclass(frozen=True)
class Lab:
    """Folder of map.mrc, particles.star (with half sets) and few.star (the first 80), and of a model with
    its reference."""

    folder: Path
    true_orientation: dict[str, Tensor]

    def __truediv__(self, name: str) -> Path:
        return self.folder / name

    def oracle(self, model: TrainedModel, batch: Particles, compute: object = None) -> Tensor:
        """Numbers of a head that is sure of the true orientations, to within some 10°."""
        config = model.config
        polynomials = rotation_polynomials(config.network.degree, config.symmetry)
        truth = torch.stack([self.true_orientation[name] for name in batch.names])
        return 60 / polynomials.size * polynomials.features(truth)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    folder = tmp_path_factory.mktemp("lab")
    path = folder / "particles.star"
    write_volume(load_structure("4v5d", BOX, PIXEL_SIZE), folder / "map.mrc")
    run("simulate", "--structure", folder / "map.mrc", "--out", folder, "--n", COUNT, *SMALL, "--seed", 7)
    table = read_star(path)
    table = with_columns(table, {"rlnRandomSubset": torch.arange(COUNT) % 2 + 1})
    write_star(with_columns(table, {"myLabel": [f"# {row}" for row in range(COUNT)]}), path)
    table = read_star(path)
    write_star(select_rows(table, range(80)), folder / "few.star")
    (folder / "config.toml").write_text(TOML)
    settings = ("--preset", "tiny", "--config", folder / "config.toml", "--split", "60,20,20")
    run("train", path, "--out", folder / "model", "--split", PAPER_SPLIT, *settings)
    poses = poses_from_table(table)
    assert poses is not None
    return Lab(folder, dict(zip(table.particles["rlnImageName"], poses.quaternions, strict=True)))


@pytest.fixture(autouse=True)
def model_that_knows(lab: Lab) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(map_aligner, "network_numbers", lab.oracle)
        patch.setattr(inference, "network_numbers", lab.oracle)
        yield


@pytest.fixture(scope="module")
def predicted(lab: Lab) -> Path:
    """predicted.star, by the model's own reference, each half set by its own half's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(map_aligner, "network_numbers", lab.oracle)
        result = run(
            "predict", lab / "model", lab / "particles.star", "--out", lab / "predicted.star", *NETWORK
        )
    assert "explains only" not in result.stderr and "faint" not in result.stderr
    return lab / "predicted.star"


def orientation_errors_of(found: Path, truth: Path, symmetry: str = "C1") -> Tensor:
    return pose_errors(read_star(found), read_star(truth), symmetry).orientations_rad


def median_error_deg(found: Path, truth: Path, symmetry: str = "C1") -> float:
    return float(torch.rad2deg(orientation_errors_of(found, truth, symmetry).median()))


def shift_errors_pixel(found: Path, truth: Path) -> Tensor:
    """Distances of rlnOriginX/YAngst from the true ones; the rows of ``found`` are the first of ``truth``."""
    ours, theirs = poses_from_table(read_star(found)), poses_from_table(read_star(truth))
    assert ours is not None and theirs is not None
    away = ours.shifts_angstrom - theirs.shifts_angstrom[: len(ours)]
    return torch.linalg.vector_norm(away, dim=1) / PIXEL_SIZE


def column(path: Path, name: str) -> np.ndarray:
    values = number_column(read_star(path), name)
    assert values is not None, name
    return values


def independent(table: Path, out: Path) -> bool:
    result = run("reconstruct", table, "--out", out, "--root", table.parent)
    found = json.loads((out / "resolution.json").read_text())["independent"]
    assert ("optimistic" in result.output) != found
    return found


def without_poses(source: Path, out: Path) -> Path:
    """The same particles with nothing said of their poses."""
    table = read_star(source)
    zero = np.zeros(len(table))
    names = ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi", "rlnOriginXAngst", "rlnOriginYAngst")
    write_star(with_columns(table, dict.fromkeys(names, zero)), out)
    return out


def test_align_finds_orientations_and_shifts_without_a_model(lab: Lab, tmp_path: Path) -> None:
    blind, out = without_poses(lab / "few.star", tmp_path / "blind.star"), tmp_path / "aligned.star"
    result = run("align", lab / "map.mrc", blind, "--out", out, *REACH, "--root", lab.folder)
    assert "80 poses in" in result.output and "explains only" not in result.stderr
    assert median_error_deg(out, lab / "few.star") < 3
    shifts = shift_errors_pixel(out, lab / "few.star")
    zero = shift_errors_pixel(blind, lab / "few.star")
    assert float(shifts.median()) < 0.3 < 0.7 < float(zero.median())
    table, before = read_star(out), read_star(blind)
    assert table.particles["myLabel"].tolist() == before.particles["myLabel"].tolist()
    assert not column(out, "cryoforumReferenceHalf").any()
    bound, expected = column(out, "cryoforumBoundDeg"), column(out, "cryoforumExpectedErrorDeg")
    assert 0.3 < np.median(bound) < 5 and bool((expected >= 0.5 * bound).all())
    assert np.median(column(out, "cryoforumSignalScale")) == pytest.approx(1, abs=0.1)
    assert np.median(column(out, "rlnMaxValueProbDistribution")) > 0.95


def test_a_symmetric_molecule_is_aligned_up_to_its_symmetry(tmp_path: Path) -> None:
    simulated, out = tmp_path / "particles.star", tmp_path / "aligned.star"
    shape = ("--box", 24, "--pixel-size", 8, "--snr", 5, "--max-shift", 1)
    run("simulate", "--structure", "6z6u", "--out", tmp_path, "--n", 60, *shape)
    result = run("align", "6z6u", simulated, "--out", out, "--symmetry", "O", "--max-shift", 1)
    assert "explains only" not in result.stderr
    assert median_error_deg(out, simulated, "O") < 8
    assert median_error_deg(out, simulated, "C1") > 30
    assert float(shift_errors_pixel(out, simulated).median()) < 0.3


def test_few_particles_are_aligned_without_measuring_their_noise(lab: Lab, tmp_path: Path) -> None:
    table = lab.folder / "ten.star"
    write_star(select_rows(read_star(lab / "particles.star"), range(10)), table)
    for arguments in (("align", lab / "map.mrc"), ("predict", lab / "model")):
        out = tmp_path / f"{arguments[0]}.star"
        run(*arguments, table, "--out", out, "--root", lab.folder, *REACH)
        assert median_error_deg(out, table) < 4
        assert float(shift_errors_pixel(out, table).median()) < 0.4


def test_predict_says_how_good_its_poses_should_be(lab: Lab, tmp_path: Path) -> None:
    arguments = ("predict", lab / "model", lab / "particles.star", "--out", tmp_path / "p.star")
    said = run(*arguments, *NETWORK).output
    table = read_star(tmp_path / "p.star")
    for what, column in (("expected error", "cryoforumExpectedErrorDeg"), ("bound", "cryoforumBoundDeg")):
        assert f"{what} {np.median(number_column(table, column)):.2f}°" in said
    assert "0 of 160 (0 %) are probably junk" in said


def test_predict_refines_what_the_network_says(lab: Lab, predicted: Path) -> None:
    assert median_error_deg(predicted, lab / "particles.star") < 3
    assert float(shift_errors_pixel(predicted, lab / "particles.star").median()) < 0.3
    assert read_star(predicted).particles["myLabel"].tolist() == [f"# {row}" for row in range(COUNT)]


@pytest.mark.parametrize("candidates", [("--candidates", "search"), ("--candidates", "both"), ()])
def test_all_sources_of_candidates_lead_to_the_same_poses(
    lab: Lab, predicted: Path, tmp_path: Path, candidates: tuple[str, ...]
) -> None:
    out = tmp_path / "out.star"
    options = (*REACH, "--root", lab.folder)
    run("predict", lab / "model", lab / "few.star", "--out", out, *candidates, *options)
    ours, theirs = poses_from_table(read_star(out)), poses_from_table(read_star(predicted))
    assert ours is not None and theirs is not None
    apart = geodesic_distance(ours.quaternions, theirs.quaternions[:80])
    assert float(torch.rad2deg(apart.median())) < 1
    assert float((torch.rad2deg(apart) < 5).double().mean()) > 0.9


def test_candidates_are_chosen_by_the_calibrated_density(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Tensor] = []
    candidates = map_aligner.candidates

    def seeing(templates: Templates, images: WhitenedImages, density: torch.Tensor) -> Candidates:
        seen.append(density)
        return candidates(templates, images, density)

    monkeypatch.setattr(map_aligner, "candidates", seeing)
    description = json.loads((lab / "model" / "model.json").read_text())
    densities = []
    for sharpness in (1.0, 0.25):
        model = tmp_path / f"model{sharpness}"
        shutil.copytree(lab / "model", model)
        (model / "model.json").write_text(json.dumps({**description, "sharpness": sharpness}))
        seen.clear()
        run("predict", model, lab / "few.star", *NETWORK, "--out", tmp_path / f"{sharpness}.star")
        densities.append(seen[-1])
    torch.testing.assert_close(densities[1], 0.25 * densities[0])
    assert float(densities[0].std()) > 1


def test_the_size_of_a_batch_hardly_matters(lab: Lab, predicted: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.star"
    options = ("--batch-size", 37, "--root", lab.folder, *NETWORK)
    run("predict", lab / "model", lab / "particles.star", "--out", out, *options)
    one, other = (poses_from_table(read_star(path)) for path in (out, predicted))
    assert one is not None and other is not None
    assert float(torch.rad2deg(geodesic_distance(one.quaternions, other.quaternions)).max()) < 0.3
    for name in ("cryoforumBoundDeg", "cryoforumLogLikelihoodGain", "cryoforumReferenceHalf"):
        np.testing.assert_allclose(column(out, name), column(predicted, name), rtol=0.01)


def test_images_of_another_normalisation_get_the_same_poses(
    lab: Lab, predicted: Path, tmp_path: Path
) -> None:
    """Noise and scale are measured on the particles at hand, not taken from those of the training."""
    table = read_star(lab / "particles.star")
    images = particles_from_table(table).images[torch.arange(COUNT)]
    write_stack(tmp_path / "particles.mrcs", [5 * images], COUNT, BOX, PIXEL_SIZE)
    shutil.copy(lab / "particles.star", tmp_path / "scaled.star")
    out = tmp_path / "out.star"
    result = run("predict", lab / "model", tmp_path / "scaled.star", "--out", out, *NETWORK)
    assert "explains only" not in result.stderr
    one, other = (poses_from_table(read_star(path)) for path in (out, predicted))
    assert one is not None and other is not None
    apart = torch.rad2deg(geodesic_distance(one.quaternions, other.quaternions))
    assert float(apart.median()) < 0.5
    assert np.median(column(out, "cryoforumSignalScale")) == pytest.approx(1, abs=0.1)


def test_half_sets_stay_apart(lab: Lab, predicted: Path, tmp_path: Path) -> None:
    np.testing.assert_array_equal(
        column(predicted, "cryoforumReferenceHalf"), column(predicted, "rlnRandomSubset")
    )
    assert independent(predicted, tmp_path / "apart")
    together = lab / "together.star"
    run("predict", lab / "model", lab / "particles.star", "--out", together, "--half-maps", "all", *NETWORK)
    assert not column(together, "cryoforumReferenceHalf").any()
    assert not independent(together, tmp_path / "together")


def test_half_sets_are_drawn_where_they_are_wanted_and_not_there(lab: Lab, tmp_path: Path) -> None:
    table = read_star(lab / "particles.star")
    bare, out = lab / "bare.star", lab / "drawn.star"
    whole = type(table)(table.path, table.optics, table.particles.drop(columns="rlnRandomSubset"))
    parts = load_model(lab / "model").parts
    new = [row for row, name in enumerate(whole.particles["rlnImageName"]) if parts[name] != "train"]
    write_star(select_rows(whole, new), bare)
    run("predict", lab / "model", bare, "--out", out, *NETWORK)
    assert "rlnRandomSubset" not in read_star(out).particles
    assert not independent(out, tmp_path / "one")
    told = run(
        "predict", lab / "model", bare, "--out", out, "--half-maps", "own", "--overwrite", *NETWORK
    ).stderr
    assert "half sets are drawn and written" in told
    half_sets = column(out, "rlnRandomSubset")
    names = read_star(out).particles["rlnImageName"].tolist()
    assert half_sets.tolist() == drawn_half_sets(names).tolist()
    assert sorted(np.unique(half_sets)) == [1, 2]
    np.testing.assert_array_equal(column(out, "cryoforumReferenceHalf"), half_sets)
    assert independent(out, tmp_path / "two")
    # Those of the training are in one half's map already, and nobody knows in which.
    write_star(whole, bare)
    words = refused(
        "predict", lab / "model", bare, "--out", out, "--half-maps", "own", "--overwrite", *NETWORK
    )
    assert "expected rlnRandomSubset for --half-maps own" in words


def test_a_half_set_is_aligned_by_the_map_of_its_half(lab: Lab, predicted: Path, tmp_path: Path) -> None:
    """Where the second half's map is spoiled, the first half set's poses stay what they were."""
    model, out = tmp_path / "model", lab / "spoiled.star"
    shutil.copytree(lab / "model", model)
    half = read_volume(model / "reference_half2.mrc")
    spoiled = torch.randn(half.voxels.shape, generator=torch.Generator().manual_seed(0))
    scale = float(half.voxels.std())
    write_volume(Volume(scale * spoiled, half.pixel_size_angstrom), model / "reference_half2.mrc")
    run("predict", model, lab / "particles.star", "--out", out, *NETWORK)
    errors = torch.rad2deg(orientation_errors_of(out, lab / "particles.star"))
    half_sets = torch.from_numpy(column(out, "rlnRandomSubset"))
    assert float(errors[half_sets == 1].median()) < 3 < 6 < float(errors[half_sets == 2].median())


def test_poses_of_the_network_alone_are_never_called_independent(
    lab: Lab, predicted: Path, tmp_path: Path
) -> None:
    """Not even where the particles come with columns of an earlier prediction by half sets."""
    out = lab / "unrefined.star"
    for source in (lab / "particles.star", predicted):
        run("predict", lab / "model", source, "--out", out, "--no-refine", "--overwrite", *NETWORK)
        assert not independent(out, tmp_path / source.stem)


def test_without_local_refinement_orientations_are_the_networks_and_shifts_are_found(
    lab: Lab, tmp_path: Path
) -> None:
    out = tmp_path / "out.star"
    blind = without_poses(lab / "few.star", lab / "blind.star")
    run("predict", lab / "model", blind, "--out", out, "--no-refine", "--tta", "1", *NETWORK)
    assert median_error_deg(out, lab / "few.star") < 0.5  # the model that knows
    shifts = shift_errors_pixel(out, lab / "few.star")
    assert float(shifts.median()) < 0.5 < float(shift_errors_pixel(blind, lab / "few.star").median())
    assert "cryoforumBoundDeg" not in read_star(out).particles


def test_without_a_reference_poses_are_the_networks_and_shifts_stay(lab: Lab, tmp_path: Path) -> None:
    model, out = tmp_path / "model", tmp_path / "out.star"
    shutil.copytree(lab / "model", model)
    (model / "reference.json").unlink()
    common = ("predict", model, lab / "few.star", "--out", out, "--root", lab.folder)
    for options in (("--refine",), ("--half-maps", "own"), ("--candidates", "search")):
        assert "has no reference" in refused(*common, *options)
        assert not out.exists()
    run(*common)
    assert float(shift_errors_pixel(out, lab / "few.star").max()) < 1e-3
    assert not {"cryoforumBoundDeg", "cryoforumReferenceHalf"} & set(read_star(out).particles)
    run(*common, "--reference", lab / "map.mrc", "--overwrite", *NETWORK)
    assert median_error_deg(out, lab / "few.star") < 3


def test_a_map_of_other_voxels_is_resampled_and_that_is_said(lab: Lab, tmp_path: Path) -> None:
    out = tmp_path / "out.star"
    for box, pixel_size in ((44, 8.2), (36, PIXEL_SIZE)):
        path = tmp_path / f"map{box}.mrc"
        write_volume(load_structure("4v5d", box, pixel_size), path)
        options = ("--reference", path, "--out", out, "--root", lab.folder, "--overwrite", *NETWORK)
        result = run("predict", lab / "model", lab / "few.star", *options)
        notice = f"map{box}.mrc: resampled from {box} voxels of {pixel_size:.4g} Å to {BOX} of"
        assert notice in result.stderr
        assert "explains only" not in result.stderr
        assert median_error_deg(out, lab / "few.star") < 3
    options = ("--reference", lab / "map.mrc", "--out", out, "--root", lab.folder, "--overwrite", *NETWORK)
    assert "resampled" not in run("predict", lab / "model", lab / "few.star", *options).stderr


@pytest.mark.parametrize(("axis", "candidates"), [(0, ()), (2, NETWORK)])
def test_a_mirrored_reference_is_told(
    lab: Lab, tmp_path: Path, axis: int, candidates: tuple[str, ...]
) -> None:
    volume = read_volume(lab / "map.mrc")
    mirrored, out = tmp_path / "mirrored.mrc", tmp_path / "out.star"
    write_volume(Volume(volume.voxels.flip(axis).roll(1, axis), PIXEL_SIZE), mirrored)
    options = ("--reference", mirrored, "--out", out, "--root", lab.folder, *REACH, *candidates)
    lines = run("predict", lab / "model", lab / "few.star", *options).stderr.splitlines()
    told = [line for line in lines if "explains only" in line]
    assert len(told) == 1
    assert "its mirror image fits: it is of the other hand than the model; mirror it" in told[0]


def test_an_inverted_reference_is_told(lab: Lab, tmp_path: Path) -> None:
    negative, out = tmp_path / "negative.mrc", tmp_path / "out.star"
    write_volume(Volume(-read_volume(lab / "map.mrc").voxels, PIXEL_SIZE), negative)
    options = ("--reference", negative, "--out", out, "--root", lab.folder, *REACH)
    told = run("predict", lab / "model", lab / "few.star", *options).stderr
    assert "its negative fits: the contrast is inverted; multiply it by -1" in told


def test_another_molecule_is_told(lab: Lab, tmp_path: Path) -> None:
    out = tmp_path / "out.star"
    common = ("--out", out, "--root", lab.folder, *REACH, "--overwrite")
    for command, words in (
        (("align", "6z6u", lab / "few.star"), "it may be another molecule"),
        (
            ("predict", lab / "model", lab / "few.star", "--reference", "6z6u"),
            "it may be turned or another molecule",
        ),
    ):
        lines = run(*command, *common).stderr.splitlines()
        told = [line for line in lines if "explains only" in line]
        assert len(told) == 1 and words in told[0] and "mirror" not in told[0]
        assert len(read_star(out)) == 80


def test_a_turned_reference_is_told_and_found_by_a_search(lab: Lab, tmp_path: Path) -> None:
    """The model's orientations are of another frame: its candidates lead nowhere, a search does. That it is
    of another frame is told nonetheless, unless the search alone was asked for."""
    voxels = read_volume(lab / "map.mrc").voxels
    quarter = voxels.transpose(1, 2).flip(2).roll(1, 2)  # about z: (x, y) goes to (-y, x)
    path, out = tmp_path / "turned.mrc", tmp_path / "out.star"
    write_volume(Volume(quarter, PIXEL_SIZE), path)
    common = ("predict", lab / "model", lab / "few.star", "--reference", path, "--root", lab.folder)
    truth = poses_from_table(read_star(lab / "few.star"))
    assert truth is not None
    turned = compose(torch.tensor([0.0, 0.0, 0.5**0.5, 0.5**0.5]), truth.quaternions)
    for candidates, is_told, is_found in (
        ("network", True, False),
        ("both", True, True),
        ("search", False, True),
    ):
        options = ("--candidates", candidates, *REACH, "--overwrite")
        result = run(*common, "--out", out, *options)
        assert ("it may be turned" in result.stderr) == ("explains only" in result.stderr) == is_told
        found = poses_from_table(read_star(out))
        assert found is not None
        error = orientation_errors(found.quaternions, turned).median()
        assert (float(torch.rad2deg(error)) < 3) == is_found


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--reference", MAP, "--resolution", 0), "expected a resolution above 0 and at most 179 Å"),
        (("--reference", MAP, "--resolution", -4), "found -4"),
        (("--reference", MAP, "--resolution", 1000), "found 1000"),
        (("--reference", MAP, "--resolution", "nan"), "found nan"),
        (("--reference", MAP, "--half-maps", "own"), "a reference with half maps for --half-maps own"),
        (("--reference", "none.mrc"), "none.mrc"),
        (("--reference", "1abc"), "expected a shipped molecule"),
        (("--max-shift", -1), "largest shift of 0 or more pixels, found -1"),
        (("--max-shift", "nan"), "largest shift of 0 or more pixels, found nan"),
        (("--max-shift", "inf"), "found inf"),
    ],
)
def test_bad_options_of_predict(lab: Lab, tmp_path: Path, options: tuple[object, ...], words: str) -> None:
    common = ("--out", tmp_path / "out.star", "--root", lab.folder)
    named = [lab / "map.mrc" if option == MAP else option for option in options]
    assert words in refused("predict", lab / "model", lab / "few.star", *common, *named)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("reference", "options", "words"),
    [
        (MAP, ("--resolution", 0), "expected a resolution above 0"),
        (MAP, ("--symmetry", "Q"), "expected a point group"),
        (MAP, ("--max-shift", -1), "largest shift"),
        ("none.mrc", (), "none.mrc"),
    ],
)
def test_bad_options_of_align(
    lab: Lab, tmp_path: Path, reference: str, options: tuple[object, ...], words: str
) -> None:
    common = ("--out", tmp_path / "out.star", "--root", lab.folder)
    named = lab / "map.mrc" if reference == MAP else reference
    assert words in refused("align", named, lab / "few.star", *common, *options)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_reference_ends_a_prediction_in_one_line(lab: Lab, tmp_path: Path) -> None:
    model, out = tmp_path / "model", tmp_path / "out.star"
    shutil.copytree(lab / "model", model)
    (model / "reference_half1.mrc").write_bytes(b"hello")
    line = refused("predict", model, lab / "few.star", "--out", out, "--root", lab.folder)
    assert "expected the reference written by 'cryoforum train'" in line and not out.exists()


def test_a_low_resolution_limits_what_is_compared(lab: Lab, tmp_path: Path) -> None:
    """At 60 Å, shell 6 of this box, poses are known less well than with all that the map shows."""
    out, bounds = tmp_path / "out.star", []
    for resolution in (60, 30):
        options = ("--reference", lab / "map.mrc", "--resolution", resolution, "--overwrite", *NETWORK)
        run("predict", lab / "model", lab / "few.star", "--out", out, "--root", lab.folder, *options)
        bounds.append(float(np.median(column(out, "cryoforumBoundDeg"))))
        assert median_error_deg(out, lab / "few.star") < 8
    assert bounds[0] > 1.3 * bounds[1]


def test_expected_errors_hold(lab: Lab, predicted: Path) -> None:
    """Root mean squares over all particles: the bound, what is expected, and what it is."""
    errors = torch.rad2deg(orientation_errors_of(predicted, lab / "particles.star")).numpy()
    bound, expected = (column(predicted, f"cryoforum{name}Deg") for name in ("Bound", "ExpectedError"))
    typical = errors < 3 * np.median(errors)  # without the few that went to another mode
    assert typical.mean() > 0.9
    root = float(np.sqrt((errors[typical] ** 2).mean()))
    assert 0.6 * np.median(bound) < root < 2.5 * np.median(bound)
    assert np.median(expected) < 2.5 * root


def test_particles_of_two_halves_come_back_in_their_order(lab: Lab) -> None:
    """Batches are sorted by half for the comparison and must be put back as they were."""
    table = read_star(lab / "particles.star")
    particles = particles_from_table(table)
    reference = load_reference(lab / "model")
    assert reference is not None
    config = AlignmentConfig(source="network")
    aligner = fitted_aligner(reference, particles, load_model(lab / "model"), config, own_half_maps=True)
    rows = torch.tensor([3, 0, 8, 5, 2, 11])
    together = aligner.align_batch(particles.select(rows))
    for at, row in enumerate(rows):
        alone = aligner.align_batch(particles.select(row[None]))
        apart = geodesic_distance(alone.posterior.mode[0], together.posterior.mode[at])
        assert float(apart) < 1e-3
        assert together.evidence is not None and alone.evidence is not None
        assert int(together.evidence.reference_half[at]) == int(row) % 2 + 1
        for name in vars(together.evidence):
            one, other = getattr(alone.evidence, name)[0], getattr(together.evidence, name)[at]
            torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-4)


def test_predictions_without_shifts_have_no_poses() -> None:
    posterior = OrientationPosterior(torch.eye(4)[None])
    with pytest.raises(ValueError, match="predictions with shifts"):
        _ = Predictions(posterior, torch.ones(1)).poses
    shifts = torch.tensor([[1.0, 2.0]])
    assert torch.equal(Predictions(posterior, torch.ones(1), shifts).poses.shifts_angstrom, shifts)
