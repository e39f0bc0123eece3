"""Several files as one: groups, columns and names as RELION joins them, and nothing mixed up."""

import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from helpers.messages import logged, silence

from cryoforum.dataset.particle_table import ParticleTable, number_column
from cryoforum.io.join import joined
from cryoforum.io.mrc.stacks import write_stack
from cryoforum.io.particle_files import root_for_images
from cryoforum.io.relion.particles import particles_from_table, poses_from_table
from cryoforum.io.relion.star_files import read_star, write_star

OPTICS = ("rlnOpticsGroupName", "rlnOpticsGroup", "rlnVoltage", "rlnSphericalAberration", "rlnAmplitudeContrast",
          "rlnImagePixelSize", "rlnImageSize", "rlnImageDimensionality")  # fmt: skip
PARTICLES = ("rlnImageName", "rlnOpticsGroup", "rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi", "rlnOriginXAngst",
             "rlnOriginYAngst", "rlnRandomSubset", "rlnMicrographName", "labNote")  # fmt: skip
OLD = """data_

loop_
_rlnImageName
_rlnVoltage
_rlnSphericalAberration
_rlnAmplitudeContrast
_rlnMagnification
_rlnDetectorPixelSize
_rlnAngleRot
_rlnAngleTilt
_rlnAnglePsi
_rlnOriginX
_rlnOriginY
_rlnRandomSubset
_rlnMicrographName
_labNote
1@old.mrcs 300 2.7 0.1 40000 6 1 2 3 2 -4 1 m1 o1
2@old.mrcs 200 2.7 0.1 40000 8 1 2 3 2 -4 2 m1 o2
"""


def block(name: str, columns: tuple[str, ...], rows: str) -> str:
    labels = "".join(f"_{column} #{number + 1}\n" for number, column in enumerate(columns))
    return f"\n# version 30001\n\ndata_{name}\n\nloop_\n{labels}{rows}\n"


def written(
    folder: Path, name: str, optics: str, particles: str, **changes: tuple[str, ...]
) -> ParticleTable:
    """A file whose text is made of such rows, and the stack it names, whose images differ in every pixel."""
    folder.mkdir(exist_ok=True)
    text = block("optics", changes.get("optics_columns", OPTICS), optics)
    (folder / name).write_text(text + block("particles", changes.get("columns", PARTICLES), particles))
    return read_star(folder / name)


def stack(path: Path, box: int, seed: int) -> torch.Tensor:
    path.parent.mkdir(parents=True, exist_ok=True)
    images = torch.randn(4, box, box, generator=torch.Generator().manual_seed(seed))
    write_stack(path, [images], 4, box, 1.5)
    return images


@pytest.fixture
def tables(tmp_path: Path) -> list[ParticleTable]:
    """Files of two folders; both call a stack s.mrcs, of their own folder."""
    stack(tmp_path / "a" / "s.mrcs", 8, 1)
    stack(tmp_path / "b" / "s.mrcs", 8, 2)
    a = written(
        tmp_path / "a", "x.star", "one 1 300.000000 2.7 0.1 1.5 8 2\ntwo 2 200 2.7 0.1 1.5 8 2",
        "1@s.mrcs 1 10 20 30 1.50 -3.0 1 007 a1\n2@s.mrcs 2 40 50 60 0 0.75 2 m2 a2",
    )  # fmt: skip
    b = written(
        tmp_path / "b", "x.star", "one 5 300 2.70 0.1 1.500 8 2\ntwo 3 200 0.01 0.1 1.5 8 2",
        "000003@s.mrcs 3 1 2 3 0 0 2 m1 b1\n1@s.mrcs 5 4 5 6 9.0 9 1 m1 b2",
    )  # fmt: skip
    return [a, b]


def test_equal_groups_are_one_and_others_of_the_same_name_are_renamed(tables: list[ParticleTable]) -> None:
    with logged("its optics group two is another one .* called two_2") as told:
        found = joined(tables)
    assert len(told) == 1
    assert found.optics["rlnOpticsGroupName"].tolist() == ["one", "two", "two_2"]
    assert found.optics["rlnOpticsGroup"].tolist() == ["1", "2", "3"]
    assert found.optics["rlnVoltage"].tolist() == ["300.000000", "200", "200"]
    assert found.particles["rlnOpticsGroup"].tolist() == ["1", "2", "3", "1"]
    assert number_column(found, "rlnSphericalAberration").tolist() == [2.7, 2.7, 0.01, 2.7]


def test_values_order_and_half_sets_stay(tables: list[ParticleTable]) -> None:
    found = joined(tables)
    for column in set(PARTICLES) - {"rlnImageName", "rlnOpticsGroup"}:
        both = [*tables[0].particles[column], *tables[1].particles[column]]
        assert found.particles[column].tolist() == both, column
    assert particles_from_table(found).half_sets.tolist() == [1, 2, 2, 1]
    assert joined(tables[:1]) is tables[0]


