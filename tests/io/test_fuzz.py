"""Broken files at random: read, or refused in one line with a ValueError; no hang, no huge allocation.

    CRYOFORUM_FUZZ=5000 python -m pytest tests/test_fuzz.py

tries as many examples of each kind, other ones every time; otherwise they are few and always the same.
"""

import bz2
import gzip
import os
import tracemalloc
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cryoforum.dataset.particle_table import ParticleTable
from cryoforum.dataset.volumes import Volume
from cryoforum.io.mrc.maps import read_volume, write_volume
from cryoforum.io.mrc.stacks import LazyImages, write_stack
from cryoforum.io.particle_files import read_particle_file, write_particle_file
from cryoforum.io.relion.particles import particles_from_table

EXAMPLES = int(os.environ.get("CRYOFORUM_FUZZ", "0"))
MOST_BYTES = 100e6  # far above what these small files need, far below what a header can claim
BOUNDED = settings(
    max_examples=EXAMPLES or 60,
    derandomize=not EXAMPLES,
    database=None,
    deadline=timedelta(seconds=20),  # a hang, not a slow machine
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
WORDS = [0, 1, 2, 3, 6, 12, 16, 128, 255, 256, 1024, 11029, 65535, 65536, 2**31 - 1, 2**32 - 1, 2**31]
WORDS += [int(np.float32(value).view("u4")) for value in (1, -1, 0.5, 90, 1e38, np.nan, np.inf, -np.inf)]
WORD = (st.sampled_from(WORDS) | st.integers(0, 2**32 - 1)).map(lambda number: number.to_bytes(4, "little"))
# Words of a header that mean something are hit more often than labels.
PLACE = st.integers(0, 63).map(lambda word: 4 * word) | st.integers(0, 1020)
PACKERS: list[Callable[[bytes], bytes]] = [bytes, bytes, gzip.compress, bz2.compress]
STARS = [
    """
# version 30001

data_optics

loop_
_rlnOpticsGroup #1
_rlnImagePixelSize #2
_rlnImageSize #3
_rlnVoltage #4
_rlnSphericalAberration #5
_rlnAmplitudeContrast #6
1 1.5 8 300 2.7 0.1

data_particles

loop_
_rlnImageName #1
_rlnOpticsGroup #2
_rlnDefocusU #3
_rlnDefocusV #4
_rlnDefocusAngle #5
_rlnAngleRot #6
_rlnAngleTilt #7
_rlnAnglePsi #8
_rlnRandomSubset #9
_labComment #10
1@a.mrcs 1 10000 9000 10 1 2 3 1 "two words"
2@a.mrcs 1 10000 9000 10 1 2 3 2 it's#fine
3@a.mrcs 1 10000 9000 10 1 2 3 1 ''
""",
    """data_
loop_
_rlnImageName
_rlnMagnification
_rlnDetectorPixelSize
_rlnOriginX
1@a.mrcs 40000 6 0.5
2@a.mrcs 40000 6 -0.5
""",
    "data_images\n\n_rlnImageName 1@a.mrcs\n_rlnImagePixelSize 1.5\n",
]
TOKENS = [
    "nan", "inf", "-1", "0", "1e999", "-1e-999", "9" * 400, "9" * 5000, "1" + "0" * 30 + "@a.mrcs", "٣@a.mrcs", "²",
    "1@" + "b" * 300 + ".mrcs", "1@" + "c/" * 3000 + "d", "1@", "@a.mrcs", "1@.", "1@/", "1@..", "1@a.star", "1@a\udcff",
    "\0", '"', "'", "#", "data_", "data_optics", "data_particles", "loop_", "_rlnImageName", "_", "\u2028", "\x85", "\x1c",
    "\ufeff", "_rlnTomoName", "1_000", "0x10", "True", "𝟙@a.mrcs", "~", "1@~root/a.mrcs", "1@a.mrcs@b", "",
]  # fmt: skip
TOKEN = st.sampled_from(TOKENS) | st.text(max_size=12)


@st.composite
def spoilt_files(draw: st.DrawFn, contents: tuple[bytes, ...]) -> bytes:
    """One of the contents with words changed, maybe cut off, maybe compressed; or a random header."""
    content = bytearray(draw(st.sampled_from(contents)))
    if draw(st.integers(0, 9)) == 0:
        content[:1024] = draw(st.binary(min_size=1024, max_size=1024))
    for _ in range(draw(st.integers(1, 5))):
        at = draw(PLACE)
        content[at : at + 4] = draw(WORD)
    if draw(st.integers(0, 3)) == 0:
        del content[draw(st.integers(0, len(content))) :]
    packed = bytearray(draw(st.sampled_from(PACKERS))(bytes(content)))
    if draw(st.integers(0, 9)) == 0:
        del packed[draw(st.integers(0, len(packed))) :]
    return bytes(packed)


@st.composite
def spoilt_stars(draw: st.DrawFn) -> bytes:
    """A STAR file with lines lost, doubled or moved and words replaced or added."""
    lines = draw(st.sampled_from(STARS)).split("\n")
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(lines) - 1))
        match draw(st.integers(0, 9)):
            case 0:
                del lines[at]
                lines = lines or [""]
            case 1:
                lines.insert(draw(st.integers(0, len(lines))), lines[at])
            case 2:
                lines.insert(at, draw(TOKEN))
            case 3:
                lines = [*lines[:at], draw(st.text(max_size=30))]
            case _:
                words = lines[at].split(" ")
                words[draw(st.integers(0, len(words) - 1))] = draw(TOKEN)
                lines[at] = " ".join(words)
    newline = draw(st.sampled_from(["\n", "\n", "\r\n", "\r"]))
    return newline.join(lines).encode("utf-8", "surrogatepass" if draw(st.booleans()) else "replace")


