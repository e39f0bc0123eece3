"""Files in and nouns out, judged by mrcfile, SciPy, RELION's columns and what was put in."""

from dataclasses import replace
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

import cryoforum as cf
from cryoforum.dataset.predictions import ImageEvidence
from cryoforum.io.relion.star_text import read_tables

COUNT, BOX, PIXEL_SIZE = 7, 16, 3.5
RANDOM = np.random.default_rng(0)
TRUTH = Rotation.random(COUNT, rng=RANDOM)
ANGLES = TRUTH.as_euler("ZYZ", degrees=True)


BEYOND_CRYOSPARC = {  # evidence as a whole, as its files do not hold all of it
    *("cryoforumBoundDeg", "cryoforumOriginErrorAngst", "cryoforumLogLikelihoodGain"),
    *("cryoforumSignalScale", "rlnMaxValueProbDistribution", "cryoforumReferenceHalf"),
    "cryoforumDefocusChange",
}


def particles() -> cf.Particles:
    """Noise under known poses and CTF parameters."""
    columns = torch.arange(float(COUNT))
    ctf = cf.CtfParameters(
        *(15000 + 100 * columns, 14000 + 100 * columns, 10 * columns),
        *(torch.full((COUNT,), value) for value in (300.0, 2.7, 0.1, 0.0)),
    )
    poses = cf.Poses.from_euler(ANGLES, RANDOM.normal(size=(COUNT, 2)))
    return cf.Particles.from_arrays(RANDOM.normal(size=(COUNT, BOX, BOX)), PIXEL_SIZE, poses, ctf)


def predictions(with_evidence: bool = True) -> cf.Predictions:
    """Posteriors of random matrices, and evidence of a circular origin error."""
    lower = torch.from_numpy(RANDOM.normal(size=(COUNT, 4, 4))).float()
    posterior = cf.OrientationPosterior(10 * lower @ lower.mT)
    numbers = torch.rand(COUNT, generator=torch.Generator().manual_seed(1)) + 0.1
    if not with_evidence:
        return cf.Predictions(posterior, posterior.root_mean_square_angle)
    covariance = numbers[:, None, None] * torch.eye(2)
    evidence = ImageEvidence(
        numbers, covariance, 100 * numbers, numbers, numbers, torch.ones(COUNT).long(), 300 * numbers
    )
    shifts = torch.stack([numbers, -numbers], dim=-1)
    half = torch.tensor([1, 2, 1, 2, 1, 2, 1])
    return cf.Predictions(posterior, posterior.root_mean_square_angle, shifts, evidence, half)


@pytest.mark.parametrize("suffix", [".star", ".cs"])
def test_particles_come_back(tmp_path: Path, suffix: str) -> None:
    saved, path = particles(), tmp_path / f"some{suffix}"
    cf.save_particles(saved, path)
    found = cf.load_particles(str(path))
    assert found.poses is not None and saved.poses is not None and saved.ctf is not None
    assert float(found.poses.errors(saved.poses).max()) < 1e-5
    np.testing.assert_allclose(found.poses.shifts_angstrom, saved.poses.shifts_angstrom, atol=1e-4)
    pd_columns = ["rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle", "rlnVoltage", "rlnAmplitudeContrast"]
    np.testing.assert_allclose(found.table()[pd_columns], saved.table()[pd_columns], rtol=1e-5)
    assert found.pixel_size_angstrom == pytest.approx(PIXEL_SIZE)
    with mrcfile.open(tmp_path / "some.mrcs") as stack:
        np.testing.assert_array_equal(stack.data, saved.images[torch.arange(COUNT)])


def test_a_set_keeps_its_columns_and_its_images(tmp_path: Path) -> None:
    cf.save_particles(particles(), tmp_path / "first.star")
    known = cf.load_particle_set([tmp_path / "first.star"])
    table = replace(known.table, particles=known.table.particles.assign(rlnMicrographName="m.mrc"))
    cf.save_particles(cf.ParticleSet(table, known.particles), tmp_path / "second.star")
    second = cf.load_particle_set([tmp_path / "second.star"])
    assert second.table.particles.equals(table.particles)
    turned = Rotation.from_euler("z", 30, degrees=True) * TRUTH
    moved = known.particles.with_poses(cf.Poses.from_matrices(turned.as_matrix()))
    cf.save_particles(cf.ParticleSet(table, moved), tmp_path / "third.star")
    (_, optics), (_, rows) = read_tables(tmp_path / "third.star")
    assert set(rows["rlnMicrographName"]) == {"m.mrc"} and len(optics) == 1
    assert rows["rlnImageName"].tolist() == table.particles["rlnImageName"].tolist()
    angles = rows[["rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi"]].astype(float).to_numpy()
    assert (Rotation.from_euler("ZYZ", angles, degrees=True) * turned.inv()).magnitude().max() < 1e-5
    assert not (tmp_path / "third.mrcs").exists()


