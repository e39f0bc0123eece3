"""Simulated sets as files: ideal ones as before, imperfect ones with the truth beside."""

from collections import Counter
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from cryoforum.cli import app
from cryoforum.dataset.poses import Poses
from cryoforum.geometry.rotations import geodesic_distance
from cryoforum.io.particle_files import load_particle_set
from cryoforum.io.relion.star_files import read_star

SMALL = ("--n", 60, "--box", 32, "--pixel-size", 11.2, "--snr", 2)


def run(*words: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == code, result.output
    return result.output


def poses(path: Path) -> Poses:
    found = load_particle_set([path]).particles.poses
    assert found is not None
    return found


@pytest.fixture(scope="module")
def realistic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("realistic")
    run(
        "simulate",
        "--out",
        folder,
        *SMALL,
        "--realistic",
        "--junk",
        25,
        "--junk-kinds",
        "noise,other_molecule",
    )
    return folder


def test_an_ideal_set_is_its_own_truth(tmp_path: Path) -> None:
    run("simulate", "--out", tmp_path, *SMALL)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["particles.mrcs", "particles.star"]
    assert "rlnMicrographName" not in read_star(tmp_path / "particles.star").particles


def test_what_is_known_of_imperfect_particles_is_in_the_truth_alone(realistic: Path) -> None:
    assert sorted(path.name for path in realistic.iterdir()) == [
        "conformation1.mrc",
        "conformation2.mrc",
        "particles.mrcs",
        "particles.star",
        "truth.star",
    ]
    stated, truth = (read_star(realistic / f"{name}.star").particles for name in ("particles", "truth"))
    assert list(stated["rlnImageName"]) == list(truth["rlnImageName"])
    assert list(stated["rlnMicrographName"]) == list(truth["rlnMicrographName"])
    assert list(stated["rlnRandomSubset"]) == list(truth["rlnRandomSubset"])
    assert set(truth) - set(stated) == {"rlnClassNumber", "simulatedJunkKind"}
    kinds = Counter(truth["simulatedJunkKind"])
    assert kinds.keys() == {"genuine", "noise", "other_molecule"} and kinds["genuine"] == 45
    assert {*truth["rlnClassNumber"][truth["simulatedJunkKind"] == "genuine"]} == {"1", "2"}
    assert {*truth["rlnClassNumber"][truth["simulatedJunkKind"] != "genuine"]} == {"0"}


def test_labels_are_off_and_the_maps_are_those_of_the_states(realistic: Path) -> None:
    genuine = torch.tensor(
        (read_star(realistic / "truth.star").particles["simulatedJunkKind"] == "genuine").tolist()
    )
    error = geodesic_distance(
        poses(realistic / "particles.star").quaternions, poses(realistic / "truth.star").quaternions
    )[genuine]
    assert 0.005 < float(error.median()) < 0.06
    first, second = (mrcfile.read(realistic / f"conformation{number}.mrc") for number in (1, 2))
    assert 0.9 < np.corrcoef(first.ravel(), second.ravel())[0, 1] < 0.999


def test_every_imperfection_has_its_option(tmp_path: Path) -> None:
    options = (
        *(
            "--conformations",
            "70,20,10",
            "--hinge-angle",
            5,
            "--preferred-views",
            2,
            "--strength-spread",
            0.1,
        ),
        *("--neighbours", 0.5, "--noise-colour", 2, "--ramp", 0.5, "--defocus-error", 100, "--pose-error", 1),
        *("--shift-error", 2, "--wrong-poses", 5, "--junk", 10),
    )
    run("simulate", "--out", tmp_path, *SMALL, *options)
    assert (tmp_path / "conformation3.mrc").exists()
    run("simulate", "--out", tmp_path / "again", *SMALL, *options)
    for name in ("particles.star", "truth.star", "particles.mrcs", "conformation3.mrc"):
        if name.endswith(".star"):
            assert (tmp_path / name).read_text() == (tmp_path / "again" / name).read_text()
        else:
            assert np.array_equal(mrcfile.read(tmp_path / name), mrcfile.read(tmp_path / "again" / name))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--conformations", "60,30"), "percentages above 0 that add up to 100, as in 60,40; found '60,30'"),
        (("--conformations", "all"), "percentages above 0 that add up to 100"),
        (("--junk", 100), "junk_share from 0 to below 1"),
        (("--junk", 5, "--junk-kinds", "ice"), "junk kinds from noise, edge"),
        (("--ramp", -1), "ramp of 0 or more"),
        (("--junk", 5, "--structure", "6z6u", "--box", 16), "junk of kind other_molecule"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(
    tmp_path: Path, options: tuple[object, ...], words: str
) -> None:
    out = tmp_path / "out"
    assert words in " ".join(run("simulate", "--out", out, *SMALL, *options, code=1).split())
    assert not out.exists()


def test_nothing_of_an_earlier_set_is_replaced_unasked(realistic: Path) -> None:
    run("simulate", "--out", realistic, *SMALL, "--realistic", code=1)
    (realistic / "particles.star").rename(realistic / "kept.star")
    assert "--overwrite" in run("simulate", "--out", realistic, *SMALL, "--realistic", code=1)
    (realistic / "kept.star").rename(realistic / "particles.star")
