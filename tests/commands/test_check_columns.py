"""What `check` says of a table alone: units that can hardly be, classes, half sets, aberrations."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.messages import logged, silence
from typer.testing import CliRunner

from cryoforum.cli import app
from cryoforum.commands.check.columns import set_problems, unit_problems
from cryoforum.commands.check.findings import Alternative, Findings
from cryoforum.commands.check.interpretations import Interpretation, Transfer
from cryoforum.commands.check.inventory import inventory
from cryoforum.commands.check.problems import problems
from cryoforum.commands.simulate import SimulateRequest
from cryoforum.commands.simulate import simulate as simulate_to_folder
from cryoforum.dataset.particle_table import ParticleTable, number_column, with_columns
from cryoforum.dataset.volumes import Volume
from cryoforum.io.aberrations import unused_aberrations, warn_of_unused_aberrations
from cryoforum.io.particle_files import particle_set_of
from cryoforum.io.relion.star_files import read_star, write_star
from cryoforum.simulation.config import SimulationConfig

COUNT = 60


@pytest.fixture(scope="module")
def star(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("columns")
    return simulate_to_folder(SimulateRequest(folder, "4v5d", 32, 11.2, SimulationConfig(count=COUNT, snr=2)))


def scaled(table: ParticleTable, factor: float, *columns: str) -> ParticleTable:
    return with_columns(table, {name: factor * numbers(table, name) for name in columns})


def numbers(table: ParticleTable, name: str) -> np.ndarray:
    values = number_column(table, name)
    assert values is not None
    return values


def of_units(table: ParticleTable) -> list[str]:
    return [problem.fault for problem in unit_problems(table, particle_set_of(table).particles)]


ANGLES = ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi")
DEFOCUS = ("rlnDefocusU", "rlnDefocusV")


@pytest.mark.parametrize(
    ("factor", "columns", "told"),
    [
        (0.1, DEFOCUS, "the defocus is 0.* µm in the median.* seems to be in nm"),
        (np.pi / 180, ANGLES, "all angles lie within ±3.* seem to be in radians"),
        (np.pi / 180, ("rlnDefocusAngle",), "all defocus angles lie within ±3.* seem to be in radians"),
    ],
)
def test_units_that_can_hardly_be_end_the_check(
    star: Path, factor: float, columns: tuple[str, ...], told: str
) -> None:
    wrong = scaled(read_star(star), factor, *columns)
    write_star(wrong, star.with_name("wrong.star"))
    result = CliRunner().invoke(app, ["check", str(star.with_name("wrong.star"))])
    said = " ".join(result.output.split())
    assert result.exit_code == 1 and said.endswith("not ready")
    assert len(of_units(wrong)) == 1 and re.search(told, said)
    assert "Other interpretation" not in said and "corrected by" not in said  # no remedy that does harm


def test_phase_shifts_in_radians(star: Path) -> None:
    plate = np.linspace(0.5, 2.2, COUNT)
    assert of_units(with_columns(read_star(star), {"rlnPhaseShift": plate})) == [
        "no phase shift is beyond 2.2°: they seem to be in radians"
    ]


def test_a_pixel_size_in_nanometres_makes_a_narrow_image(star: Path) -> None:
    table = read_star(star)
    assert table.optics is not None
    (fault,) = of_units(replace(table, optics=table.optics.assign(rlnImagePixelSize="1.12")))
    assert fault.startswith("the images are 36 Å wide (32 px of 1.12 Å)") and fault.endswith("in nm")


def test_rare_files_have_no_problem_of_units(star: Path) -> None:
    """As simulated; one near focus with a phase plate; overfocus; none corrected; all about one axis."""
    table = read_star(star)
    assert of_units(table) == []
    plate = with_columns(scaled(table, 0.1, *DEFOCUS), {"rlnPhaseShift": np.full(COUNT, 90.0)})
    assert of_units(plate) == []
    assert of_units(scaled(table, -1, *DEFOCUS)) == []
    assert of_units(scaled(table, 0, *DEFOCUS)) == []
    assert of_units(with_columns(table, {"rlnDefocusAngle": np.full(COUNT, 2.0)})) == []
    assert of_units(scaled(table, 0, *ANGLES)) == []
    assert of_units(with_columns(table, {"rlnAnglePsi": np.zeros(COUNT)})) == []


def test_zero_defocus_is_named(star: Path) -> None:
    table = scaled(read_star(star), 0, *DEFOCUS)
    rows = dict(inventory(table, particle_set_of(table).particles))
    assert rows["defocus"] == "0 in all particles: taken as in focus"


def test_classes_and_one_sided_half_sets_are_not_ready(star: Path) -> None:
    classes = {"rlnClassNumber": np.arange(COUNT) % 3 + 1, "rlnRandomSubset": np.ones(COUNT, dtype=int)}
    mixed = star.with_name("mixed.star")
    write_star(with_columns(read_star(star), classes), mixed)
    result = CliRunner().invoke(app, ["check", str(mixed)])
    said = " ".join(result.output.split())
    assert result.exit_code == 1 and said.endswith("not ready")
    assert "3 classes (rlnClassNumber 1: 20, 2: 20, 3: 20)" in said
    assert "the half sets have 60 and 0 particles" in said


def test_one_class_and_whole_half_sets_are_no_problem(star: Path) -> None:
    table = with_columns(read_star(star), {"rlnClassNumber": np.full(COUNT, 2)})
    assert set_problems(table, particle_set_of(table).particles) == []
    unposed = with_columns(table, {"rlnClassNumber": np.arange(COUNT)})
    unposed = replace(unposed, particles=unposed.particles.drop(columns=list(ANGLES)))
    assert set_problems(unposed, particle_set_of(unposed).particles) == []


def test_a_negative_defocus_explains_images_that_seem_corrected() -> None:
    def found(share: float, is_overfocus: bool) -> list[str]:
        opposite = Alternative(f"images {Transfer.OVERFOCUS}", 10 * np.sign(share), share)
        volume = Volume(torch.zeros(4, 4, 4), 1.0)
        corrected = Interpretation(transfer=Transfer.CORRECTED)
        findings = Findings(100, corrected, (opposite,), True, 2.0, volume)
        return [one.fault for one in problems(findings, 1.0, False, is_overfocus)]

    assert found(-0.001, is_overfocus=True) == ["the defocus has the opposite sign"]
    assert found(-0.5, is_overfocus=True) == ["the images are corrected for their CTF already"]
    assert found(-0.001, is_overfocus=False) == ["the images are corrected for their CTF already"]


def aberrated(table: ParticleTable, **optics: str) -> ParticleTable:
    assert table.optics is not None
    return replace(table, optics=table.optics.assign(**optics).astype(str))


def test_aberrations_that_are_not_used_are_told(star: Path) -> None:
    table = read_star(star)
    none = {"rlnBeamTiltX": "0.0", "rlnMagMat00": "1.000000", "rlnMagMat01": "0", "rlnOddZernike": "[0,0.0]"}
    assert unused_aberrations(aberrated(table, **none)) == ()
    with silence():
        warn_of_unused_aberrations(aberrated(table, **none))
    some = aberrated(table, **none | {"rlnMagMat00": "1.002", "rlnOddZernike": "[0,0.1]"})
    assert unused_aberrations(some) == ("rlnMagMat00", "rlnOddZernike")
    with logged("not used, as the CTF is computed without them: rlnMagMat00, rlnOddZernike"):
        particles = particle_set_of(some).particles
    assert dict(inventory(some, particles))["not used"].startswith("rlnMagMat00, rlnOddZernike")
    old = ParticleTable(
        Path("a.star"), None, pd.DataFrame({"rlnImageName": ["1@a"], "rlnBeamTiltY": ["0.2"]})
    )
    assert unused_aberrations(old) == ("rlnBeamTiltY",)
