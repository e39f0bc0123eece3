"""Two models of half sets: neither knows the other's particles, and each aligns its own."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

from cryoforum.cli import app
from cryoforum.commands import train as training
from cryoforum.commands.train import is_unfinished
from cryoforum.dataset.particle_table import number_column, select_rows, with_columns
from cryoforum.errors import InputError
from cryoforum.geometry.rotations import geodesic_distance
from cryoforum.io.mrc.maps import read_volume
from cryoforum.io.mrc.stacks import write_stack
from cryoforum.io.relion.particles import particles_from_table, poses_from_table
from cryoforum.io.relion.star_files import read_star, write_star
from cryoforum.network.model_folder import load_model, load_models, save_model
from cryoforum.reconstruction.half_sets import drawn_half_sets

COUNT, FEW, BOX, PIXEL_SIZE = 120, 40, 28, 12.8
TINY = ("--preset", "tiny", "--split", "60,20,20")
TINY += ("--set", "training.image_passes=96", "--set", "training.batch_size=16")
TINY += ("--set", "training.grid_nside=2", "--set", "training.grid_count=1")
TINY += ("--set", "network.widths=[4, 8]", "--set", "network.degree=2")
SEARCH = ("--candidates", "search", "--max-shift", "1")


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def run(*arguments: object) -> Result:
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output + str(result.exception)
    return result


def refused(*arguments: object) -> str:
    result = invoke(*arguments)
    assert result.exit_code == 1, result.output
    return result.stderr.strip().splitlines()[-1]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """particles.star with half sets in turn, few.star of the first, and model: the models of both."""
    folder = tmp_path_factory.mktemp("halves")
    shape = ("--n", COUNT, "--box", BOX, "--pixel-size", PIXEL_SIZE, "--snr", 5, "--max-shift", 1)
    run("simulate", "--out", folder, *shape, "--seed", 7)
    table = read_star(folder / "particles.star")
    table = with_columns(table, {"rlnRandomSubset": torch.arange(COUNT) % 2 + 1})
    write_star(table, folder / "particles.star")
    write_star(select_rows(table, range(FEW)), folder / "few.star")
    run("train", folder / "particles.star", "--half-set-models", "--out", folder / "model", *TINY)
    return folder


def column(path: Path, name: str) -> np.ndarray:
    values = number_column(read_star(path), name)
    assert values is not None, name
    return values


def predict(lab: Path, table: Path, out: Path, *options: object, model: str = "model") -> Path:
    run("predict", lab / model, table, "--out", out, "--root", lab, *SEARCH, *options)
    return out


def independent(lab: Path, table: Path, out: Path) -> bool:
    result = run("reconstruct", table, "--out", out, "--root", lab)
    found = json.loads((out / "resolution.json").read_text())["independent"]
    assert ("optimistic" in result.output) != found
    return found


def names_of(path: Path) -> list[str]:
    return read_star(path).particles["rlnImageName"].tolist()


def without(path: Path, name: str, out: Path) -> Path:
    table = read_star(path)
    write_star(type(table)(table.path, table.optics, table.particles.drop(columns=name)), out)
    return out


def test_each_model_knows_the_particles_of_its_half_set_alone(lab: Path) -> None:
    names, half_sets = names_of(lab / "particles.star"), column(lab / "particles.star", "rlnRandomSubset")
    for half, model in enumerate(load_models(lab / "model"), 1):
        assert set(model.parts) == {name for name, own in zip(names, half_sets, strict=True) if own == half}
    assert not is_unfinished(lab / "model")


def test_nothing_of_the_first_half_depends_on_images_of_the_second(lab: Path, tmp_path: Path) -> None:
    """Model, reference and poses of half 1 are the same to the last bit where half 2 is noise."""
    table = read_star(lab / "particles.star")
    images = particles_from_table(table).images[torch.arange(COUNT)]
    half_sets = torch.from_numpy(column(lab / "particles.star", "rlnRandomSubset"))
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(images.shape, generator=generator) + 0.2 * images
    spoiled = torch.where((half_sets == 2)[:, None, None], noise, images)
    write_stack(tmp_path / "particles.mrcs", [spoiled], COUNT, BOX, PIXEL_SIZE)
    shutil.copy(lab / "particles.star", tmp_path)
    run("train", tmp_path / "particles.star", "--half-set-models", "--out", tmp_path / "model", *TINY)
    for half, same in (("half1", True), ("half2", False)):
        for name in ("weights.safetensors", "reference.json"):
            ours, theirs = (folder / "model" / half / name for folder in (lab, tmp_path))
            assert (ours.read_bytes() == theirs.read_bytes()) == same, name
        maps = [read_volume(folder / "model" / half / "reference.mrc") for folder in (lab, tmp_path)]
        assert torch.equal(maps[0].voxels, maps[1].voxels) == same
    for options in ((), ("--no-refine",)):
        found = []
        for folder in (lab, tmp_path):
            out = tmp_path / f"{folder.name}{len(options)}.star"
            poses = poses_from_table(read_star(predict(folder, folder / "particles.star", out, *options)))
            assert poses is not None
            found.append(poses)
        apart = geodesic_distance(found[0].quaternions, found[1].quaternions)
        assert float(apart[half_sets == 1].max()) == 0 < float(apart[half_sets == 2].max())


@pytest.mark.parametrize("options", [(), ("--no-refine",)])
def test_each_half_set_is_aligned_by_its_own_model_and_its_maps_are_independent(
    lab: Path, tmp_path: Path, options: tuple[str, ...]
) -> None:
    out = predict(lab, lab / "particles.star", tmp_path / "out.star", *options)
    half_sets = column(out, "rlnRandomSubset")
    np.testing.assert_array_equal(column(out, "cryoforumModelHalf"), half_sets)
    assert independent(lab, out, tmp_path / "map")
    for half in (1, 2):
        own = tmp_path / f"own{half}.star"
        write_star(select_rows(read_star(lab / "particles.star"), np.flatnonzero(half_sets == half)), own)
        alone = tmp_path / f"alone{half}.star"
        predict(lab, own, alone, "--half-maps", "all", *options, model=f"model/half{half}")
        for name in ("cryoforumExpectedErrorDeg", "rlnAngleTilt", "rlnOriginXAngst"):
            np.testing.assert_allclose(column(alone, name), column(out, name)[half_sets == half], atol=0.05)


def test_cross_fitting_takes_the_model_that_never_saw_the_particle(lab: Path, tmp_path: Path) -> None:
    out = tmp_path / "crossed.star"
    predict(lab, lab / "few.star", out, "--cross-fit")
    np.testing.assert_array_equal(column(out, "cryoforumModelHalf"), 3 - column(out, "rlnRandomSubset"))
    assert not independent(lab, out, tmp_path / "map")


def test_the_networks_word_on_its_own_particles_is_said_to_be_too_sure(lab: Path, tmp_path: Path) -> None:
    arguments = ("predict", lab / "model", lab / "few.star", "--root", lab, "--no-refine")
    told = run(*arguments, "--out", tmp_path / "own.star").stderr
    assert f"{FEW} particles are aligned by the network that learned from them" in told
    told = run(*arguments, "--out", tmp_path / "crossed.star", "--cross-fit").stderr
    assert "learned from them" not in told


@pytest.mark.parametrize("options", [(), ("--no-refine",)])
def test_one_map_from_elsewhere_makes_the_halves_dependent(
    lab: Path, tmp_path: Path, options: tuple[str, ...]
) -> None:
    elsewhere = ("--reference", lab / "model" / "half1" / "reference.mrc", *options)
    out = predict(lab, lab / "few.star", tmp_path / "out.star", *elsewhere)
    assert not column(out, "cryoforumModelHalf").any()
    assert not independent(lab, out, tmp_path / "map")


def test_half_sets_are_those_of_the_training_where_the_file_has_none(lab: Path, tmp_path: Path) -> None:
    bare = without(lab / "particles.star", "rlnRandomSubset", tmp_path / "bare.star")
    table = read_star(bare)
    order = torch.randperm(COUNT, generator=torch.Generator().manual_seed(1))
    new = [name.replace("@", "@./") for name in table.particles["rlnImageName"]]
    half_new = [new[row] if row >= 80 else table.particles["rlnImageName"][row] for row in range(COUNT)]
    write_star(select_rows(with_columns(table, {"rlnImageName": half_new}), order), bare)
    out = tmp_path / "out.star"
    result = run("predict", lab / "model", bare, "--out", out, "--root", lab, "--no-refine")
    assert "half sets are those of the training" in result.stderr
    learned = dict.fromkeys(load_model(lab / "model" / "half1").parts, 1)
    learned |= dict.fromkeys(load_model(lab / "model" / "half2").parts, 2)
    drawn = []
    for name, subset in zip(names_of(out), column(out, "rlnRandomSubset"), strict=True):
        if name in learned:
            assert subset == learned[name]
        else:
            drawn.append(subset)
    assert len(drawn) == 40 and set(drawn) == {1, 2}
    assert independent(lab, out, tmp_path / "map")


def test_half_sets_that_are_not_those_of_the_training_are_refused(lab: Path, tmp_path: Path) -> None:
    table = read_star(lab / "particles.star")
    swapped, out = tmp_path / "swapped.star", tmp_path / "out.star"
    write_star(with_columns(table, {"rlnRandomSubset": (torch.arange(COUNT) + 1) % 2 + 1}), swapped)
    words = refused("predict", lab / "model", swapped, "--out", out, "--root", lab)
    assert "expected the half sets of the training" in words and not out.exists()


def test_one_half_set_of_particles_needs_one_model(lab: Path, tmp_path: Path) -> None:
    table, own = read_star(lab / "particles.star"), tmp_path / "own.star"
    write_star(select_rows(table, range(1, COUNT, 2)), own)
    out = predict(lab, own, tmp_path / "out.star")
    assert set(column(out, "cryoforumModelHalf")) == {2}


def test_options_that_do_not_fit_the_models_are_refused(lab: Path, tmp_path: Path) -> None:
    common = (lab / "particles.star", "--out", tmp_path / "out.star", "--root", lab)
    assert "found --half-maps all" in refused("predict", lab / "model", *common, "--half-maps", "all")
    words = refused("predict", lab / "model" / "half1", *common, "--cross-fit")
    assert "expected two half-set models for --cross-fit" in words
    words = refused("train", lab / "particles.star", "--half-set-models", "--out", lab / "model", *TINY)
    assert "exists and is not empty" in words
    words = refused(
        "train", lab / "particles.star", "--half-set-models", "--out", lab / "model" / "half1", *TINY
    )
    assert "holds a model of all particles" in words
    words = refused(
        "train", lab / "particles.star", "--half-set-models", "--out", lab / "model", "--resume", *TINY
    )
    assert "found none" in words
    table, own = read_star(lab / "particles.star"), tmp_path / "own.star"
    write_star(select_rows(table, range(1, COUNT, 2)), own)
    words = refused("train", own, "--root", lab, "--half-set-models", "--out", tmp_path / "model", *TINY)
    assert "expected particles in both halves, found 60 in one" in words and not (tmp_path / "model").exists()


def test_damaged_pairs_of_models_are_refused(lab: Path, tmp_path: Path) -> None:
    work = tmp_path / "model"
    shutil.copytree(lab / "model", work)
    save_model(load_model(work / "half1"), work / "half2")
    with pytest.raises(ValueError, match="disjoint half sets"):
        load_models(work)
    shutil.rmtree(work / "half2")
    with pytest.raises(ValueError, match="half2"):
        load_models(work)


def test_an_interrupted_training_goes_on_with_the_half_that_is_left(lab: Path, tmp_path: Path) -> None:
    work = tmp_path / "model"
    shutil.copytree(lab / "model", work)
    shutil.rmtree(work / "half2")
    assert is_unfinished(work)
    before = (work / "half1" / "weights.safetensors").stat().st_mtime_ns
    told = run("train", lab / "particles.star", "--half-set-models", "--out", work, "--resume", *TINY).stderr
    assert "half set 2 of 2" in told and "half set 1 of 2" not in told
    assert (work / "half1" / "weights.safetensors").stat().st_mtime_ns == before
    ours, theirs = (folder / "half2" / "weights.safetensors" for folder in (work, lab / "model"))
    assert ours.read_bytes() == theirs.read_bytes()


def test_replacing_a_pair_leaves_no_old_mate(
    lab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = tmp_path / "model"
    shutil.copytree(lab / "model", work)

    def stopped(*arguments: object, **options: object) -> None:
        raise InputError("stopped")

    monkeypatch.setattr(training, "_train_into", stopped)
    arguments = ("train", lab / "particles.star", "--half-set-models", "--out", work, "--overwrite", *TINY)
    assert CliRunner().invoke(app, list(map(str, arguments))).exit_code == 1
    with pytest.raises(ValueError, match="expected a model folder"):
        load_models(work)


def test_half_sets_are_drawn_for_a_training_without_them(lab: Path, tmp_path: Path) -> None:
    bare = without(lab / "particles.star", "rlnRandomSubset", tmp_path / "bare.star")
    arguments = (
        bare,
        "--root",
        lab,
        "--half-set-models",
        "--out",
        tmp_path / "model",
        "--max-minutes",
        0.01,
        *TINY,
    )
    assert "half sets are drawn" in run("train", *arguments).stderr
    first, second = (set(model.parts) for model in load_models(tmp_path / "model"))
    assert first | second == set(names_of(bare)) and not first & second
    halves = drawn_half_sets(names_of(bare)).tolist()
    assert first == {name for name, half in zip(names_of(bare), halves, strict=True) if half == 1}
