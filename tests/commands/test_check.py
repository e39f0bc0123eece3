"""Whether the images of a particle file agree with its columns."""

import re
import shlex
from dataclasses import replace
from functools import cache
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from cryoforum.cli import app
from cryoforum.commands.check.findings import Alternative, Findings, Outcome, find_interpretation
from cryoforum.commands.check.interpretations import Interpretation, Transfer
from cryoforum.commands.check.inventory import inventory, origins_in_pixels
from cryoforum.commands.check.map_comparison import compare_maps, mirrored
from cryoforum.commands.check.problems import problems
from cryoforum.commands.compare import pose_errors
from cryoforum.commands.correct import Corrections, corrected
from cryoforum.commands.simulate import SimulateRequest
from cryoforum.commands.simulate import simulate as simulate_to_folder
from cryoforum.dataset.particle_table import select_rows, with_columns
from cryoforum.dataset.particles import Particles
from cryoforum.dataset.poses import Poses
from cryoforum.geometry.rotations import inverse, random_unitquat
from cryoforum.imaging.ctf import ctf_2d
from cryoforum.imaging.fft import phase_shift, to_fourier, to_real
from cryoforum.io.cryosparc.records import write_records
from cryoforum.io.mrc.maps import write_volume
from cryoforum.io.mrc.stacks import write_stack
from cryoforum.io.particle_files import read_particle_file, write_particle_file
from cryoforum.io.relion.dialects import relion30
from cryoforum.io.relion.lengths import pixel_size_from_table
from cryoforum.io.relion.particles import poses_from_table, table_from_particles
from cryoforum.io.relion.star_files import read_star, write_star
from cryoforum.molecules.structures import load_structure
from cryoforum.simulation.config import SimulationConfig
from cryoforum.simulation.ideal import simulate

BOX, PIXEL_SIZE, COUNT = 40, 9.0, 400


@cache
def right_set() -> Particles:
    """Particles in memory of which everything is as it says."""
    volume = load_structure("4v5d", BOX, PIXEL_SIZE)
    particles = simulate(volume, SimulationConfig(count=COUNT, snr=0.5, seed=5))
    return replace(particles, images=particles.images[torch.arange(COUNT)])


@cache
def fine_set() -> Particles:
    """Particles with finer pixels, which show the first zeros of the CTF; octahedral."""
    particles = simulate(load_structure("6z6u", 52, 3.0), SimulationConfig(count=200, snr=0.5, seed=6))
    return replace(particles, images=particles.images[torch.arange(200)])


def with_shifts(particles: Particles, factor: float) -> Particles:
    assert particles.poses is not None
    return particles.with_poses(Poses(particles.poses.quaternions, factor * particles.poses.shifts_angstrom))


def with_images_multiplied(particles: Particles, factor: torch.Tensor) -> Particles:
    assert isinstance(particles.images, torch.Tensor)
    return replace(particles, images=to_real(to_fourier(particles.images) * factor, particles.box))


def transfer(particles: Particles) -> torch.Tensor:
    assert particles.ctf is not None
    return ctf_2d(particles.ctf, particles.box, particles.pixel_size_angstrom)


def faults(findings: Findings) -> str:
    return " / ".join(problem.fault for problem in problems(findings, PIXEL_SIZE, in_pixels=False))


def test_a_right_file_passes_and_wrong_interpretations_are_excluded() -> None:
    findings = find_interpretation(right_set())
    assert findings.interpretation == Interpretation() and findings.oriented
    assert faults(findings) == ""
    excluded = {
        alternative.name for alternative in findings.alternatives if alternative.outcome is Outcome.WORSE
    }
    assert {
        "angles of the inverse rotation",
        "origins of the opposite sign",
        "origins applied already",
    } <= excluded
    assert all(alternative.deviations < 0 for alternative in findings.alternatives)


@pytest.mark.parametrize(
    ("factor", "fault"),
    [
        (1 / PIXEL_SIZE, "hold pixels, not Å"),
        (PIXEL_SIZE, f"{PIXEL_SIZE:g} times too large"),
        (-1.0, "opposite sign"),
        (2.0, "2 times too large"),
    ],
)
def test_wrong_origins_are_caught(factor: float, fault: str) -> None:
    findings = find_interpretation(with_shifts(right_set(), factor))
    assert findings.interpretation.origin_factor == pytest.approx(1 / factor)
    assert fault in faults(findings)


