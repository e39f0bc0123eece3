"""Numbers that no microscope has are refused with the unit that they seem to be in; rare ones are taken."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers.messages import silence

from cryoforum.dataset.particle_table import ParticleTable
from cryoforum.errors import InputError
from cryoforum.io.relion.particles import ctf_from_table
from cryoforum.io.relion.units import refuse_impossible_pixel_sizes

COUNT = 8
USUAL = np.linspace(8000, 25_000, COUNT)


def table(defocus: object = USUAL, size: float = 1.2, **optics: float) -> ParticleTable:
    """Particles of two optics groups, four rows each."""
    values = np.broadcast_to(np.asarray(defocus, dtype=float), COUNT)
    microscope = {"rlnVoltage": 300.0, "rlnSphericalAberration": 2.7, "rlnAmplitudeContrast": 0.1} | optics
    frame = pd.DataFrame(
        {
            "rlnImageName": [f"{n + 1}@a.mrcs" for n in range(COUNT)],
            "rlnOpticsGroup": ["1"] * 4 + ["2"] * 4,
            "rlnDefocusU": values,
            "rlnDefocusV": values,
            "rlnDefocusAngle": np.zeros(COUNT),
        }
    )
    groups = pd.DataFrame({"rlnOpticsGroup": ["1", "2"], "rlnImagePixelSize": size} | microscope)
    return ParticleTable(Path("a.star"), groups.astype(str), frame.astype(str))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"defocus": USUAL / 1e4},
            "rlnDefocusU in Å.* all 8 rows; it seems to be in µm: multiply it by 10000",
        ),
        ({"defocus": USUAL / 1e7}, "in mm: multiply it by 1e.07"),
        ({"defocus": USUAL / 1e10}, "in m: multiply it by 1e.10"),
        (
            {"defocus": USUAL * 100},
            r"row 2 .*seems to be in pm: multiply it by 0.01 .*7 of 8 rows: 2, 3, 4, 5, 6, …",
        ),
        ({"defocus": np.r_[USUAL[:4], USUAL[4:] / 1e4]}, "in 4 rows .5, 6, 7, 8.; it seems to be in µm"),
        ({"defocus": np.r_[0, 0, 1, 2, USUAL[4:]]}, "in 4 rows .1, 2, 3, 4."),
        ({"rlnVoltage": 300_000.0}, "from 10 to 1000 kV, found 300000; it seems to be in V"),
        ({"rlnVoltage": 0.3}, "it seems to be in MV"),
        ({"rlnVoltage": 0.0}, "from 10 to 1000 kV, found 0 .so it is in all 8 rows.$"),
        ({"rlnSphericalAberration": 2700.0}, "mm, found 2700; it seems to be in µm: multiply it by 0.001"),
        ({"rlnSphericalAberration": 2.7e7}, "it seems to be in Å"),
        ({"rlnAmplitudeContrast": 10.0}, "it seems to be in percent"),
    ],
)
def test_impossible_ctf_parameters_are_refused(changes: dict[str, float], told: str) -> None:
    with pytest.raises(InputError, match=told):
        ctf_from_table(table(**changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"defocus": 0},  # images without a CTF
        {"defocus": -USUAL},  # overfocus
        {"defocus": np.r_[3, USUAL[1:]]},  # one near focus
        {"defocus": 400},  # with a phase plate
        {"defocus": 150_000},
        {"rlnSphericalAberration": 0.0},
        {"rlnSphericalAberration": 0.001},
        {"rlnSphericalAberration": -0.03},
        {"rlnVoltage": 100.0},
        {"rlnAmplitudeContrast": 1.0},
    ],
)
def test_rare_ctf_parameters_are_taken_in_silence(changes: dict[str, float]) -> None:
    with silence():
        assert ctf_from_table(table(**changes)) is not None


@pytest.mark.parametrize(("size", "unit"), [(0.083, "nm"), (280, "pm"), (1.2e-10, "m")])
def test_impossible_pixel_sizes_are_refused(size: float, unit: str) -> None:
    with pytest.raises(InputError, match=f"from 0.1 to 100 Å, found {size:g}; it seems to be in {unit}"):
        refuse_impossible_pixel_sizes(table(size=size))


def test_low_magnification_is_taken() -> None:
    refuse_impossible_pixel_sizes(table(size=12))
    refuse_impossible_pixel_sizes(table(size=0.25))
