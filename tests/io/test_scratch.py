"""Copies on a fast disk: whole, used, reused, and gone at the end."""

import bz2
import gzip
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers.children import environment
from helpers.messages import logged
from typer.testing import CliRunner, Result

from cryoforum.cli import app
from cryoforum.dataset.image_grid import ImageGrid
from cryoforum.dataset.images import JoinedImages
from cryoforum.dataset.particles import Particles
from cryoforum.dataset.resampling import resampled
from cryoforum.io import scratch as module
from cryoforum.io.mrc.stacks import LazyImages, write_stack
from cryoforum.io.relion.star_files import read_star, write_star
from cryoforum.io.scratch import Scratch, on_scratch
from cryoforum.runtime.reporter import Reporter

TOML = "[training]\nimage_passes = 64\nbatch_size = 16\ngrid_nside = 2\ngrid_count = 2\n[network]\nwidths = [4, 8]\ndegree = 1\n"
# Holds the folder of copies until it is told to leave.
USER = """
import sys
from pathlib import Path
from cryoforum.io.scratch import _in_use
with _in_use(Path(sys.argv[1]), keep=False):
    print("in", flush=True)
    sys.stdin.readline()
"""


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def particles(tmp_path: Path) -> Particles:
    """Two images in each of three stacks, the last one compressed."""
    paths = [tmp_path / f"{number}.mrcs" for number in range(3)]
    for number, path in enumerate(paths):
        write_stack(path, [torch.arange(128.0).view(2, 8, 8) + 1000 * number], 2, 8, 1.5)
    paths[2].write_bytes(gzip.compress(paths[2].read_bytes()))
    (tmp_path / "fast").mkdir()
    with logged("compressed"):
        images = LazyImages([path for path in paths for _ in range(2)], [0, 1] * 3)
    return Particles(images, 1.5, tuple("abcdef"))


def copies_in(folder: Path) -> list[Path]:
    return sorted(folder.glob("cryoforum-scratch-*/*.mrcs"))


def test_images_come_from_copies_that_are_gone_afterwards(particles: Particles, tmp_path: Path) -> None:
    everything = torch.arange(6)
    expected = particles.images[everything]
    with on_scratch(particles, everything, Scratch(tmp_path / "fast")) as near:
        assert len(copies_in(tmp_path / "fast")) == 3
        assert near.images.identity == particles.images.identity  # an unfinished prediction goes on
        for path in tmp_path.glob("*.mrcs"):
            path.unlink()
        assert torch.equal(near.images[everything], expected)
    assert not list((tmp_path / "fast").iterdir())


def test_only_the_stacks_of_the_rows_are_copied(particles: Particles, tmp_path: Path) -> None:
    with on_scratch(particles, torch.tensor([3, 2]), Scratch(tmp_path / "fast")) as near:
        assert len(copies_in(tmp_path / "fast")) == 1
        assert torch.equal(near.images[torch.arange(6)], particles.images[torch.arange(6)])


def test_links_to_one_stack_are_copied_once(tmp_path: Path) -> None:
    (tmp_path / "fast").mkdir()
    write_stack(tmp_path / "one.mrcs", [torch.randn(2, 8, 8)], 2, 8, 1.5)
    (tmp_path / "link.mrcs").symlink_to(tmp_path / "one.mrcs")
    images = LazyImages([tmp_path / "one.mrcs", tmp_path / "link.mrcs"], [0, 1])
    with on_scratch(Particles(images, 1.5, ("a", "b")), torch.arange(2), Scratch(tmp_path / "fast")):
        assert len(copies_in(tmp_path / "fast")) == 1


def test_kept_copies_are_used_again_unless_the_stack_has_changed(
    particles: Particles, tmp_path: Path
) -> None:
    everything, copied = torch.arange(6), []

    class Counting(Reporter):
        def progress(self, description: str, total: int) -> Callable[[int], None]:
            copied.append(total)
            return super().progress(description, total)

    kept = Scratch(tmp_path / "fast", keep=True)
    for _ in range(2):
        with on_scratch(particles, everything, kept, Counting()):
            pass
    assert copied == [6]
    copy = copies_in(tmp_path / "fast")[0]
    torn = copy.with_name(f".{copy.stem}.01234567.partial.mrcs")
    torn.touch()  # as a kill leaves it
    write_stack(tmp_path / "0.mrcs", [torch.ones(2, 8, 8)], 2, 8, 1.5)
    paths = [layout.path for layout in particles.images.layouts(everything)]
    with logged("compressed"):
        images = LazyImages([path for path in paths for _ in range(2)], [0, 1] * 3)
    with on_scratch(
        Particles(images, 1.5, tuple("abcdef")), everything, Scratch(tmp_path / "fast"), Counting()
    ) as near:
        assert near.images[torch.tensor([0])].unique().tolist() == [1.0] and not torn.exists()
    assert copied == [6, 2] and not list((tmp_path / "fast").iterdir())