def test_origins_of_images_that_were_centred_are_caught() -> None:
    particles = right_set()
    assert particles.poses is not None and isinstance(particles.images, torch.Tensor)
    moved = phase_shift(to_fourier(particles.images), particles.poses.shifts_angstrom / PIXEL_SIZE)
    findings = find_interpretation(replace(particles, images=to_real(moved, BOX)))
    assert "centred already" in faults(findings)


def test_inverse_rotations_are_caught() -> None:
    particles = right_set()
    assert particles.poses is not None
    findings = find_interpretation(particles.with_orientations(inverse(particles.poses.quaternions)))
    assert findings.interpretation == Interpretation(inverse_rotation=True)


def test_inverted_contrast_is_caught_and_nothing_else() -> None:
    particles = right_set()
    findings = find_interpretation(with_images_multiplied(particles, torch.tensor(-1.0)))
    assert findings.interpretation == Interpretation()
    assert faults(findings) == "the contrast is inverted: the molecule is darker than its surroundings"


def test_several_faults_are_caught_at_once() -> None:
    particles = with_images_multiplied(with_shifts(right_set(), -1), torch.tensor(-1.0))
    assert particles.poses is not None
    findings = find_interpretation(particles.with_orientations(inverse(particles.poses.quaternions)))
    assert findings.interpretation == Interpretation(inverse_rotation=True, origin_factor=-1.0)
    assert "contrast is inverted" in faults(findings)


@pytest.mark.parametrize(
    ("kind", "power"), [(Transfer.FLIPPED, 0.0), (Transfer.MULTIPLIED, 1.0), (Transfer.OVERFOCUS, 0.0)]
)
def test_a_correction_of_the_images_is_caught(kind: Transfer, power: float) -> None:
    particles = fine_set()
    if kind is Transfer.OVERFOCUS:
        assert particles.ctf is not None
        ctf = particles.ctf
        changed = ctf.defocused_by(-(ctf.defocus_u_angstrom + ctf.defocus_v_angstrom))
        particles = replace(particles, ctf=changed)
    else:
        values = transfer(particles)
        particles = with_images_multiplied(particles, values.sign() if power == 0 else values)
    assert find_interpretation(particles, "O").interpretation == Interpretation(transfer=kind)


@pytest.mark.parametrize("factor", [0.87, 2.0])
@pytest.mark.parametrize("origins", ["right in Å", "right in pixels"])
def test_a_wrong_pixel_size_is_caught_by_the_ctf(factor: float, origins: str) -> None:
    particles = with_shifts(right_set(), factor if origins == "right in pixels" else 1.0)
    findings = find_interpretation(replace(particles, pixel_size_angstrom=factor * PIXEL_SIZE))
    assert findings.interpretation.pixel_factor == pytest.approx(1 / factor, rel=0.02)
    assert findings.interpretation.origins_with_pixels == (origins == "right in pixels")
    assert (
        findings.interpretation.origin_factor == 1
        and findings.interpretation.transfer is Transfer.AS_RECORDED
    )
    found = problems(findings, factor * PIXEL_SIZE, in_pixels=False)
    assert [problem.fault for problem in found if "pixel size" in problem.fault]


def test_a_ctf_that_the_file_does_not_describe_is_caught() -> None:
    findings = find_interpretation(replace(right_set(), ctf=None))
    ctf = right_set().ctf
    assert ctf is not None and findings.undescribed_defocus_angstrom is not None
    assert findings.undescribed_defocus_angstrom == pytest.approx(
        float(ctf.defocus_u_angstrom.median()), rel=0.15
    )


def test_images_without_a_ctf_need_none() -> None:
    particles = right_set()
    values = transfer(particles)
    corrected = with_images_multiplied(particles, values / (values.square() + 0.1))
    findings = find_interpretation(replace(corrected, ctf=None))
    assert findings.undescribed_defocus_angstrom is None
    assert faults(findings) == ""


def test_orientations_of_other_images_are_caught() -> None:
    particles = right_set()
    assert particles.poses is not None
    findings = find_interpretation(
        particles.with_orientations(random_unitquat(COUNT, generator=torch.Generator().manual_seed(9)))
    )
    assert findings.oriented is False
    assert "explain no more" in faults(findings)


