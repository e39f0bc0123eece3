"""Images in several rows: symmetry-expanded sets are taken where they mean something, oversights are told."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.cryosparc_records import records, refined, write
from helpers.models import untrained_model
from typer.testing import CliRunner

from cryoforum.cli import app
from cryoforum.commands.compare import pose_errors
from cryoforum.commands.simulate import SimulateRequest, simulate
from cryoforum.dataset.columns import EXPECTED_ERROR
from cryoforum.dataset.particle_table import ParticleTable, number_column, select_rows, with_columns
from cryoforum.io.mrc.maps import read_volume
from cryoforum.io.mrc.stacks import write_stack
from cryoforum.io.particle_files import read_particle_file
from cryoforum.io.relion.star_files import read_star, write_star
from cryoforum.simulation.config import SimulationConfig

COUNT, COPIES = 40, 4


def run(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output + str(result.exception)
    return " ".join(result.output.split())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """plain.star of a molecule of symmetry O, and C4-expanded, doubled and poseless versions of it."""
    folder = tmp_path_factory.mktemp("repeated")
    simulate(SimulateRequest(folder, "6z6u", 32, 6.0, SimulationConfig(count=COUNT, snr=2)))
    plain = read_star(folder / "particles.star")
    rows = np.repeat(np.arange(COUNT), COPIES)
    rot = number_column(plain, "rlnAngleRot")
    assert rot is not None
    turned = (rot[rows] + 90 * np.tile(np.arange(COPIES), COUNT) + 180) % 360 - 180
    write_star(with_columns(select_rows(plain, rows), {"rlnAngleRot": turned}), folder / "expanded.star")
    doubled = [*range(COUNT), 3, 5]
    write_star(respelt(select_rows(plain, doubled), COUNT), folder / "doubled.star")
    poseless = select_rows(plain, doubled)
    columns = [name for name in poseless.particles if name.startswith(("rlnAngle", "rlnOrigin"))]
    particles = poseless.particles.drop(columns=columns)
    write_star(ParticleTable(plain.path, plain.optics, particles), folder / "poseless.star")
    untrained_model(32, 6.0, folder / "model")
    return folder


def respelt(table: ParticleTable, start: int = 0) -> ParticleTable:
    """The same images, from row ``start`` on under other names."""
    names = table.particles["rlnImageName"].tolist()
    new = [name if row < start else name.replace("@", "@./").lstrip("0") for row, name in enumerate(names)]
    assert new[-1] != names[-1]
    return with_columns(table, {"rlnImageName": new})


def test_an_expanded_set_gives_the_map_of_the_plain_one_with_its_symmetry(
    folder: Path, tmp_path: Path
) -> None:
    run("reconstruct", folder / "expanded.star", "--out", tmp_path / "expanded")
    run("reconstruct", folder / "particles.star", "--symmetry", "C4", "--out", tmp_path / "plain")
    for name in ("half1.mrc", "half2.mrc", "map.mrc"):
        first = read_volume(tmp_path / "expanded" / name).voxels.flatten()
        second = read_volume(tmp_path / "plain" / name).voxels.flatten()
        assert float(torch.corrcoef(torch.stack([first, second]))[0, 1]) > 0.99


def test_compare_of_an_expanded_set_with_itself_and_with_the_plain_one(folder: Path) -> None:
    expanded, plain = read_star(folder / "expanded.star"), read_star(folder / "particles.star")
    assert float(pose_errors(expanded, expanded).orientations_rad.max()) < 1e-5
    to_plain = pose_errors(expanded, plain).orientations_rad.reshape(COUNT, COPIES)
    expected = torch.deg2rad(torch.tensor([0.0, 90.0, 180.0, 90.0])).expand(COUNT, COPIES)
    assert torch.allclose(to_plain.float(), expected, atol=1e-3)
    assert float(pose_errors(expanded, plain, "C4").orientations_rad.max()) < 1e-3
    with pytest.raises(
        ValueError, match=r"each image as often as in .*expanded.star, found 2 of 160 rows miss"
    ):
        pose_errors(expanded, select_rows(expanded, range(COUNT * COPIES - 2)))


def test_compare_knows_an_image_under_any_name(folder: Path, tmp_path: Path) -> None:
    """Links, other spellings, conversions, copied projects, and stacks that are gone."""
    plain = read_star(folder / "particles.star")
    (folder / "link.mrcs").symlink_to("particles.mrcs")
    names = [name.replace("particles", "link") for name in plain.particles["rlnImageName"]]
    linked = with_columns(plain, {"rlnImageName": names})
    for other in (respelt(plain), linked):
        assert float(pose_errors(other, plain).orientations_rad.max()) < 1e-5
    write_star(respelt(plain), folder / "respelt.star")
    run("convert", folder / "respelt.star", "--out", folder / "respelt.cs")
    assert "0.0000" in run("compare", folder / "respelt.star", folder / "respelt.cs")
    (tmp_path / "particles.star").write_bytes((folder / "particles.star").read_bytes())
    gone = read_star(tmp_path / "particles.star")
    assert float(pose_errors(respelt(plain), gone).orientations_rad.max()) < 1e-5
    (tmp_path / "particles.mrcs").write_bytes((folder / "particles.mrcs").read_bytes())
    said = run("compare", folder / "particles.star", tmp_path / "particles.star")
    assert "matched by image name" in said and "different files" in said


def test_convert_keeps_all_copies_each_with_a_uid(folder: Path, tmp_path: Path) -> None:
    said = run("convert", folder / "expanded.star", "--out", tmp_path / "e.cs", "--root", folder)
    assert f"{COUNT * COPIES} particles" in said and "earlier one" not in said
    run("convert", folder / "particles.star", "--out", tmp_path / "p.cs", "--root", folder)
    expanded, plain = (read_particle_file(tmp_path / name).dataset for name in ("e.cs", "p.cs"))
    assert expanded is not None and plain is not None
    assert len(np.unique(expanded["uid"])) == COUNT * COPIES
    assert (expanded["uid"][::COPIES] == plain["uid"]).all()
    back = tmp_path / "back.star"
    run("convert", tmp_path / "e.cs", "--out", back)
    found = read_star(back).particles["rlnImageName"].tolist()
    assert found == read_star(folder / "expanded.star").particles["rlnImageName"].tolist()


def test_an_expanded_set_of_cryosparc_keeps_its_uids(tmp_path: Path) -> None:
    """Its copies are records of one image with uids and poses of their own."""
    fields = refined(6)
    expanded = {name: np.repeat(values, 2, axis=0) for name, values in fields.items()}
    expanded["uid"] = np.arange(12, dtype=np.uint64) + 100
    expanded["alignments3D/pose"][1::2] += 0.5
    source = write(tmp_path / "J1" / "J1_particles.cs", expanded)
    run("convert", source, "--scale-origins", "-1", "--out", tmp_path / "turned.cs")
    kept = read_particle_file(tmp_path / "turned.cs").dataset
    assert kept is not None and kept["uid"].tolist() == records(expanded)["uid"].tolist()
    run("convert", source, "--out", tmp_path / "x.star")
    assert len(read_star(tmp_path / "x.star")) == 12


def test_filter_takes_an_expanded_set(folder: Path, tmp_path: Path) -> None:
    table = read_star(folder / "expanded.star")
    errors = with_columns(table, {EXPECTED_ERROR: np.arange(len(table), dtype=float)})
    write_star(errors, tmp_path / "e.star")
    run("filter", tmp_path / "e.star", "--by", "error", "--keep", "0.25", "--out", tmp_path / "kept.star")
    assert len(read_star(tmp_path / "kept.star")) == COUNT


@pytest.mark.parametrize(
    ("words", "instead"),
    [
        (("train",), "with its --symmetry"),
        (("find-rate",), "with its --symmetry"),
        (("predict", "model"), "from before the expansion"),
        (("align", "6z6u"), "with its --symmetry"),
    ],
)
def test_who_cannot_use_an_expanded_set_says_what_it_is(
    folder: Path, tmp_path: Path, words: tuple[str, ...], instead: str
) -> None:
    command, *model = words
    given = [folder / name if name == "model" else name for name in model]
    out = [] if command == "find-rate" else ["--out", tmp_path / "out.star"]
    said = run(command, *given, folder / "expanded.star", *out, code=1)
    assert f"symmetry-expanded set ({COUNT * COPIES} rows of {COUNT} images" in said and instead in said
    assert not list(tmp_path.iterdir())


def test_check_says_that_a_set_is_expanded(folder: Path) -> None:
    said = run("check", folder / "expanded.star", code=1)
    assert "symmetry-expanded" in said and "from before the expansion" in said and "not ready" in said


def test_repeats_by_oversight_are_refused_in_training_and_half_maps(folder: Path, tmp_path: Path) -> None:
    """Row 41 is the image of row 4 under another spelling."""
    for command in ("train", "reconstruct"):
        said = run(command, folder / "doubled.star", "--out", tmp_path / "out", code=1)
        assert "row 41 (4@./particles.mrcs): the image is already in row 4, and 1 more row" in said
        assert "remove the duplicates" in said


@pytest.mark.parametrize("name", ["doubled.star", "poseless.star"])
def test_repeats_by_oversight_are_told_where_they_do_no_harm(folder: Path, tmp_path: Path, name: str) -> None:
    told = "2 of 42 rows with the image of an earlier one: 41 (as 4), 42 (as 6)"
    out = tmp_path / "predicted.star"
    assert told in run(
        "predict", folder / "model", folder / name, "--out", out, "--root", folder, "--no-refine"
    )
    assert len(read_star(out)) == COUNT + 2
    assert told in run("convert", folder / name, "--out", tmp_path / "x.cs", "--root", folder)
    judged = CliRunner().invoke(app, ["check", str(folder / name)])
    assert "2 of 42 rows with the image of an earlier one" in " ".join(
        judged.output.replace("│", " ").split()
    )


def test_copies_in_both_half_sets_are_refused(folder: Path, tmp_path: Path) -> None:
    table = read_star(folder / "expanded.star")
    halves = with_columns(table, {"rlnRandomSubset": np.arange(len(table)) % 2 + 1})
    write_star(halves, folder / "torn.star")
    said = run("reconstruct", folder / "torn.star", "--out", tmp_path / "map", code=1)
    assert "copies of one image in one half set" in said and "rows 1 and 2" in said


def test_stacks_of_two_folders_that_are_one_below_the_root_are_never_mixed(tmp_path: Path) -> None:
    """A moved project is read; put flat into one folder, half of the particles would get others' images."""
    columns = {"rlnAngleRot": "1", "rlnAngleTilt": "2", "rlnAnglePsi": "3", "rlnOpticsGroup": "1"}
    optics = {"rlnOpticsGroup": "1", "rlnImagePixelSize": "2", "rlnImageSize": "8"}
    names = [f"{at}@/old/disk/job{job}/mic.mrcs" for job in (1, 2) for at in (1, 2)]
    particles = pd.DataFrame({"rlnImageName": names} | columns, dtype=str)
    table = ParticleTable(tmp_path / "abs.star", pd.DataFrame(optics, index=[0], dtype=str), particles)
    write_star(table, table.path)
    for place in ("proj/job1", "proj/job2", "flat"):
        (tmp_path / place).mkdir(parents=True)
        write_stack(tmp_path / place / "mic.mrcs", [torch.randn(2, 8, 8)], 2, 8, 2.0)
    assert "4 particles" in run(
        "convert", table.path, "--out", tmp_path / "a.cs", "--root", tmp_path / "proj"
    )
    said = run("convert", table.path, "--out", tmp_path / "b.cs", "--root", tmp_path / "flat", code=1)
    assert "/old/disk/job1/mic.mrcs and /old/disk/job2/mic.mrcs are two files" in said
    assert not (tmp_path / "b.cs").exists()
