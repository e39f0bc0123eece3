"""Every broken input file is refused in one line that says where and what."""

from pathlib import Path

import mrcfile
import numpy as np
import pytest
import torch

from cryoforum.io.mrc.stacks import LazyImages, write_stack
from cryoforum.io.relion.particles import particles_from_table
from cryoforum.io.relion.star_files import read_star

HEADER = """
data_optics

loop_
_rlnOpticsGroup #1
_rlnImagePixelSize #2
1 1.5
2 1.6

data_particles

loop_
_rlnImageName #1
_rlnOpticsGroup #2
_rlnDefocusU #3
_rlnAngleRot #4
_rlnAngleTilt #5
_rlnAnglePsi #6
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "particles.star"
    path.write_text(text)
    return path


def refused(path: Path, *words: str) -> None:
    """The file is refused in one line that has all these words and the file's name."""
    with pytest.raises(ValueError) as refusal:
        particles_from_table(read_star(path))
    message = str(refusal.value)
    assert "\n" not in message
    for word in (path.name, *words):
        assert word in message, message


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_stack(tmp_path / "a.mrcs", [torch.zeros(2, 8, 8)], 2, 8, 1.5)
    write_stack(tmp_path / "b.mrcs", [torch.zeros(2, 6, 6)], 2, 6, 1.5)
    return tmp_path


@pytest.mark.parametrize(
    ("particle_rows", "words"),
    [
        ("", ["empty table"]),
        ("1@a.mrcs 1 1 0 0 0\n2@gone.mrcs 1 1 0 0 0", ["row 2", "gone.mrcs not found", "--root"]),
        ("1@a.mrcs 1 1 0 0 0\n2@a.mrcs 1 1 0 nan 0", ["row 2", "2@a.mrcs", "rlnAngleTilt", "'nan'"]),
        ("1@a.mrcs 1 1 0 zero 0", ["row 1", "rlnAngleTilt", "'zero'"]),
        ("1@a.mrcs 3 1 0 0 0", ["row 1", "optics group '3'"]),
        ("x@a.mrcs 1 1 0 0 0", ["row 1", "000001@stack.mrcs"]),
        ("1@a.mrcs 1 1 0 0", ["expected 6 values", "found 5", "line 19"]),
    ],
)
def test_bad_particle_rows(folder: Path, particle_rows: str, words: list[str]) -> None:
    refused(write(folder, HEADER + particle_rows + "\n"), *words)


def test_slice_past_the_end_and_mixed_boxes(folder: Path) -> None:
    table = write(folder, HEADER + "1@a.mrcs 1 1 0 0 0\n3@a.mrcs 1 1 0 0 0\n")
    with pytest.raises(ValueError, match=r"3@a.mrcs \(row 2\): expected a slice from 1 to 2, .* found 3"):
        particles_from_table(read_star(table))
    table = write(folder, HEADER + "1@a.mrcs 1 1 0 0 0\n1@b.mrcs 1 1 0 0 0\n")
    with pytest.raises(ValueError, match=r"b.mrcs: expected images of 8 px as in .*a.mrcs, found 6 px"):
        particles_from_table(read_star(table))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["no data_ block"]),
        ("hello\n", ["line 1", "'hello'"]),
        ("data_x\nhello\n", ["line 2", "'hello'"]),
        ("data_\nloop_\n_rlnCoordinateX #1\n_rlnCoordinateY #2\n1 2\n", ["rlnImageName"]),
        ("data_\nloop_\n_rlnImageName #1\n_rlnCoordinateZ #2\n1@a 2\n", ["subtomograms"]),
        ("data_particles\nloop_\n_rlnImageName #1\n_rlnTomoName #2\n1@a 2\n", ["subtomograms"]),
        ("data_general\n_rlnFinalResolution 3\n\ndata_fsc\nloop_\n_rlnX #1\n1\n", ["post-processing"]),
        ("data_model_general\n_rlnReferenceDimensionality 3\n", ["model file"]),
        ("data_optics\nloop_\n_rlnOpticsGroup #1\n1\n", ["data_particles", "data_optics"]),
        ("data_particles\nloop_\n_rlnImageName #1\n_rlnImageName #2\na b\n", ["rlnImageName occurs twice"]),
        ("data_images\nloop_\n_rlnImageName #1\n1@a.mrcs\n", ["rlnImagePixelSize"]),
        ("data_images\nloop_\n_rlnImageName #1\n_rlnImagePixelSize #2\n1@a.mrcs 0\n", ["> 0"]),
        (
            "data_images\nloop_\n_rlnImageName #1\n_rlnImagePixelSize #2\n"
            "_rlnRandomSubset #3\n1@a.mrcs 1 3\n",
            ["row 1", "rlnRandomSubset 1 or 2"],
        ),
        (
            "data_images\nloop_\n_rlnImageName #1\n_rlnImagePixelSize #2\n_rlnImageSize #3\n1@a.mrcs 1 16\n",
            ["rlnImageSize says 16 px", "8 px"],
        ),
        (
            "data_images\nloop_\n_rlnImageName #1\n_rlnImagePixelSize #2\n"
            "_rlnCtfDataAreCtfPremultiplied #3\n1@a.mrcs 1 1\n",
            ["multiplied by their CTF"],
        ),
    ],
)
def test_bad_star_files(folder: Path, text: str, words: list[str]) -> None:
    refused(write(folder, text), *words)


def test_missing_star_file(tmp_path: Path) -> None:
    refused(tmp_path / "none.star", "not found")


def test_truncated_stack_and_tiny_file(folder: Path) -> None:
    path = folder / "a.mrcs"
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    with pytest.raises(ValueError, match=f"expected {len(content)} bytes .* found {len(content) - 1}"):
        LazyImages([path], [0])
    path.write_bytes(content[:100])
    with pytest.raises(ValueError, match="1024 bytes, found a file of 100"):
        LazyImages([path], [0])
    path.write_bytes(b"\xff" * 2000)
    with pytest.raises(ValueError, match="expected an MRC file"):
        LazyImages([path], [0])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_pixels_that_are_no_numbers(folder: Path, value: float) -> None:
    path = folder / "a.mrcs"
    with mrcfile.mmap(path, mode="r+") as mrc:
        mrc.data[1, 2, 3] = value
    images = LazyImages([path] * 2, [0, 1])
    assert images[torch.tensor([0])].isfinite().all()
    with pytest.raises(ValueError, match=r"a.mrcs, slice 2: found pixels that are NaN"):
        images[torch.tensor([0, 1])]


def test_boxes_that_are_not_square(tmp_path: Path) -> None:
    with mrcfile.new(tmp_path / "odd.mrcs", np.zeros((2, 6, 8), dtype=np.float32)):
        pass
    with pytest.raises(ValueError, match="expected square images of 2 px or more, found 8 × 6 px"):
        LazyImages([tmp_path / "odd.mrcs"], [0])
