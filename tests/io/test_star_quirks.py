"""STAR files of every dialect, with the quirks that programs and people give them."""

from pathlib import Path

import pytest
import torch
from helpers.messages import logged, silence

from cryoforum.dataset.image_grid import ImageGrid
from cryoforum.dataset.particle_table import number_column
from cryoforum.dataset.particles import Particles
from cryoforum.dataset.poses import Poses
from cryoforum.dataset.resampling import resampled
from cryoforum.geometry.rotations import geodesic_distance, random_unitquat, relion_euler_to_unitquat
from cryoforum.io.mrc.stacks import LazyImages, write_stack
from cryoforum.io.relion.lengths import pixel_sizes_from_table
from cryoforum.io.relion.particles import particles_from_table, poses_from_table, with_poses
from cryoforum.io.relion.star_files import read_star, write_star

OPTICS = """# version 30001

data_optics

loop_
_rlnOpticsGroupName #1
_rlnOpticsGroup #2
_rlnVoltage #3
_rlnSphericalAberration #4
_rlnAmplitudeContrast #5
_rlnImagePixelSize #6
_rlnImageSize #7
_rlnImageDimensionality #8
one 1 300.0 2.70 0.1 1.5 8 2
"""
PARTICLES = """
# version 30001

data_particles

loop_
_rlnImageName #1
_rlnOpticsGroup #2
_rlnAngleRot #3
_rlnAngleTilt #4
_rlnAnglePsi #5
_rlnOriginXAngst #6
_rlnOriginYAngst #7
1@a.mrcs 1 10 20 30 1.5 -3.0
2@a.mrcs 1 40 50 60 0 0.75
"""
OLD = """data_

loop_
_rlnImageName #1
_rlnAngleRot #2
_rlnAngleTilt #3
_rlnAnglePsi #4
_rlnOriginX #5
_rlnOriginY #6
_rlnMagnification #7
_rlnDetectorPixelSize #8
1@a.mrcs 10 20 30 1 -2 40000 6
2@a.mrcs 40 50 60 0 0.5 40000 6
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Stacks: a and c of 8 px, b of 12 px."""
    for name, box in (("a", 8), ("b", 12), ("c", 8)):
        images = torch.randn(3, box, box, generator=torch.Generator().manual_seed(box))
        write_stack(tmp_path / f"{name}.mrcs", [images], 3, box, 1.5)
    return tmp_path


def read(folder: Path, text: str) -> Particles:
    """The particles of a file with this text, of which nothing is to be warned."""
    (folder / "x.star").write_text(text)
    with silence():
        return particles_from_table(read_star(folder / "x.star"))


def says_the_same(found: Particles) -> None:
    """The particles are those of `PARTICLES`."""
    expected = relion_euler_to_unitquat(torch.tensor([[10.0, 20.0, 30.0], [40.0, 50.0, 60.0]]))
    assert found.pixel_size_angstrom == pytest.approx(1.5) and found.box == 8 and len(found) == 2
    assert geodesic_distance(found.poses.quaternions, expected).max() < 1e-5
    assert found.poses.shifts_angstrom.flatten().tolist() == pytest.approx([1.5, -3.0, 0.0, 0.75])


@pytest.mark.parametrize(
    "text",
    [
        OPTICS + PARTICLES,
        PARTICLES + OPTICS,  # in either order
        OLD,
        OLD.replace("data_\n", "data_images\n"),
        OLD.replace("data_\n", "# RELION; version 3.0.8\n\ndata_model_class_1\n"),
        (OPTICS + PARTICLES).replace("30001", "50001"),
        (OPTICS + PARTICLES).replace(" #", "\t#").replace(" ", "\t"),
        (OPTICS + PARTICLES).replace("\n", "\r\n"),
        "\ufeff" + OPTICS + PARTICLES,
        OPTICS.replace("_rlnImageSize #7\n", "").replace("1.5 8 2", "1.5 2") + PARTICLES,  # read from the stack
        OPTICS.replace("_rlnImageDimensionality #8\n", "").replace("8 2", "8") + PARTICLES,
        "".join(line.partition(" #")[0] + "\n" for line in (OPTICS + PARTICLES).splitlines()),  # no numbers
        OPTICS.replace("loop_\n", "").replace("one 1 300.0 2.70 0.1 1.5 8 2\n", "")
        .replace("Name #1", "Name one").replace("Group #2", "Group 1").replace("Voltage #3", "Voltage 300")
        .replace("Aberration #4", "Aberration 2.7").replace("Contrast #5", "Contrast 0.1")
        .replace("PixelSize #6", "PixelSize 1.5").replace("ImageSize #7", "ImageSize 8")
        .replace("Dimensionality #8", "Dimensionality 2") + PARTICLES,  # a list, as of one row
        OPTICS.replace("one 1 ", "one 1.000000 ") + PARTICLES,  # as written by a program that knows floats only
        OPTICS.replace("one 1 ", '"my microscope" 1 ') + PARTICLES.replace("1@a.mrcs", "'1@a.mrcs'"),
        OPTICS.replace("one 1", "one 4") + PARTICLES.replace("s 1 ", "s 4 "),
        OPTICS + PARTICLES.replace("XAngst", "X").replace("YAngst", "Y")
        .replace("1.5 -3.0", "1 -2").replace("0 0.75", "0 0.5"),  # optics groups, but origins in pixels
        OLD.replace("OriginX", "OriginXAngst").replace("OriginY", "OriginYAngst")
        .replace("1 -2", "1.5 -3").replace("0 0.5", "0 0.75"),  # the other way round
        OPTICS + "\ndata_general\n_rlnTomoSubTomosAre2DStacks 0\n" + PARTICLES,  # RELION 5
    ],
)  # fmt: skip
def test_dialects_that_say_the_same(folder: Path, text: str) -> None:
    says_the_same(read(folder, text))