def place_of_copies(tmp_path: Path) -> Path:
    return tmp_path / "fast" / f"cryoforum-scratch-{os.getuid()}"


@pytest.mark.parametrize("kind", ["link", "file", "open to others"])
def test_what_somebody_else_put_at_the_name_of_the_folder_is_refused_and_kept(
    particles: Particles, tmp_path: Path, kind: str
) -> None:
    place, victim = place_of_copies(tmp_path), tmp_path / "victim"
    victim.mkdir(mode=0o700)
    (victim / "thesis.txt").write_text("years of work")
    if kind == "link":
        place.symlink_to(victim)
    elif kind == "file":
        place.write_text("years of work")
    else:
        place.mkdir()
        place.chmod(0o770)
        (place / "thesis.txt").write_text("years of work")
    with (
        pytest.raises(ValueError, match=f"expected a folder of yours alone at {place}, found"),
        on_scratch(particles, torch.arange(6), Scratch(tmp_path / "fast")),
    ):
        pass
    kept = place if kind == "file" else place / "thesis.txt"
    assert kept.read_text() == "years of work" and list(victim.iterdir()) == [victim / "thesis.txt"]


def test_a_folder_of_somebody_else_is_refused(
    particles: Particles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = place_of_copies(tmp_path)
    place.mkdir(mode=0o700)
    owner = os.getuid()
    monkeypatch.setattr("os.getuid", lambda: owner + 1)
    place.rename(place.with_name(f"cryoforum-scratch-{owner + 1}"))
    with (
        pytest.raises(ValueError, match=f"found a folder of user {owner}"),
        on_scratch(particles, torch.arange(6), Scratch(tmp_path / "fast")),
    ):
        pass


def test_only_copies_are_removed_and_links_are_not_followed(particles: Particles, tmp_path: Path) -> None:
    place, precious = place_of_copies(tmp_path), tmp_path / "precious"
    place.mkdir(mode=0o700)
    precious.write_text("data")
    names = ["notes.txt", ".note.partial.txt", f"{'0' * 32}.mrcs"]
    for name in names[:2]:
        (place / name).write_text("notes")
    (place / names[2]).symlink_to(precious)
    with (
        logged("left 2 files that are no copies"),
        on_scratch(particles, torch.arange(6), Scratch(tmp_path / "fast")),
    ):
        pass
    assert sorted(path.name for path in place.iterdir()) == sorted(names[:2])
    assert precious.read_text() == "data"
    (place / "lock").symlink_to(precious)
    with (
        pytest.raises(ValueError, match="found a link; remove it"),
        on_scratch(particles, torch.arange(6), Scratch(tmp_path / "fast")),
    ):
        pass


def test_who_leaves_last_removes_the_copies(particles: Particles, tmp_path: Path) -> None:
    everything = torch.arange(6)
    with on_scratch(particles, everything, Scratch(tmp_path / "fast")):
        place = copies_in(tmp_path / "fast")[0].parent
        command = [sys.executable, "-c", USER, str(place)]
        other = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment()
        )
        assert other.stdout is not None and other.stdout.readline() == "in\n"
    assert len(copies_in(tmp_path / "fast")) == 3
    other.communicate("\n")
    assert other.returncode == 0 and not list((tmp_path / "fast").iterdir())


def test_too_little_room_no_folder_and_failures_leave_nothing(
    particles: Particles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    everything = torch.arange(6)
    with pytest.raises(ValueError, match="--keep-scratch with --scratch"):
        Scratch(None, keep=True)
    with (
        pytest.raises(ValueError, match=r"gone, found none; create it first"),
        on_scratch(particles, everything, Scratch(tmp_path / "gone")),
    ):
        pass
    with (
        pytest.raises(KeyboardInterrupt),
        on_scratch(particles, everything, Scratch(tmp_path / "fast")),
    ):
        raise KeyboardInterrupt
    assert not list((tmp_path / "fast").iterdir())
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: usage(0, 0, 3 * (1024 + 512) - 1))
    with (
        pytest.raises(ValueError, match="free disk for copies of 3 stacks"),
        on_scratch(particles, everything, Scratch(tmp_path / "fast")),
    ):
        pass
    assert not list((tmp_path / "fast").iterdir())


