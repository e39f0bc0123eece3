"""From particles without poses to the poses of others that come later."""

from pathlib import Path

import pytest

from cryoforum.alignment import draft
from cryoforum.commands import demo as demonstration
from cryoforum.commands import demo_from_particles as from_particles
from cryoforum.commands.demo import ALL_RESULTS, DemoRequest
from cryoforum.commands.demo_from_particles import demo_from_particles
from cryoforum.commands.initial_model import InitialModelRequest
from cryoforum.errors import InputError
from cryoforum.io.mrc.maps import write_volume
from cryoforum.io.relion.particles import poses_from_table
from cryoforum.io.relion.star_files import read_star
from cryoforum.molecules.structures import load_structure
from cryoforum.refinement.refine import RefinementConfig
from cryoforum.runtime.reporter import Reporter
from cryoforum.simulation.config import SimulationConfig


def true_map(request: InitialModelRequest, reporter: Reporter) -> None:
    """In place of a search for it, which takes longer than all else and has tests of its own."""
    (request.out / "map").mkdir(parents=True)
    write_volume(load_structure("4v5d", 32, 11.2), request.out / "map" / "map.mrc")


def test_particles_that_come_later_are_found_by_what_the_first_ones_taught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demonstration, "BOX", 32)
    monkeypatch.setattr(demonstration, "PIXEL_SIZE_ANGSTROM", 11.2)
    monkeypatch.setattr(
        demonstration,
        "SimulationConfig",
        lambda **given: SimulationConfig(**given, snr=0.5, max_shift_pixel=1),
    )
    monkeypatch.setattr(from_particles, "initial_model", true_map)
    monkeypatch.setattr(draft, "LEAST_SHIFT_PIXEL", 1.0)  # as far as particles are off-centre
    short = RefinementConfig(
        initial_resolution_angstrom=50.0, search_rounds=1, most_rounds=2, max_shift_pixel=1
    )
    monkeypatch.setattr(from_particles, "RefinementConfig", lambda: short)
    out = tmp_path / "demo"
    result = demo_from_particles(DemoRequest(out, count=330, preset="tiny", max_minutes=0.02))
    assert {path.name for path in out.iterdir()} == ALL_RESULTS
    assert poses_from_table(read_star(out / "collected.star")) is None
    assert poses_from_table(read_star(out / "new.star")) is None
    assert result.errors["all"].count == 110
    assert result.errors["all"].median_rad < 0.1
    assert result.resolutions["predicted"]["masked"] < 40


def test_too_few_particles_are_refused_before_anything_is_made(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--n of 300 or more with --from-particles, found 200"):
        demo_from_particles(DemoRequest(tmp_path / "demo", count=200))
    assert not (tmp_path / "demo").exists()