def read_or_refused(read: Callable[[], object]) -> bool:
    """Whether it was read; if not, for a reason in one line, and in either case without much memory."""
    tracemalloc.start()
    try:
        read()
        return True
    except ValueError as error:
        assert str(error) and "\n" not in str(error).strip()
        return False
    finally:
        assert tracemalloc.get_traced_memory()[1] < MOST_BYTES
        tracemalloc.stop()


@pytest.fixture(scope="module")
def contents(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, ...]:
    """Valid stacks and maps, of either byte order, plain numbers and with an extended header."""
    folder = tmp_path_factory.mktemp("valid")
    voxels = torch.arange(512, dtype=torch.float32).view(8, 8, 8)
    write_stack(folder / "stack", [voxels], 8, 8, 1.5)
    write_volume(Volume(voxels, 1.5), folder / "map")
    for kind in ("i1", ">i2", "f2"):
        with mrcfile.new(folder / kind[-2:]) as mrc:
            mrc.set_data(voxels.numpy().astype(kind))
            mrc.set_extended_header(np.zeros(8, dtype="u1"))
            mrc.voxel_size = 1.5
    return tuple(path.read_bytes() for path in sorted(folder.iterdir()))


@BOUNDED
@given(data=st.data())
def test_spoilt_stacks_and_maps(tmp_path: Path, contents: tuple[bytes, ...], data: st.DataObject) -> None:
    path = tmp_path / "a.mrc"
    path.write_bytes(data.draw(spoilt_files(contents)))
    read_or_refused(lambda: LazyImages([path] * 2, [0, 1])[torch.tensor([0, 1])])
    read_or_refused(lambda: read_volume(path))


@BOUNDED
@given(content=spoilt_stars())
def test_spoilt_stars(tmp_path: Path, content: bytes) -> None:
    """What is read can be written and read again, or is refused then."""
    if not (tmp_path / "a.mrcs").exists():
        write_stack(tmp_path / "a.mrcs", [torch.zeros(3, 8, 8)], 3, 8, 1.5)
    path, copy = tmp_path / "a.star", tmp_path / "copy.star"
    path.write_bytes(content)
    tables: list[ParticleTable] = []
    if not read_or_refused(lambda: tables.append(read_particle_file(path))):
        return
    (table,) = tables
    read_or_refused(lambda: particles_from_table(table).images[torch.tensor([0])])
    if read_or_refused(lambda: write_particle_file(table, copy)):
        again = read_particle_file(copy)
        assert table.particles.to_dict("list") == again.particles.to_dict("list")


@BOUNDED
@given(content=st.binary(max_size=300))
def test_any_bytes(tmp_path: Path, content: bytes) -> None:
    for name, read in (("a.star", read_particle_file), ("a.mrc", read_volume)):
        (tmp_path / name).write_bytes(content)
        assert not read_or_refused(lambda read=read, path=tmp_path / name: read(path))


def test_files_by_a_wrong_name(tmp_path: Path) -> None:
    table = STARS[0].encode()
    others = {
        "gz": gzip.compress(table),
        "png": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes(30),
        "empty": b"",
        "blank": b"\n \n",
        "utf16": STARS[0].encode("utf-16"),
        "html": b"<!DOCTYPE html><html>not found</html>",
    }
    for name, content in others.items():
        (tmp_path / f"{name}.star").write_bytes(content)
        assert not read_or_refused(lambda name=name: read_particle_file(tmp_path / f"{name}.star"))
    (tmp_path / "folder.star").mkdir()
    for name in ("folder.star", "none.star", "nul\0.star", "long" * 100 + ".star"):
        assert not read_or_refused(lambda name=name: read_particle_file(tmp_path / name))
        assert not read_or_refused(lambda name=name: read_volume(tmp_path / name))