@pytest.mark.parametrize("suffix", [".star", ".cs"])
def test_predictions_come_back(tmp_path: Path, suffix: str) -> None:
    made, path = predictions(), tmp_path / f"found{suffix}"
    cf.save_particles(particles(), path, made)
    found = cf.predictions_from_file(path)
    assert float(found.poses.errors(made.poses).max()) < 1e-3
    first, second = made.table(), found.table()
    assert set(first) - set(second) == (BEYOND_CRYOSPARC if suffix == ".cs" else set())
    np.testing.assert_allclose(first[second.columns], second, rtol=1e-3, atol=2e-3)
    if suffix == ".star":
        assert found.evidence is not None and made.evidence is not None
        found_covariance, covariance = (one.evidence.origin_covariance_angstrom2 for one in (found, made))
        torch.testing.assert_close(found_covariance, covariance, rtol=1e-4, atol=0)


def test_predictions_without_shifts_leave_those_of_the_file(tmp_path: Path) -> None:
    saved, made = particles(), predictions(with_evidence=False)
    cf.save_particles(saved, tmp_path / "found.star", made)
    found = cf.predictions_from_file(tmp_path / "found.star")
    assert found.evidence is None and found.model_half is None and saved.poses is not None
    np.testing.assert_allclose(found.poses.shifts_angstrom, saved.poses.shifts_angstrom, atol=1e-5)


def test_tables_are_numbers_in_relions_columns() -> None:
    some, made = particles(), predictions()
    table = made.table(some, truth=some.poses)
    modes = Rotation.from_quat(made.posterior.mode.numpy())
    expected = np.degrees((TRUTH.inv() * modes).magnitude())
    np.testing.assert_allclose(table["cryoforumErrorDeg"], expected, atol=1e-3)
    angles = table[["rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi"]].to_numpy()
    assert (Rotation.from_euler("ZYZ", angles, degrees=True) * modes.inv()).magnitude().max() < 1e-5
    own = some.table()
    assert own["rlnImageName"].tolist() == list(some.names) == table["rlnImageName"].tolist()
    for numeric in (own, table):
        assert all(numeric[name].dtype.kind in "fi" for name in numeric.columns[1:])
    assert "cryoforumErrorDeg" not in made.table() and "rlnOriginXAngst" not in predictions(False).table()


def test_a_map_comes_back_in_mrcfiles_order(tmp_path: Path) -> None:
    voxels = torch.from_numpy(RANDOM.normal(size=(8, 8, 8))).float()
    cf.save_map(cf.Volume(voxels, 2.5), tmp_path / "map.mrc")
    with mrcfile.open(tmp_path / "map.mrc") as judge:
        np.testing.assert_array_equal(judge.data, voxels)
        assert float(judge.voxel_size.z) == pytest.approx(2.5)
    found = cf.load_map(str(tmp_path / "map.mrc"))
    assert torch.equal(found.voxels, voxels) and found.pixel_size_angstrom == pytest.approx(2.5)


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    some, made = particles(), predictions()
    rows = torch.arange(3)
    for wrong in (
        lambda: cf.save_particles(some, tmp_path / "a.star", made[rows]),
        lambda: made.table(some.select(rows)),
        lambda: made.table(truth=cf.Poses.from_euler(ANGLES[:3])),
        lambda: cf.Particles.from_arrays(np.zeros((2, 8, 8)), 1.0, some.poses),
        lambda: cf.Particles.from_arrays(np.zeros((2, 8, 8)), 1.0, ctf=some.ctf),
        lambda: cf.Particles.from_arrays(np.zeros((2, 8, 6)), 1.0),
        lambda: cf.Particles.from_arrays(np.full((2, 8, 8), np.inf), 1.0),
        lambda: cf.Particles.from_arrays(np.zeros((2, 8, 8)), 0.0),
    ):
        with pytest.raises(cf.InputError, match="^expected .*, found"):
            wrong()
    assert not list(tmp_path.iterdir())
    cf.save_particles(some, tmp_path / "plain.star")
    with pytest.raises(cf.InputError, match="no column cryoforumA11; predict them first"):
        cf.predictions_from_file(tmp_path / "plain.star")


def test_what_a_notebook_shows_is_short() -> None:
    some, made = particles(), predictions()
    volume = cf.Volume(torch.zeros(8, 8, 8), 2.5)
    shown = [some, some.poses, some.ctf, made, made.posterior, volume]
    assert all(len(repr(noun)) < 100 and "\n" not in repr(noun) for noun in shown)
    assert repr(some) == "Particles(7 of 16 px and 3.5 Å/px: poses, CTF)"
