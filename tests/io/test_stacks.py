"""Stacks as labs have them: other numbers, other headers, compressed; a few files open, whatever their number."""

import bz2
import gzip
import pickle
import resource
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import torch
from helpers.messages import logged, messages

from cryoforum.config import PreprocessingConfig
from cryoforum.dataset.particles import Particles
from cryoforum.dataset.poses import Poses
from cryoforum.dataset.volumes import Volume
from cryoforum.geometry.rotations import random_unitquat
from cryoforum.io.mrc import stacks
from cryoforum.io.mrc.header import read_header
from cryoforum.io.mrc.maps import read_volume, write_volume
from cryoforum.io.mrc.stacks import LazyImages, write_stack
from cryoforum.network.preprocessing import prepare_all
from cryoforum.reconstruction.inversion import ReconstructionConfig, reconstruct

PACKERS = {"gz": gzip.compress, "bz2": bz2.compress}


def rows(*numbers: int) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.int64)


def ramp(count: int, box: int = 8) -> torch.Tensor:
    """Images of which every pixel is another number."""
    return torch.arange(count * box * box, dtype=torch.float32).reshape(count, box, box)


def written(path: Path, images: torch.Tensor) -> Path:
    write_stack(path, [images], len(images), images.shape[-1], 1.5)
    return path


def changed(path: Path, at: int, content: bytes) -> Path:
    """The file with these bytes from ``at`` on."""
    whole = bytearray(path.read_bytes())
    whole[at : at + len(content)] = content
    path.write_bytes(whole)
    return path


def bytes_stack(path: Path, numbers: np.ndarray) -> Path:
    """A stack of mode 0 that says nothing of its sign."""
    with mrcfile.new(path) as mrc:
        mrc.set_data(numbers.view("i1"))
        mrc.set_image_stack()
    return path