def test_a_damaged_compressed_stack_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    path, fast = tmp_path / "stack.mrcs", tmp_path / "fast"
    noise = torch.randn(2, 512, 512, generator=torch.Generator().manual_seed(0))
    write_stack(path, [noise], 2, 512, 1.5)
    content = bytearray(bz2.compress(path.read_bytes()))
    content[len(content) * 3 // 4] ^= 0xFF  # behind the block with the header
    path.write_bytes(content)
    fast.mkdir()
    with logged("compressed"):
        particles = Particles(LazyImages([path] * 2, [0, 1]), 1.5, ("a", "b"))
    with (
        pytest.raises(ValueError, match="expected a file that can be decompressed"),
        on_scratch(particles, torch.arange(2), Scratch(fast)),
    ):
        pass
    assert not list(fast.iterdir())


def test_commands_give_the_same_with_and_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fast").mkdir()
    (tmp_path / "config.toml").write_text(TOML)
    assert (
        invoke("simulate", "--out", ".", "--box", 32, "--pixel-size", 11.2, "--n", 40, "--snr", 5).exit_code
        == 0
    )
    train = ("train", "particles.star", "--preset", "tiny", "--config", "config.toml", "--out")
    for name, more in (("plain", ()), ("copied", ("--scratch", "fast"))):
        for command in (
            (*train, f"{name}_model"),
            (
                "predict",
                "plain_model",
                "particles.star",
                "--out",
                f"{name}.star",
                "--no-refine",
                "--shard",
                "1/1",
            ),
            ("align", "4v5d", "particles.star", "--max-shift", 0, "--out", f"{name}_aligned.star"),
            ("reconstruct", "particles.star", "--out", f"{name}_map"),
        ):
            done = invoke(*command, *more)
            assert done.exit_code == 0, done.output
            assert not list((tmp_path / "fast").iterdir())
    for plain in ("plain.star", "plain_aligned.star", "plain_map/fsc.csv", "plain_model/reference.json"):
        assert Path(plain).read_text() == Path(plain.replace("plain", "copied")).read_text()


def test_compressed_particles_beyond_memory_are_predicted_from_scratch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "fast").mkdir()
    assert invoke("simulate", "--out", tmp_path, "--box", 32, "--pixel-size", 11.2, "--n", 40).exit_code == 0
    packed = tmp_path / "packed"
    packed.mkdir()
    (packed / "particles.mrcs").write_bytes(gzip.compress((tmp_path / "particles.mrcs").read_bytes()))
    write_star(read_star(tmp_path / "particles.star"), packed / "particles.star")
    shutil.rmtree(tmp_path / "map", ignore_errors=True)
    monkeypatch.setattr("cryoforum.io.mrc.stacks.MOST_UNPACKED_BYTES", 1000)
    command = ("reconstruct", packed / "particles.star", "--out", tmp_path / "map")
    refused = invoke(*command)
    assert refused.exit_code == 1 and "add --scratch" in refused.stderr
    done = invoke(*command, "--scratch", tmp_path / "fast")
    assert done.exit_code == 0 and done.stderr.count("1 of 1 stacks are compressed") == 1


def test_mixed_boxes_are_read_from_scratch_too(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    parts = []
    for number, box in enumerate((16, 24)):
        path = tmp_path / f"{number}.mrcs"
        write_stack(path, [torch.randn(5, box, box, generator=generator)], 5, box, 32.0 / box)
        images = LazyImages([path] * 5, range(5))
        parts.append(resampled(images, ImageGrid(box, 32.0 / box), ImageGrid(16, 2.0)))
    order = torch.randperm(10, generator=generator)
    joined = JoinedImages(tuple(parts), order % 2, order // 2)
    particles = Particles(joined, 2.0, tuple(map(str, range(10))))
    everything = torch.arange(10)
    expected = joined[everything]
    (tmp_path / "fast").mkdir()
    with on_scratch(particles, everything, Scratch(tmp_path / "fast")) as near:
        for number in (0, 1):
            (tmp_path / f"{number}.mrcs").unlink()
        assert torch.equal(near.images[everything], expected)
