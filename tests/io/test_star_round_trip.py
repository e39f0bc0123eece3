"""A STAR file that went through the project differs from what it was in nothing but what was meant to change."""

import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cryoforum.dataset.particle_table import ParticleTable, select_rows, with_columns
from cryoforum.dataset.poses import Poses
from cryoforum.geometry.rotations import random_unitquat
from cryoforum.io.predictions import with_predictions
from cryoforum.io.relion.particles import with_poses
from cryoforum.io.relion.star_files import read_star, write_star

# All that fits between one kind of quotation marks; RELION's own values are a small part of it.
VALUES = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cc", "Zl", "Zp"], exclude_characters="'"), max_size=12
)
LABELS = st.from_regex(r"(rln|lab|_)[A-Za-z0-9_.@/-]{1,10}", fullmatch=True)
OURS = {"rlnImageName", "rlnOpticsGroup", "rlnImagePixelSize", "rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi",
        "rlnOriginX", "rlnOriginY", "rlnOriginXAngst", "rlnOriginYAngst", "rlnCoordinateZ", "rlnCtfImage"}  # fmt: skip


@st.composite
def tables(draw: st.DrawFn) -> ParticleTable:
    """A particle file of either dialect with columns of its own in any place, and any text in them."""
    count = draw(st.integers(1, 5))

    def extra_columns(rows: int) -> dict[str, list[str]]:
        names = draw(st.lists(LABELS.filter(lambda name: name not in OURS), max_size=4, unique=True))
        return {name: draw(st.lists(VALUES, min_size=rows, max_size=rows)) for name in names}

    columns = {
        "rlnImageName": [f"{row + 1}@a.mrcs" for row in range(count)],
        "rlnImagePixelSize": ["1.250"] * count,
    }
    optics = None
    if draw(st.booleans()):
        del columns["rlnImagePixelSize"]
        optics = pd.DataFrame(
            {"rlnOpticsGroup": ["3"], "rlnImagePixelSize": ["1.250"]} | extra_columns(1), dtype=str
        )
        columns["rlnOpticsGroup"] = ["3"] * count
    frame = pd.DataFrame(columns | extra_columns(count), dtype=str)
    return ParticleTable(Path("x.star"), optics, frame[draw(st.permutations(list(frame)))])


SETTINGS = settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])


def passed_through(table: ParticleTable, folder: Path) -> ParticleTable:
    write_star(table, folder / "x.star")
    return read_star(folder / "x.star")


def assert_equal(found: ParticleTable, expected: ParticleTable) -> None:
    assert found.particles.to_dict("list") == expected.particles.to_dict("list")
    assert list(found.particles) == list(expected.particles)
    assert (found.optics is None) == (expected.optics is None)
    if expected.optics is not None:
        assert found.optics.to_dict("list") == expected.optics.to_dict("list")


@SETTINGS
@given(table=tables())
def test_what_is_written_is_read(tmp_path: Path, table: ParticleTable) -> None:
    once = passed_through(table, tmp_path)
    assert_equal(once, table)
    first = (tmp_path / "x.star").read_bytes()
    passed_through(once, tmp_path)
    assert (tmp_path / "x.star").read_bytes() == first


@SETTINGS
@given(table=tables(), data=st.data())
def test_selected_rows_are_as_they_were(tmp_path: Path, table: ParticleTable, data: st.DataObject) -> None:
    rows = data.draw(st.lists(st.integers(0, len(table) - 1), min_size=1, unique=True))
    found = passed_through(select_rows(table, rows), tmp_path)
    assert found.particles.to_dict("list") == table.particles.iloc[rows].to_dict("list")


@SETTINGS
@given(table=tables(), seed=st.integers(0, 99))
def test_new_poses_and_columns_change_nothing_else(tmp_path: Path, table: ParticleTable, seed: int) -> None:
    count, generator = len(table), torch.Generator().manual_seed(seed)
    poses = Poses(random_unitquat(count, generator=generator), torch.randn(count, 2, generator=generator))
    posed = passed_through(
        with_poses(with_columns(table, {"cryoforumTrace": np.ones(count)}), poses), tmp_path
    )
    frame = dict(zip(("qx", "qy", "qz", "qw"), poses.quaternions.T.numpy(), strict=True))
    predicted = passed_through(with_predictions(table, frame | {"cryoforumTrace": np.ones(count)}), tmp_path)
    for found in (posed, predicted):
        assert set(found.particles) - set(table.particles) <= OURS | {"cryoforumTrace"}
        assert_equal(ParticleTable(table.path, found.optics, found.particles[list(table.particles)]), table)


def test_relion_takes_what_we_write_and_keeps_it(relion: Path, tmp_path: Path) -> None:
    """All that RELION's own reader can hold: no blanks within values, and labels it does not know."""
    optics = pd.DataFrame(
        {"rlnOpticsGroupName": ["one", "two"], "rlnOpticsGroup": ["1", "2"], "rlnImagePixelSize": ["1.5", "2.25"],
         "rlnVoltage": ["300", "200"], "rlnSphericalAberration": ["2.7", "0.01"], "rlnImageSize": ["8", "12"],
         "rlnImageDimensionality": ["2", "2"], "labGrid": ["007", "1e5"]}, dtype=str,
    )  # fmt: skip
    particles = pd.DataFrame(
        {"labNote": ["007", "a#b", "NaN"], "rlnImageName": ["1@a.mrcs", "2@b.mrcs", "3@a.mrcs"],
         "rlnOpticsGroup": ["1", "2", "1"], "rlnRandomSubset": ["1", "2", "1"], "rlnMicrographName": ["1", "2.50", "x"]},
        dtype=str,
    )  # fmt: skip
    poses = Poses(random_unitquat(3, generator=torch.Generator().manual_seed(0)), torch.ones(3, 2))
    table = with_poses(ParticleTable(Path(), optics, particles), poses)
    write_star(table, tmp_path / "ours.star")
    command = [relion.with_name("relion_star_handler"), "--i", "ours.star", "--o", "theirs.star"]
    command += ["--operate", "rlnAngleRot", "--add_to", "0"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    theirs = read_star(tmp_path / "theirs.star")
    for column in ("labNote", "rlnImageName", "rlnMicrographName"):
        assert theirs.particles[column].tolist() == table.particles[column].tolist()
    assert theirs.optics["labGrid"].tolist() == ["007", "1e5"]
    for column in table.particles.columns.difference(["labNote", "rlnImageName", "rlnMicrographName"]):
        theirs_and_ours = (frame.particles[column].astype(float) for frame in (theirs, table))
        assert np.allclose(*theirs_and_ours, rtol=0, atol=2e-5), column  # RELION writes ten characters