def test_a_certain_but_tiny_difference_excludes_nothing() -> None:
    outcomes = [
        Alternative("other", *numbers).outcome
        for numbers in ((-21.0, -0.009), (21.0, 0.009), (-21.0, -0.011), (21.0, 0.011), (-4.9, -0.2))
    ]
    assert outcomes == [Outcome.CLOSE, Outcome.CLOSE, Outcome.WORSE, Outcome.BETTER, Outcome.UNDECIDED]


def test_noise_decides_nothing() -> None:
    noise = torch.randn(COUNT, BOX, BOX, generator=torch.Generator().manual_seed(3))
    findings = find_interpretation(replace(right_set(), images=noise))
    assert findings.oriented is None
    assert findings.interpretation == Interpretation()
    assert faults(findings) == ""


def test_the_hand_of_a_turned_map_is_found() -> None:
    volume = load_structure("4v5d", 52, 7.0)
    turned = volume.voxels.permute(1, 2, 0).contiguous()  # a turn by 120° about the diagonal
    same, other = compare_maps(volume.voxels, turned), compare_maps(mirrored(volume.voxels), turned)
    assert same.other_hand is False and other.other_hand is True
    assert same.correlation == pytest.approx(other.mirrored_correlation, abs=0.05)
    assert same.size == pytest.approx(1, abs=0.02)
    larger = load_structure("4v5d", 52, 7.0 / 1.06)
    assert compare_maps(larger.voxels, volume.voxels).size == pytest.approx(1 / 1.06, abs=0.02)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("check")
    config = SimulationConfig(count=COUNT, snr=0.5, seed=5)
    simulate_to_folder(SimulateRequest(place, "4v5d", BOX, PIXEL_SIZE, config))
    return place


def check(*arguments: object, code: int) -> str:
    result = CliRunner().invoke(app, ["check", *map(str, arguments)])
    assert result.exit_code == code, result.output + str(result.exception)
    return result.output


def test_the_command_says_ready_and_draws(folder: Path, tmp_path: Path) -> None:
    write_volume(load_structure("4v5d", BOX, PIXEL_SIZE), tmp_path / "map.mrc")
    page = tmp_path / "page.html"
    output = check(folder / "particles.star", "--reference", tmp_path / "map.mrc", "--out", page, code=0)
    assert output.splitlines()[-1] == "ready"
    assert output.count("excluded") == 2  # the nearest one, and how many more
    assert re.search(r"\d+ more +│ excluded", output)
    for part in ("40 px of 9 Å", "300 kV", "amplitude contrast 0.1", "float32"):
        assert part in output
    sizes = re.search(r"half sets +│ (\d+) and (\d+)", output)
    assert sizes is not None and int(sizes[1]) + int(sizes[2]) == COUNT
    assert page.read_text().count("data:image/png") > 40
    assert "already exists" in check(folder / "particles.star", "--out", page, code=1)


def test_the_command_names_the_problem_and_its_fix(folder: Path, tmp_path: Path) -> None:
    table = read_star(folder / "particles.star")
    flipped = {
        f"rlnOrigin{axis}Angst": -table.particles[f"rlnOrigin{axis}Angst"].astype(float) for axis in "XY"
    }
    write_star(with_columns(table, flipped), folder / "flipped.star")
    write_volume(
        replace(volume := load_structure("4v5d", BOX, PIXEL_SIZE), voxels=mirrored(volume.voxels)),
        tmp_path / "mirrored.mrc",
    )
    picture = tmp_path / "pictures.png"
    output = check(
        folder / "flipped.star", "--reference", tmp_path / "mirrored.mrc", "--out", picture, code=1
    )
    assert "multiply rlnOriginXAngst and rlnOriginYAngst by -1" in output
    assert "has the other hand than" in output
    assert output.splitlines()[-1] == "not ready"
    assert picture.read_bytes().startswith(b"\x89PNG")


def fixed(said: str) -> Path:
    """Run the command that a check names; the file that it writes."""
    (command,) = (line for line in said.splitlines() if line.startswith("corrected by: cryoforum "))
    arguments = shlex.split(command.removeprefix("corrected by: cryoforum "))
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    return Path(arguments[-1])