def test_names_lead_to_the_stacks_of_their_own_folder(tables: list[ParticleTable], tmp_path: Path) -> None:
    first, second = (particles_from_table(table).images[torch.arange(2)] for table in tables)
    found = joined(tables)
    assert torch.equal(particles_from_table(found).images[torch.arange(4)], torch.cat([first, second]))
    assert found.particles["rlnImageName"][2] == "000003@b/s.mrcs"
    write_star(found, tmp_path / "joined.star")  # also when read again from the folder that both share
    again = particles_from_table(read_star(tmp_path / "joined.star"))
    assert torch.equal(again.images[torch.arange(4)], torch.cat([first, second]))


def test_names_that_lead_there_anyway_stay(tmp_path: Path) -> None:
    stack(tmp_path / "Extract" / "s.mrcs", 8, 1)
    tables = [
        written(tmp_path / name, "x.star", "one 1 300 2.7 0.1 1.5 8 2", f"{image} 1 1 2 3 0 0 1 m a")
        for name, image in (("job1", "1@Extract/s.mrcs"), ("job2", "2@Extract/s.mrcs"))
    ]
    assert joined(tables).particles["rlnImageName"].tolist() == ["1@Extract/s.mrcs", "2@Extract/s.mrcs"]


def test_a_stack_outside_the_shared_folder_is_named_from_there(tmp_path: Path) -> None:
    """Two files of one folder, whose names are those of a project elsewhere, given by --root."""
    images = stack(tmp_path / "project" / "s.mrcs", 8, 1)
    tables = [
        written(tmp_path / "stars", f"{n}.star", "one 1 300 2.7 0.1 1.5 8 2", f"{n}@s.mrcs 1 1 2 3 0 0 1 m a")
        for n in (1, 2)
    ]
    found = joined(tables, tmp_path / "project")
    assert found.particles["rlnImageName"].tolist() == ["1@s.mrcs", "2@s.mrcs"]
    particles = particles_from_table(found, tmp_path / "project")
    assert torch.equal(particles.images[torch.arange(2)], images[:2])


def test_the_first_at_sign_ends_the_slice(tmp_path: Path) -> None:
    images = stack(tmp_path / "a" / "x@2.mrcs", 8, 1)
    one = "one 1 300 2.7 0.1 1.5 8 2"
    tables = [written(tmp_path / "a", f"{n}.star", one, f"{n}@x@2.mrcs 1 1 2 3 0 0 1 m a") for n in (1, 2)]
    tables.append(written(tmp_path / "b", "3.star", one, "3@a/x@2.mrcs 1 1 2 3 0 0 1 m a"))
    found = joined(tables)
    assert found.particles["rlnImageName"].tolist() == [f"{n}@a/x@2.mrcs" for n in (1, 2, 3)]
    assert torch.equal(particles_from_table(found).images[torch.arange(3)], images[:3])
    write_star(tables[0], tmp_path / "a" / "copy.star")
    assert root_for_images(tmp_path / "a" / "copy.star", tmp_path) is None
    assert (
        root_for_images(written(tmp_path, "4.star", one, "1@x@2.mrcs 1 1 2 3 0 0 1 m a").path, tmp_path / "a")
        == tmp_path / "a"
    )


def test_the_root_that_a_written_file_needs(tmp_path: Path) -> None:
    """Names relative to the project, in files of one of its folders, and a file written elsewhere."""
    project, out = tmp_path / "project", tmp_path / "out"
    (project / "job").mkdir(parents=True)
    out.mkdir()
    stack(project / "Extract" / "s.mrcs", 8, 1)
    row = "1@Extract/s.mrcs 1 1 2 3 0 0 1 m a"
    table = written(out, "x.star", "one 1 300 2.7 0.1 1.5 8 2", row)
    root = root_for_images(out / "x.star", project / "job")
    assert root == project and len(particles_from_table(table, root)) == 1
    assert root_for_images(out / "x.star", out, project) == project
    assert root_for_images(out / "x.star", out) is None  # nobody knows
    written(project / "job", "x.star", "one 1 300 2.7 0.1 1.5 8 2", row)
    assert root_for_images(project / "job" / "x.star", out) is None  # none is needed
    gone = "1@/gone/Extract/s.mrcs 1 1 2 3 0 0 1 m a"
    written(out, "y.star", "one 1 300 2.7 0.1 1.5 8 2", gone)
    assert root_for_images(out / "y.star", out, project / "Extract") == project / "Extract"


def test_an_old_dialect_joins_with_its_lengths_in_angstrom(
    tables: list[ParticleTable], tmp_path: Path
) -> None:
    stack(tmp_path / "a" / "old.mrcs", 8, 3)
    (tmp_path / "a" / "old.star").write_text(OLD)
    old = read_star(tmp_path / "a" / "old.star")
    with silence():
        found = joined([tables[0], old])
        alone = joined([old, tables[0]])
    assert found.optics["rlnOpticsGroupName"].tolist() == ["one", "two", "opticsGroup1", "opticsGroup2"]
    assert number_column(found, "rlnImagePixelSize").tolist() == [1.5, 1.5, 1.5, 2.0]
    assert number_column(found, "rlnImageSize").tolist() == [8.0] * 4
    expected = torch.cat([poses_from_table(table).shifts_angstrom for table in (tables[0], old)])
    assert torch.allclose(poses_from_table(found).shifts_angstrom, expected)
    assert poses_from_table(found).shifts_angstrom[2:].tolist() == [[3.0, -6.0], [4.0, -8.0]]
    assert found.particles["labNote"].tolist() == ["a1", "a2", "o1", "o2"]
    assert not {"rlnOriginX", "rlnMagnification", "rlnVoltage"} & set(found.particles)
    assert alone.particles["labNote"].tolist() == ["o1", "o2", "a1", "a2"]