@contextmanager
def few_open_files(count: int) -> Iterator[None]:
    """As under `ulimit -n`, counted from those that are open now."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(
        resource.RLIMIT_NOFILE, (len(list(Path("/proc/self/fd").iterdir())) + count, before[1])
    )
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize(("flags", "kind"), [(0, "u1"), (1, "i1"), (2, "u1"), (3, "i1")])
@pytest.mark.parametrize("byte_order", ["little", "big"])
def test_bytes_with_the_stamp_of_imod_have_the_sign_it_says(
    tmp_path: Path, flags: int, kind: str, byte_order: str
) -> None:
    numbers = np.arange(256, dtype="u1").reshape(4, 8, 8)
    path = bytes_stack(tmp_path / "bytes.mrcs", numbers)
    if byte_order == "big":
        header = np.frombuffer(path.read_bytes()[:1024], mrcfile.dtypes.HEADER_DTYPE)
        changed(path, 0, header.astype(mrcfile.dtypes.HEADER_DTYPE.newbyteorder(">")).tobytes())
    stamp = b"".join(number.to_bytes(4, byte_order) for number in (1146047817, flags))
    changed(path, 152, stamp)
    assert np.array_equal(LazyImages([path] * 4, range(4))[rows(0, 1, 2, 3)].numpy(), numbers.view(kind))


@pytest.mark.parametrize(
    ("low", "high", "kind"), [(0, 255, "u1"), (-128, 127, "i1"), (0, 100, "i1"), (0, 0, "i1")]
)
def test_bytes_without_a_stamp_are_signed_unless_the_largest_is_beyond(
    tmp_path: Path, low: float, high: float, kind: str
) -> None:
    numbers = np.arange(256, dtype="u1").reshape(4, 8, 8)
    path = bytes_stack(tmp_path / "bytes.mrcs", numbers)
    changed(path, 76, np.array([low, high], dtype="<f4").tobytes())
    assert np.array_equal(LazyImages([path] * 4, range(4))[rows(0, 1, 2, 3)].numpy(), numbers.view(kind))


def test_big_endian_widths_that_are_widths_in_the_other_order_too(tmp_path: Path) -> None:
    """256 px of mode 0: 65536 px in the wrong byte order."""
    with mrcfile.new(tmp_path / "big.mrcs") as mrc:
        mrc.set_data(np.ones((1, 256, 256), dtype="i1"))
    content = (tmp_path / "big.mrcs").read_bytes()
    header = np.frombuffer(content[:1024], mrcfile.dtypes.HEADER_DTYPE)
    changed(tmp_path / "big.mrcs", 0, header.astype(mrcfile.dtypes.HEADER_DTYPE.newbyteorder(">")).tobytes())
    assert LazyImages([tmp_path / "big.mrcs"], [0]).shape == (1, 256, 256)


def test_stacks_without_a_stamp_are_read_with_one_notice(tmp_path: Path) -> None:
    paths = [written(tmp_path / f"{number}.mrcs", ramp(1) + number) for number in range(5)]
    for path in paths[1:]:
        changed(path, 208, bytes(4))
    with messages() as notices:
        images = LazyImages(paths, [0] * 5)
    assert notices == [
        f"4 of 5 stacks lack the stamp MAP of an MRC file, first {paths[1]}; read all the same"
    ]
    assert images[rows(0, 4)][:, 0, 0].tolist() == [0, 4]


@pytest.mark.parametrize("packing", PACKERS)
@pytest.mark.parametrize("suffix", [".mrcs", None])
def test_compressed_stacks_whatever_their_names(tmp_path: Path, packing: str, suffix: str | None) -> None:
    plain = written(tmp_path / "plain.mrcs", ramp(3))
    path = tmp_path / f"packed{suffix or '.mrcs.' + packing}"
    path.write_bytes(PACKERS[packing](plain.read_bytes()))
    with logged("1 of 2 stacks are compressed, .*0.00 GB of memory"):
        images = LazyImages([plain, path, path], [0, 2, 0])
    assert torch.equal(images[rows(2, 0, 1)], ramp(3)[[0, 0, 2]])
    assert torch.equal(pickle.loads(pickle.dumps(images))[rows(1)], ramp(3)[[2]])


@pytest.mark.parametrize("packing", PACKERS)
@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda pack, content: pack(content)[:-20], "decompressed|cut off"),
        (lambda pack, content: pack(content[:-1]), "cut off: expected"),
        (lambda pack, content: pack(content)[:3] + bytes(500), "decompressed"),
        (lambda pack, content: pack(content[:1000]), "1024 bytes, found a file of 1000"),
        (lambda pack, content: pack(pack(content)), "expected an MRC"),
    ],
)
def test_spoilt_compressed_stacks_are_refused(
    tmp_path: Path, packing: str, spoil: Callable[[Callable[[bytes], bytes], bytes], bytes], words: str
) -> None:
    path = written(tmp_path / "stack.mrcs", torch.randn(3, 32, 32))
    path.write_bytes(spoil(PACKERS[packing], path.read_bytes()))
    with pytest.raises(ValueError, match=words) as refusal:
        LazyImages([path] * 3, range(3))[rows(0, 1, 2)]
    assert "stack.mrcs" in str(refusal.value) and "\n" not in str(refusal.value)


def test_too_much_to_decompress_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = []
    for name in "ab":
        plain = written(tmp_path / f"{name}.mrcs", ramp(4))
        paths.append(tmp_path / f"{name}.mrcs.gz")
        paths[-1].write_bytes(gzip.compress(plain.read_bytes()))
    monkeypatch.setattr(stacks, "MOST_UNPACKED_BYTES", 2 * 4 * 8 * 8 * 4 - 1)
    with pytest.raises(ValueError, match="decompress them or add --scratch"):
        LazyImages(paths, [0, 0])[rows(0)]


def test_a_thousand_stacks_with_few_handles_in_any_order(tmp_path: Path) -> None:
    first = written(tmp_path / "0.mrcs", ramp(2, 4))
    names = [(tmp_path / f"{stack}.mrcs", index) for stack in range(1000) for index in (0, 1)]
    content = first.read_bytes()
    for stack, (path, _) in enumerate(names[::2]):
        path.write_bytes(content[:1024] + (ramp(2, 4) + 100 * stack).numpy().tobytes())
    with few_open_files(20):
        images = LazyImages([path for path, _ in names], [index for _, index in names])
        order = torch.randperm(2000, generator=torch.Generator().manual_seed(0))
        found = torch.cat([images[batch] for batch in order.split(64)])
    assert torch.equal(found[:, 0, 0], (order // 2 * 100 + order % 2 * 16).float())


def test_an_extended_header_that_is_not_there_is_done_without(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As files of programs that copy the header and not what it announces."""
    path = written(tmp_path / "a.mrcs", ramp(3))
    with open(path, "r+b") as file:
        file.seek(92)
        file.write((4096).to_bytes(4, "little"))
    images = LazyImages([path] * 3, [0, 1, 2])
    assert torch.equal(images[rows(2, 0)], ramp(3)[rows(2, 0)])
    assert "1 of 1 stacks announce an extended header that is not there" in caplog.text