FAULTS = {
    "unit": Corrections(1 / PIXEL_SIZE),
    "sign and inverse": Corrections(-1.0, inverse_rotations=True),
    "pixel size": Corrections(pixel_size_factor=0.5),
    "pixel size, origins with it": Corrections(0.5, pixel_size_factor=0.5),
}


@pytest.mark.parametrize(
    ("fault", "dialect"),
    [*((fault, "3.1") for fault in FAULTS), *((fault, "3.0") for fault in FAULTS if "pixel" in fault)],
)
def test_the_command_it_names_corrects_the_file(folder: Path, fault: str, dialect: str) -> None:
    """Poses, origins in Å and pixel size become what they were, in both dialects and from any folder."""
    faulty, true = folder / f"{fault} {dialect}.star", read_star(folder / "particles.star")
    write_star(corrected(true if dialect == "3.1" else relion30(true), FAULTS[fault]), faulty)
    written = fixed(check(faulty, code=1))
    found = read_star(written)
    written.rename(folder / f"fixed {faulty.name}")
    assert written.parent == folder and (found.optics is None) == (dialect == "3.0")
    assert pixel_size_from_table(found) == pytest.approx(PIXEL_SIZE, rel=0.01)
    assert float(pose_errors(found, true).orientations_rad.max()) < 1e-5
    shifts, expected = poses_from_table(found).shifts_angstrom, poses_from_table(true).shifts_angstrom
    torch.testing.assert_close(shifts, expected, rtol=0.015, atol=0.01)


