"""A watcher that is given no model makes one of the first particles, and goes on with it."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.messages import messages

from cryoforum.alignment import draft
from cryoforum.commands.initial_model import InitialModelRequest
from cryoforum.commands.simulate import SimulateRequest, simulate
from cryoforum.commands.watch import first_model, results
from cryoforum.commands.watch.first_model import FirstModel, FirstParticles
from cryoforum.commands.watch.job import WatchRequest
from cryoforum.commands.watch.watch import watch
from cryoforum.config import preset, updated
from cryoforum.dataset.columns import ANGLE_COLUMNS, EXPECTED_ERROR, ORIGIN_COLUMNS
from cryoforum.dataset.particle_table import number_column, select_rows
from cryoforum.errors import InputError
from cryoforum.io.mrc.maps import write_volume
from cryoforum.io.relion.star_files import read_star, write_star
from cryoforum.molecules.structures import load_structure
from cryoforum.refinement.refine import RefinementConfig
from cryoforum.runtime.reporter import SILENT, Reporter
from cryoforum.simulation.config import SimulationConfig
from cryoforum.storage.file_watcher import Arrivals

BOX, PIXEL_SIZE, COUNT = 32, 11.2, 240
FEW = FirstModel(
    count=150,
    minutes=0.02,
    refinement=RefinementConfig(
        initial_resolution_angstrom=50.0, search_rounds=1, most_rounds=1, max_shift_pixel=1.0
    ),
    training=updated(preset("tiny"), {"training": {"image_passes": 64}}, where="test"),
)


@pytest.fixture(autouse=True)
def near_origins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Searches go as far as the particles are off-centre, which `watch` cannot be told."""
    monkeypatch.setattr(draft, "LEAST_SHIFT_PIXEL", 1.0)


@pytest.fixture(autouse=True)
def no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than all else."""
    monkeypatch.setattr(results, "write_watch_report", lambda *arguments: None)


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Particles without poses, as three micrographs gave them."""
    folder = tmp_path_factory.mktemp("live")
    simulate(
        SimulateRequest(
            folder / "made", "4v5d", BOX, PIXEL_SIZE, SimulationConfig(COUNT, snr=0.5, max_shift_pixel=1.0)
        )
    )
    table = read_star(folder / "made" / "particles.star")
    bare = replace(table, particles=table.particles.drop(columns=[*ANGLE_COLUMNS, *ORIGIN_COLUMNS]))
    for number in range(3):
        rows = select_rows(bare, slice(80 * number, 80 * number + 80))
        write_star(rows, folder / "made" / f"micrograph{number}.star")
    return folder / "made"


def request(live: Path, out: Path) -> WatchRequest:
    return WatchRequest(
        live, None, out, pattern="micrograph*.star", every_seconds=0.05, once=True, first_model=FEW
    )


def true_map(request: InitialModelRequest, reporter: Reporter) -> None:
    """In place of a search for it, which has tests of its own."""
    (request.out / "map").mkdir(parents=True)
    write_volume(load_structure("4v5d", BOX, PIXEL_SIZE), request.out / "map" / "map.mrc")


def test_all_particles_are_predicted_by_a_model_of_the_first(
    live: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill between the refinement and the training is gone on from, without doing the first part again."""
    out = tmp_path / "out"
    monkeypatch.setattr(first_model, "initial_model", true_map)

    def killed(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as broken, pytest.raises(KeyboardInterrupt):
        broken.setattr(first_model, "train", killed)
        watch(request(live, out))
    refined = (out / "refined" / "predictions.star").stat().st_mtime_ns
    with messages(str) as told:
        assert watch(request(live, out)) == COUNT
    assert (out / "refined" / "predictions.star").stat().st_mtime_ns == refined
    assert any("a model is trained" in line for line in told)
    assert "A model is trained for 0.02 minutes" in (out / "report.html").read_text()
    assert not any("a first map is made" in line for line in told)
    assert len(read_star(out / "all.star")) == COUNT
    assert number_column(read_star(out / "all.star"), EXPECTED_ERROR) is not None
    assert watch(request(live, out)) == COUNT  # once more: the same model, nothing new


def test_where_too_few_come_it_says_how_many_it_needs(live: Path, tmp_path: Path) -> None:
    few = replace(request(live, tmp_path / "out"), pattern="micrograph0.star")
    with pytest.raises(InputError, match=r"expected --model, or 150 particles \(--build-from\) .* found 80"):
        watch(few)
    assert not (tmp_path / "out" / "first").exists()


def test_a_folder_of_a_given_model_wants_it_again(live: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    job = {"format": "cryo-forum watch 1", "folder": str(live.resolve()), "model": "hash"}
    (tmp_path / "out" / "watch.json").write_text(json.dumps(job))
    with pytest.raises(InputError, match="results of a model that was given; give it with --model"):
        watch(request(live, tmp_path / "out"))


def test_an_image_in_two_files_is_learned_from_once(live: Path, tmp_path: Path) -> None:
    out, again = tmp_path / "out", tmp_path / "again"
    for folder in (out, again):
        folder.mkdir()
    (again / "micrograph0.star").write_bytes((live / "micrograph0.star").read_bytes())
    (again / "second.star").write_bytes((live / "micrograph0.star").read_bytes())
    first = FirstParticles(Arrivals(again, "*.star", out), live)
    with pytest.raises(InputError, match="100 particles .* found 80"):
        first.wait_for(100, 0.01, 0.0)
    first.write(1000)
    files = sorted((out / "first").iterdir())
    assert [len(read_star(path)) for path in files] == [80]


def test_a_model_is_not_made_of_nothing(live: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    (out / "first").mkdir(parents=True)
    for place in ("initial", "refined"):
        (out / place / "map").mkdir(parents=True)
    (out / "refined" / "predictions.star").touch()
    write_volume(load_structure("4v5d", BOX, PIXEL_SIZE), out / "refined" / "map" / "map.mrc")
    (out / "refined" / "map" / "resolution.json").write_text(json.dumps({"unmasked": 49.0}))
    with pytest.raises(InputError, match="nothing was found in the first particles"):
        first_model.build_model(out, FEW, False, SILENT)
    monkeypatch.setattr(first_model, "train", lambda *arguments: None)
    (out / "refined" / "map" / "resolution.json").write_text(json.dumps({"unmasked": 30.0}))
    first_model.build_model(out, FEW, False, SILENT)