def test_a_stack_that_is_cut_off_while_it_is_read_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "stack.mrcs", ramp(4))
    images = LazyImages([path] * 4, range(4))
    path.write_bytes(path.read_bytes()[:-10])
    assert torch.equal(images[rows(0, 2)], ramp(4)[[0, 2]])
    with pytest.raises(ValueError, match="stack.mrcs: the file became shorter"):
        images[rows(0, 3)]


@pytest.mark.parametrize("index", [-1, 3, 10**30])
def test_slices_that_no_stack_has(tmp_path: Path, index: int) -> None:
    path = written(tmp_path / "stack.mrcs", ramp(3))
    with pytest.raises(ValueError, match=rf"\(row 2\): expected a slice from 1 to 3, .* found {index + 1}"):
        LazyImages([path] * 2, [0, index])


def test_folders_and_claims_beyond_the_file_cost_nothing(tmp_path: Path) -> None:
    """A header of 128 × 128 × 11029 in 66 kB, plain and compressed."""
    path = written(tmp_path / "stack.mrcs", torch.zeros(1, 128, 128))
    changed(path, 0, np.array([128, 128, 11029], dtype="<i4").tobytes())
    packed = tmp_path / "stack.mrcs.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    read_header(path.with_name("stack.mrcs.gz"))
    tracemalloc.start()
    with pytest.raises(ValueError, match="file cut off: expected 722797568 bytes"):
        LazyImages([path], [0])
    with pytest.raises(ValueError, match="file cut off: expected 722797568 bytes"):
        read_volume(path)
    with (
        logged("compressed"),
        pytest.raises(ValueError, match="file cut off: expected 722797568"),
    ):
        LazyImages([packed], [0])[rows(0)]
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()
    with pytest.raises(ValueError, match="a folder"):
        LazyImages([tmp_path], [0])


def test_real_stack_that_claims_too_much(shared_data: Path) -> None:
    path = shared_data / "drgnai_00256_Ribosomes_1.70A.mrcs"
    tracemalloc.start()
    for read in (lambda: LazyImages([path], [0]), lambda: read_volume(path)):
        with pytest.raises(
            ValueError, match="expected 722797568 bytes .* found 66560; copy it again"
        ) as refusal:
            read()
        assert "\n" not in str(refusal.value)
    assert tracemalloc.get_traced_memory()[1] < 1e6
    tracemalloc.stop()


def test_maps_and_stacks_are_written_as_others_read_them(tmp_path: Path) -> None:
    write_volume(Volume(ramp(8), 2.0), tmp_path / "map.mrc")
    written(tmp_path / "stack.mrcs", ramp(8))
    assert mrcfile.validate(tmp_path / "map.mrc") and mrcfile.validate(tmp_path / "stack.mrcs")


class Watched:
    """Images that remember which thread read them."""

    def __init__(self, images: torch.Tensor) -> None:
        self.images, self.readers = images, set()

    def __len__(self) -> int:
        return len(self.images)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.images.shape)

    def __getitem__(self, rows: torch.Tensor) -> torch.Tensor:
        self.readers.add(threading.get_ident())
        return self.images[rows]


def test_training_and_reconstruction_have_their_images_read_by_another_thread() -> None:
    images = torch.randn(20, 8, 8, generator=torch.Generator().manual_seed(0))
    poses = Poses(random_unitquat(20, generator=torch.Generator().manual_seed(1)), torch.zeros(20, 2))
    in_memory = Particles(images, 1.5, tuple(map(str, range(20))), poses)
    watched = Watched(images)
    on_disk = replace(in_memory, images=watched)
    config = PreprocessingConfig(box=8)
    prepared = prepare_all(on_disk, config, batch_size=6)
    assert torch.equal(prepared, prepare_all(in_memory, config, batch_size=20))
    maps = [reconstruct(particles, ReconstructionConfig(batch_size=6)) for particles in (on_disk, in_memory)]
    assert torch.equal(maps[0].full.voxels, maps[1].full.voxels)
    assert watched.readers and threading.get_ident() not in watched.readers