def test_the_command_it_names_knows_companions_root_and_taken_names(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    true = folder / "particles.star"
    table = corrected(read_star(true), Corrections(-1, pixel_size_factor=0.8))
    write_particle_file(table, tmp_path / "all.cs")
    records = np.load(tmp_path / "all.cs")
    poses = [name for name in records.dtype.names if name.startswith("alignments3D")]
    others = [name for name in records.dtype.names if name not in ("uid", *poses)]
    (tmp_path / "job").mkdir()
    write_records(records[["uid", *poses]], tmp_path / "job" / "poses.cs")
    write_records(records[["uid", *others]], tmp_path / "others.cs")
    (tmp_path / "job" / "corrected.cs").touch()
    monkeypatch.chdir(tmp_path)
    written = fixed(check("job/poses.cs", "others.cs", "--root", folder, code=1))
    assert written == Path("job/corrected_2.cs")
    found, true = read_particle_file(written), read_star(true)
    assert pixel_size_from_table(found) == pytest.approx(PIXEL_SIZE, rel=0.01)
    assert set(found.dataset.dtype.names) == set(records.dtype.names)
    shifts, expected = poses_from_table(found).shifts_angstrom, poses_from_table(true).shifts_angstrom
    torch.testing.assert_close(shifts, expected, rtol=0.015, atol=0.01)


def test_origins_that_are_too_small_are_caught(folder: Path) -> None:
    table = read_star(folder / "particles.star")
    assert not origins_in_pixels(table) and origins_in_pixels(relion30(table))
    both = with_columns(table, {f"rlnOrigin{axis}": np.zeros(COUNT) for axis in "XY"})
    assert not origins_in_pixels(both) and origins_in_pixels(replace(both, optics=None))
    (problem,) = problems(find_interpretation(with_shifts(right_set(), 0.5)), PIXEL_SIZE, in_pixels=False)
    assert problem.fault == "the origins are 2 times too small"


def test_the_inventory_of_many_groups_is_short_and_complete() -> None:
    draw = np.random.default_rng(4)
    groups = draw.integers(1, 30, COUNT)
    voltage = np.where(groups == groups[0], 300 - np.arange(COUNT) % 2, 200)
    particles = with_distinct_orientations(right_set(), 7)
    table = with_columns(
        table_from_particles(particles, particles.names), {"rlnOpticsGroup": groups, "rlnVoltage": voltage}
    )
    rows = dict(inventory(replace(table, optics=None), particles))
    shown = [name for name in rows if name.startswith("optics group ")]
    assert shown == [f"optics group {group}" for group in list(dict.fromkeys(groups.tolist()))[:8]]
    first, count = rows[shown[0]], int((groups == groups[0]).sum())
    assert first.startswith(f"{count} particles, 299 kV to 300")
    counts = [int(rows[name].split()[0]) for name in rows if "group" in name]
    assert sum(counts) == COUNT and f"{len(set(groups.tolist())) - 8} more groups" in rows
    assert rows["orientations"].startswith("7 distinct")


def with_distinct_orientations(particles: Particles, count: int) -> Particles:
    """The particles with ``count`` distinct orientations, each with both signs of its quaternion."""
    distinct = random_unitquat(count, generator=torch.Generator().manual_seed(1))[torch.arange(COUNT) % count]
    return particles.with_orientations(distinct * (torch.arange(COUNT) // count % 2 * 2 - 1)[:, None])


def test_files_that_cannot_be_judged_give_the_reason(folder: Path) -> None:
    table = read_star(folder / "particles.star")
    unposed = replace(
        table, particles=table.particles.drop(columns=["rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi"])
    )
    write_star(unposed, folder / "unposed.star")
    assert "ready to predict, not to train: there are no poses" in check(folder / "unposed.star", code=0)
    write_star(select_rows(table, list(range(5))), folder / "few.star")
    assert "cannot tell: 5 particles" in check(folder / "few.star", code=0)


def test_too_few_or_too_small_images_are_reported_after_the_inventory(tmp_path: Path) -> None:
    particles = right_set().select(torch.arange(22))
    images = particles.images[torch.arange(22)]
    images[:3] = 0
    for box, reason in ((BOX, "19 particles of usual contrast are too few"), (4, "images of 4 px are too")):
        (tmp_path / str(box)).mkdir()
        write_stack(tmp_path / str(box) / "x.mrcs", [images[:, :box, :box]], 22, box, PIXEL_SIZE)
        small = replace(particles, images=images[:, :box, :box])
        write_star(
            table_from_particles(small, [f"{n + 1}@x.mrcs" for n in range(22)]), tmp_path / f"{box}.star"
        )
        said = check(tmp_path / f"{box}.star", "--root", tmp_path / str(box), code=0)
        assert "22 distinct" in said and said.splitlines()[-1].startswith(f"cannot tell: {reason}")


def test_bad_options_are_refused_before_the_images_are_read(folder: Path, tmp_path: Path) -> None:
    table = folder / "particles.star"
    for arguments, words in (
        (("--out", tmp_path / "no" / "further" / "page.html"), "create it first"),
        (("--reference", tmp_path / "none.mrc"), "not found"),
        (("--reference", tmp_path / "none.pdb"), "none of that name"),
        (("--reference", "4v5d", "--map-pixel-size", 9), "expected a map with --map-pixel-size"),
        (("--map-pixel-size", 9), "with --reference"),
    ):
        said = check(table, *arguments, code=1)
        assert words in " ".join(said.split()) and "distinct" not in said


def test_a_map_without_a_pixel_size_may_be_given_one_and_unused_maps_are_reported(
    folder: Path, tmp_path: Path
) -> None:
    with mrcfile.new(tmp_path / "bare.mrc") as file:
        file.set_data(load_structure("4v5d", BOX, PIXEL_SIZE).voxels.numpy())
    table, reference = folder / "particles.star", ("--reference", tmp_path / "bare.mrc")
    assert "--map-pixel-size" in check(table, *reference, code=1)
    said = check(table, *reference, "--map-pixel-size", PIXEL_SIZE, code=0)
    assert "correlation with the reference" in said and "cannot tell: hand" not in said
    write_star(select_rows(read_star(table), list(range(5))), folder / "five.star")
    said = check(folder / "five.star", *reference, "--map-pixel-size", PIXEL_SIZE, code=0)
    assert "cannot tell: hand\n" in said


def test_bad_input_is_refused_in_one_line(folder: Path, tmp_path: Path) -> None:
    assert "STAR file" in check(tmp_path / "none.star", code=1)
    table = folder / "particles.star"
    assert "PAGE.html" in check(table, "--out", tmp_path / "page.pdf", code=1)
    assert "point group" in check(table, "--symmetry", "Q7", code=1)
    blank = tmp_path / "blank"
    blank.mkdir()
    with mrcfile.new(blank / "particles.mrcs") as file:
        file.set_data(np.zeros((COUNT, BOX, BOX), np.float32))
    assert "constant images" in check(table, "--root", blank, code=1)
