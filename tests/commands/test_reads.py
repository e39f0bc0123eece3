"""Every command reads each particle file once, and opens each stack once."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
from helpers.models import untrained_model
from typer.testing import CliRunner

from cryoforum.cli import app
from cryoforum.commands.check import check as checking
from cryoforum.commands.check.findings import TooFewParticles
from cryoforum.dataset.particle_table import select_rows, with_columns
from cryoforum.io.mrc import stacks
from cryoforum.io.mrc.stacks import write_stack
from cryoforum.io.relion import particles as relion_particles
from cryoforum.io.relion import star_files
from cryoforum.io.relion.particles import particles_from_table
from cryoforum.io.relion.star_files import read_star, write_star
from cryoforum.network.model_folder import load_model, save_model

COUNT, BOX, PIXEL_SIZE = 60, 32, 11.2
BOTH = ("one.star", "other.star")
TINY = ("--preset", "tiny", "--split", "60,20,20", "--max-minutes", "0.01")
TINY += ("--set", "network.widths=[4, 8]", "--set", "network.degree=1")
TINY += ("--set", "training.batch_size=8", "--set", "training.grid_nside=2", "--set", "training.grid_count=1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """one.star and other.star, each of half of the particles in a stack of its own; models without a reference:
    model, and the two of half sets in halves."""
    folder = tmp_path_factory.mktemp("reads")
    run("simulate", "--out", folder, "--n", COUNT, "--box", BOX, "--pixel-size", PIXEL_SIZE, "--snr", 5)
    table = read_star(folder / "particles.star")
    images = particles_from_table(table).images
    half_sets = torch.arange(COUNT) % 2 + 1
    table = with_columns(table, {"rlnRandomSubset": half_sets})
    for name, rows in zip(("one", "other"), torch.arange(COUNT).chunk(2), strict=True):
        write_stack(folder / f"{name}.mrcs", [images[rows]], len(rows), BOX, PIXEL_SIZE)
        names = [f"{row + 1}@{name}.mrcs" for row in range(len(rows))]
        write_star(with_columns(select_rows(table, rows), {"rlnImageName": names}), folder / f"{name}.star")
    model = load_model(untrained_model(BOX, PIXEL_SIZE, folder / "model"))
    for half in (1, 2):
        save_model(replace(model, parts={f"{half}@one.mrcs": "train"}), folder / "halves" / f"half{half}")
    return folder


@dataclass
class Reads:
    """Names of what is read from now on: particle files, stacks that are opened, stacks asked for a group's box."""

    tables: list[str] = field(default_factory=list)
    stacks: list[str] = field(default_factory=list)
    boxes: list[str] = field(default_factory=list)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Reads:
    reads = Reads()
    for module, name, names in (
        (star_files, "read_tables", reads.tables),
        (stacks, "read_header", reads.stacks),
        (relion_particles, "read_header", reads.boxes),
    ):
        original = getattr(module, name)

        def counted(
            path: Path, original: Callable[[Path], object] = original, names: list[str] = names
        ) -> object:
            names.append(Path(path).name)
            return original(path)

        monkeypatch.setattr(module, name, counted)
    return reads


def run(*arguments: object) -> None:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output + str(result.exception)


@pytest.mark.parametrize(
    "command",
    [
        ("predict", "model", *BOTH, "--out", "{}/out.star"),
        ("predict", "halves", *BOTH, "--out", "{}/out.star"),
        ("predict", "halves", *BOTH, "--cross-fit", "--out", "{}/out.cs"),
        ("predict", "model", *BOTH, "--reference", "4v5d", "--max-shift", 0, "--out", "{}/out.star"),
        ("align", "4v5d", *BOTH, "--max-shift", 0, "--out", "{}/out.star"),
        ("train", *BOTH, *TINY, "--out", "{}/model"),
        ("train", *BOTH, *TINY, "--half-set-models", "--out", "{}/models"),
        ("find-rate", *BOTH, *TINY[:4], *TINY[6:], "--steps", 18),
        ("reconstruct", *BOTH, "--out", "{}/map"),
        ("check", *BOTH),
    ],
    ids=lambda command: " ".join(map(str, command[:2])),
)
def test_every_file_is_read_once(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    read: Reads,
    command: tuple[object, ...],
) -> None:
    def no_time(*arguments: object) -> None:
        raise TooFewParticles("the images of a check are not read here")

    monkeypatch.setattr(checking, "find_interpretation", no_time)
    monkeypatch.chdir(folder)
    run(*(str(word).format(tmp_path) for word in command))
    assert sorted(read.tables) == ["one.star", "other.star"]
    assert sorted(read.stacks) == ["one.mrcs", "other.mrcs"]
    assert read.boxes == ["one.mrcs"]  # of the only optics group


def test_a_file_that_is_converted_or_compared_is_read_once(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: Reads
) -> None:
    monkeypatch.chdir(folder)
    run("convert", "one.star", "--out", tmp_path / "one.cs")
    assert read == Reads(["one.star"])
    read.tables.clear()
    run("compare", "one.star", "one.star")
    assert read == Reads(["one.star"] * 2)  # as it was given twice