def test_columns_in_any_order(folder: Path) -> None:
    header, _, table = PARTICLES.partition("loop_\n")
    lines = table.splitlines()
    names, rows = [line.split()[0] for line in lines[:7]], [line.split() for line in lines[7:]]
    order = [6, 2, 4, 1, 3, 0, 5]
    text = "".join(f"{names[column]} #{number + 1}\n" for number, column in enumerate(order))
    text += "".join(" ".join(row[column] for column in order) + "\n" for row in rows)
    says_the_same(read(folder, OPTICS + header + "loop_\n" + text))


def test_a_loop_of_one_row(folder: Path) -> None:
    found = read(folder, OPTICS + PARTICLES.removesuffix("2@a.mrcs 1 40 50 60 0 0.75\n"))
    assert len(found) == 1 and found.poses.shifts_angstrom.tolist() == [[1.5, -3.0]]


def test_names_that_look_like_numbers_and_unknown_columns_stay_as_they_are(folder: Path) -> None:
    extra = "_rlnMicrographName #8\n_labNote #9\n_labEmpty #10\n"
    text = PARTICLES.replace("1@a.mrcs 1", extra + "1@a.mrcs 1").replace("-3.0\n", '-3.0 007 1e5 ""\n')
    text = text.replace("0.75\n", "0.75 1.50 'it''s' NaN\n")
    (folder / "x.star").write_text(OPTICS + text)
    table = read_star(folder / "x.star")
    assert table.particles["rlnMicrographName"].tolist() == ["007", "1.50"]
    write_star(table, folder / "y.star")
    again = read_star(folder / "y.star")
    assert again.particles.equals(table.particles) and again.optics.equals(table.optics)
    assert again.particles["labEmpty"].tolist() == ["", "NaN"]


SECOND = "two 2 200.0 0.01 0.07 1.0 12 2\n"


def test_groups_of_their_own_pixel_size_box_voltage_and_aberration(folder: Path) -> None:
    rows = "1@a.mrcs 1 10 20 30 1.5 -3.0\n2@b.mrcs 2 40 50 60 1.5 -3.0\n3@c.mrcs 1 0 0 0 1.5 -3\n"
    text = PARTICLES[: PARTICLES.index("1@a")] + rows
    defocus = "_rlnDefocusU #8\n_rlnDefocusV #9\n_rlnDefocusAngle #10\n"
    text = text.replace("1@a", defocus + "1@a", 1).replace("\n2@b", " 9000 9000 0\n2@b")
    text = text.replace("\n3@c", " 9000 9000 0\n3@c").removesuffix("\n") + " 9000 9000 0\n"
    (folder / "x.star").write_text(OPTICS + SECOND + text)
    table = read_star(folder / "x.star")
    assert pixel_sizes_from_table(table).tolist() == [1.5, 1.0, 1.5]
    with logged(r"1 of 3 particles are resampled from 12 px and 1 Å/px to 8 px"):
        found = particles_from_table(table)
    assert (found.box, found.pixel_size_angstrom) == (8, 1.5)
    assert found.ctf.voltage_kv.tolist() == [300.0, 200.0, 300.0]
    assert found.ctf.spherical_aberration_mm.tolist() == pytest.approx([2.7, 0.01, 2.7])
    assert found.poses.shifts_angstrom.tolist() == [[1.5, -3.0]] * 3
    assert found.optics_groups.tolist() == [1, 2, 1]
    images = [LazyImages([folder / f"{name}.mrcs"], [index])[torch.tensor([0])] for name, index in
              (("a", 0), ("b", 1), ("c", 2))]  # fmt: skip
    images[1] = resampled(images[1], ImageGrid(12, 1.0), ImageGrid(8, 1.5))[torch.tensor([0])]
    assert torch.allclose(
        found.images[torch.tensor([2, 1, 0, 1])], torch.cat(images)[[2, 1, 0, 1]], atol=1e-6
    )
    wanted = ImageGrid(16, 1.2)
    with logged("from 8 px and 1.5 Å/px to 16 px and 1.2 Å/px"):
        assert particles_from_table(table, grid=wanted).images.shape == (3, 16, 16)