def test_columns_of_some_files_are_left_out_but_for_those_whose_absence_means_a_value(
    tables: list[ParticleTable], tmp_path: Path
) -> None:
    fewer = tuple(c for c in PARTICLES if c not in ("rlnOriginXAngst", "rlnOriginYAngst", "labNote"))
    other = written(
        tmp_path / "b", "y.star", "one 1 300 2.7 0.1 1.5 8 2 0.25", "4@s.mrcs 1 1 2 3 1 m",
        columns=fewer, optics_columns=(*OPTICS, "rlnBeamTiltX"),
    )  # fmt: skip
    with logged("left out labNote, which not all files have") as told:
        found = joined([tables[0], other])
    assert sum("left out" in one for one in told) == 1
    assert "labNote" not in found.particles
    assert number_column(found, "rlnBeamTiltX").tolist() == [0.0, 0.0, 0.25]
    assert poses_from_table(found).shifts_angstrom.tolist() == [[1.5, -3.0], [0.0, 0.75], [0.0, 0.0]]


def test_what_cannot_be_joined(tables: list[ParticleTable], tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"a/x.star, row 1 \(1@s.mrcs\): the image is already in .*a/x.star, row 1"
    ):
        joined([tables[0], tables[0]])
    shutil.copy(tmp_path / "a" / "x.star", tmp_path / "a" / "again.star")
    with pytest.raises(ValueError, match=r"again.star, row 1 .* already in .*x.star, row 1; remove the dupl"):
        joined([tables[0], read_star(tmp_path / "a" / "again.star")])
    text = (tmp_path / "b" / "x.star").read_text()
    (tmp_path / "b" / "whole.star").write_text(text.replace("rlnRandomSubset", "labSubset"))
    with pytest.raises(ValueError, match="rlnRandomSubset in all files or in none, .*whole.star"):
        joined([tables[0], read_star(tmp_path / "b" / "whole.star")])
    (tmp_path / "b" / "bad.star").write_text(text.replace("4 5 6", "4 five 6"))
    with pytest.raises(
        ValueError, match=r"bad.star, row 2 \(1@s.mrcs\): expected a number in .*rlnAngleTilt"
    ):
        joined([tables[0], read_star(tmp_path / "b" / "bad.star")])
    (tmp_path / "b" / "gone.star").write_text(text.replace("1@s", "1@gone"))
    with pytest.raises(ValueError, match=r"gone.star, row 2 .*gone.mrcs not found"):
        joined([tables[0], read_star(tmp_path / "b" / "gone.star")])


def test_relion_joins_the_same_groups_and_columns(
    relion: Path, tables: list[ParticleTable], tmp_path: Path
) -> None:
    """Two files whose groups of one name have one meaning: there RELION's way and ours must be the same."""
    for name, note in (("a", "labNote"), ("b", "labOther")):
        path = tmp_path / name / "x.star"
        text = path.read_text().replace("rlnMicrographName", "rlnGroupName").replace("labNote", note)
        path.write_text(text.replace("two 3 200 0.01", "three 3 200 0.01"))
    command = [
        relion.with_name("relion_star_handler"),
        "--i",
        "a/x.star b/x.star",
        "--combine",
        "--o",
        "r.star",
    ]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    theirs = read_star(tmp_path / "r.star")
    with logged("left out"):
        ours = joined([read_star(tmp_path / name / "x.star") for name in ("a", "b")])
    assert set(ours.particles) == set(theirs.particles) and set(ours.optics) == set(theirs.optics)
    assert ours.optics["rlnOpticsGroupName"].tolist() == theirs.optics["rlnOpticsGroupName"].tolist()
    for column in ("rlnOpticsGroup", "rlnRandomSubset", "rlnGroupName"):
        assert ours.particles[column].tolist() == theirs.particles[column].tolist(), column
    for column in ("rlnVoltage", "rlnSphericalAberration", "rlnAngleTilt", "rlnOriginXAngst", "rlnImageSize"):
        assert number_column(ours, column).tolist() == number_column(theirs, column).tolist(), column
    # and takes ours for its own
    write_star(ours, tmp_path / "ours.star")
    command = [*command[:1], "--i", "ours.star", "--operate", "rlnAngleRot", "--add_to", "0", "--o", "o.star"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    again = read_star(tmp_path / "o.star")
    assert again.particles["rlnImageName"].tolist() == ours.particles["rlnImageName"].tolist()
    assert number_column(again, "rlnOpticsGroup").tolist() == [1, 2, 3, 1]