def test_origins_in_pixels_are_pixels_of_each_row(folder: Path) -> None:
    text = OLD.replace("2@a.mrcs 40 50 60 0 0.5 40000", "2@a.mrcs 40 50 60 1 -2 60000")
    (folder / "x.star").write_text(text)
    table = read_star(folder / "x.star")
    assert poses_from_table(table).shifts_angstrom.tolist() == [[1.5, -3.0], [1.0, -2.0]]
    generator = torch.Generator().manual_seed(0)
    poses = Poses(random_unitquat(2, generator=generator), torch.tensor([[3.0, 1.5], [3.0, 1.5]]))
    posed = with_poses(table, poses)
    assert number_column(posed, "rlnOriginX").tolist() == [2.0, 3.0]
    assert torch.allclose(poses_from_table(posed).shifts_angstrom, poses.shifts_angstrom, atol=1e-5)


@pytest.mark.parametrize("dialect", ["3.0", "3.1"])
def test_origins_in_both_units_are_taken_as_in_relion_and_told_of(folder: Path, dialect: str) -> None:
    both = "_rlnOriginX #6\n_rlnOriginY #7\n_rlnOriginXAngst #8\n_rlnOriginYAngst #9\n"
    rows = "1@a.mrcs {} 10 20 30 1 -2 {} -3\n2@a.mrcs {} 0 0 0 0 0 0 0\n"
    if dialect == "3.1":
        head = OPTICS + PARTICLES[: PARTICLES.index("_rlnOriginX")] + both
        rows, taken = rows.replace("s {}", "s 1"), [9.0, -3.0]
    else:
        head = OLD[: OLD.index("_rlnOriginX")] + both + "_rlnMagnification\n_rlnDetectorPixelSize\n"
        rows, taken = (
            rows.replace(" {} 10", " 10").replace(" {} 0", " 0").replace("\n", " 40000 6\n"),
            [1.5, -3.0],
        )
    (folder / "x.star").write_text(head + rows.format("9"))
    with logged(r"x.star, row 1 \(1@a.mrcs\): rlnOriginXAngst is 9 Å, but") as told:
        found = particles_from_table(read_star(folder / "x.star"))
    assert len(told) == 1 and "\n" not in told[0]
    assert found.poses.shifts_angstrom[0].tolist() == taken
    assert read(folder, head + rows.format("1.5")).poses.shifts_angstrom[0].tolist() == [1.5, -3.0]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (PARTICLES.replace("_rlnAngleRot", "_rlnTomoName"), "particles of tomograms"),
        (PARTICLES.replace("_rlnAngleRot", "_rlnTomoVisibleFrames"), "particles of tomograms"),
        (OPTICS.replace("1.5 8 2", "1.5 8 3") + PARTICLES, "subtomograms"),
        (PARTICLES.replace("_rlnAngleRot", "_rlnCtfImage"), "subtomograms"),
        ("data_\n_rlnTomoParticlesFile particles.star\n", "an optimisation set"),
        ("data_model_general\n_rlnX 1\n\ndata_model_classes\nloop_\n_rlnY #1\n1\n", "a model file"),
        ("data_optimiser_general\n_rlnX 1\n", "an optimiser file"),
        ("data_general\n_rlnX 1\n\ndata_fsc\nloop_\n_rlnY #1\n1\n", "a post-processing result"),
        ("data_job\n_rlnJobTypeLabel relion.refine3d\n", "the options of a job"),
        (OPTICS + "\ndata_micrographs\nloop_\n_rlnMicrographName #1\na.mrc\n", "a list of micrographs"),
        (OPTICS.replace("one 1", "one 2") + PARTICLES, r"row 1 \(1@a.mrcs\): optics group '1' is not in"),
        (OPTICS + SECOND.replace("two 2", "two 1") + PARTICLES, "another rlnOpticsGroup in each row"),
        (OPTICS.replace("_rlnImagePixelSize", "_rlnMicrographOriginalPixelSize") + PARTICLES, "rlnImagePixelSize"),
    ],
)  # fmt: skip
def test_other_files_are_refused_by_name(folder: Path, text: str, words: str) -> None:
    (folder / "x.star").write_text(text)
    with pytest.raises(ValueError, match=words) as refusal:
        particles_from_table(read_star(folder / "x.star"))
    assert "x.star" in str(refusal.value) and "\n" not in str(refusal.value)
