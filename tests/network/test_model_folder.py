"""A model folder comes back as it was; anything else is refused in one line and nothing is torn."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cryoforum.config import Config, NetworkConfig, PreprocessingConfig
from cryoforum.dataset.particles import Particles
from cryoforum.dataset.split import parts_of, read_split
from cryoforum.network import model_folder as checkpoint
from cryoforum.network.model import OrientationNetwork, TrainedModel, number_count
from cryoforum.network.model_folder import load_model, save_model
from cryoforum.network.training_record import TrainingRecord
from cryoforum.runtime.devices import CPU, Compute
from cryoforum.storage.files import new_folder
from cryoforum.storage.state import load_state, save_state


@pytest.fixture
def model() -> TrainedModel:
    torch.manual_seed(0)
    config = Config(PreprocessingConfig(box=16), network=NetworkConfig(widths=(4, 8), degree=1))
    network = OrientationNetwork(config.network, 16)
    torch.nn.init.normal_(network.dense.weight)
    log = [{"step": 1, "train_loss": 0.5}, {"step": 2, "validation_median_rad": 0.25}]
    parts = {"1@a.mrcs": "train", 'odd, "name".mrcs': "test"}
    return TrainedModel(network.eval(), config, 32, 11.2, 0.25, log, parts)


@pytest.fixture
def folder(model: TrainedModel, tmp_path: Path) -> Path:
    save_model(model, tmp_path / "model")
    return tmp_path / "model"


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_images_are_known_by_their_place_or_if_they_moved_by_their_name(
    model: TrainedModel, tmp_path: Path
) -> None:
    saved = replace(model, sources={7: "train", -(2**63): "test"}, sharpness=0.5)
    saved = replace(saved, record=TrainingRecord(2.2, 300.0, 0.9))
    save_model(saved, tmp_path / "model")
    known = load_model(tmp_path / "model")
    assert known.sharpness == 0.5
    assert known.record == saved.record
    assert known.sources == {7: "train", -(2**63): "test"}
    names = ("other.mrcs", "1@a.mrcs", 'odd, "name".mrcs', "new.mrcs")
    particles = Particles(torch.zeros(4, 2, 2), 1.0, names, sources=torch.tensor([-(2**63), 1, 7, 2]))
    assert parts_of(particles, known.parts, known.sources) == ["test", "train", "train", None]
    nowhere = replace(particles, sources=None)
    assert parts_of(nowhere, known.parts, known.sources) == [None, "train", "test", None]
    respelt = replace(nowhere, names=("other.mrcs", "000001@./a.mrcs", './odd, "name".mrcs', "a.mrcs"))
    assert parts_of(respelt, known.parts, known.sources) == [None, "train", "test", "train"]


def test_round_trip(model: TrainedModel, folder: Path) -> None:
    loaded = load_model(folder)
    assert sorted(path.name for path in folder.iterdir()) == [
        "log.csv",
        "model.json",
        "split.csv",
        "weights.safetensors",
    ]
    assert (loaded.config, loaded.box, loaded.pixel_size_angstrom) == (model.config, 32, 11.2)
    assert loaded.validation_median_rad == 0.25 and loaded.parts == model.parts
    assert loaded.log == [{"step": 1.0, "train_loss": 0.5}, {"step": 2.0, "validation_median_rad": 0.25}]
    images = torch.randn(3, 16, 16)
    with torch.no_grad():
        assert torch.equal(loaded.network(images), model.network(images))
    assert not loaded.network.training


def test_the_description_can_be_read_by_people(folder: Path) -> None:
    description = json.loads((folder / "model.json").read_text())
    assert description["format"] == checkpoint.FORMAT
    assert description["config"]["network"]["widths"] == [4, 8]
    assert {"torch", "cryo-forum", "box", "pixel_size_angstrom"} <= description.keys()


def edit_description(**changes: object) -> Callable[[Path], object]:
    def edit(folder: Path) -> None:
        values = json.loads((folder / "model.json").read_text()) | changes
        values = {name: value for name, value in values.items() if value != "gone"}
        (folder / "model.json").write_text(json.dumps(values))

    return edit


def cut_weights(folder: Path) -> None:
    path = folder / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-10])


DAMAGES: dict[str, Callable[[Path], object]] = {
    "no description": lambda folder: (folder / "model.json").unlink(),
    "no weights": lambda folder: (folder / "weights.safetensors").unlink(),
    "no log": lambda folder: (folder / "log.csv").unlink(),
    "no split": lambda folder: (folder / "split.csv").unlink(),
    "weights cut off": cut_weights,
    "empty weights": lambda folder: (folder / "weights.safetensors").write_bytes(b""),
    "weights of zeros": lambda folder: (folder / "weights.safetensors").write_bytes(bytes(1000)),
    "foreign JSON": lambda folder: (folder / "model.json").write_text('{"a": 1}'),
    "a list": lambda folder: (folder / "model.json").write_text("[1]"),
    "no JSON": lambda folder: (folder / "model.json").write_text("hello"),
    "binary": lambda folder: (folder / "model.json").write_bytes(b"\xff\x00"),
    "of the future": edit_description(format="cryo-forum model 3"),
    "of before the parts could be chosen": edit_description(format="cryo-forum model 1"),
    "without configuration": edit_description(config="gone"),
    "configuration null": edit_description(config=None),
    "without intensity": edit_description(intensity="gone"),
    "intensity null and more": edit_description(intensity={"mean": 0.0}),
    "without box": edit_description(box="gone"),
    "box null": edit_description(box=None),
    "pixel size of words": edit_description(pixel_size_angstrom="small"),
    "unknown setting": edit_description(config={"network": {"depths": 3}}),
    "other network": edit_description(
        config={"preprocessing": {"box": 16}, "network": {"widths": [8, 16], "degree": 1}}
    ),
    "unknown precision": edit_description(precision="float8"),
    "unknown device": edit_description(device="abacus"),
    "log of words": lambda folder: (folder / "log.csv").write_text("step\nhello\n"),
    "foreign split": lambda folder: (folder / "split.csv").write_text("a,b\n1,2\n"),
}


def test_folders_without_a_precision_are_of_float32_on_a_cpu(folder: Path) -> None:
    for name in ("device", "precision"):
        edit_description(**{name: "gone"})(folder)
    assert load_model(folder).compute == Compute(CPU, "float32")


@pytest.mark.parametrize("damage", list(DAMAGES))
def test_other_folders_are_refused_in_one_line(folder: Path, damage: str) -> None:
    DAMAGES[damage](folder)
    with pytest.raises(
        ValueError, match="expected a model folder written by 'cryoforum train' at"
    ) as refusal:
        load_model(folder)
    message = str(refusal.value)
    assert str(folder) in message and "\n" not in message and len(message) < 600


def test_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected a model folder"):
        load_model(tmp_path / "none")


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_save_leaves_the_old_model(
    model: TrainedModel, folder: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    before = content(folder)

    def fail(source: object, target: object) -> None:
        raise error

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(type(error)):
        save_model(model, folder)
    assert content(folder) == before


def test_a_full_disk_is_an_os_error(model: TrainedModel, tmp_path: Path) -> None:
    """Neither safetensors nor torch raises one by itself; a limit on file sizes stands in for the disk."""
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        with pytest.raises(OSError):
            save_model(model, tmp_path / "model")
        with pytest.raises(OSError):
            save_state({"tensor": torch.zeros(10_000)}, tmp_path / "state.pt")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_states_come_back_and_cannot_run_code(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    save_state({"tensor": torch.arange(3), "step": 4, "log": [{"a": 1.5}]}, path)
    state = load_state(path)
    assert state["step"] == 4 and torch.equal(state["tensor"], torch.arange(3))
    torch.save({"code": os.system}, path)
    with pytest.raises(ValueError, match="state of a run"):
        load_state(path)
    with pytest.raises(ValueError, match="state of a run"):
        load_state(tmp_path / "none.pt")


def test_read_split_wants_its_columns(folder: Path, tmp_path: Path) -> None:
    assert read_split(folder / "split.csv")[0]["1@a.mrcs"] == "train"
    (tmp_path / "empty.csv").write_text("image,part\n")
    with pytest.raises(ValueError, match="columns image and part"):
        read_split(tmp_path / "empty.csv")


def test_a_description_of_a_network_that_its_file_cannot_hold_is_refused(
    tmp_path: Path, model: TrainedModel
) -> None:
    save_model(model, tmp_path)
    known = number_count(model.config.network, model.config.preprocessing.box, model.config.learned_symmetry)
    assert known == sum(weight.numel() for weight in model.network.parameters())
    description = json.loads((tmp_path / "model.json").read_text())
    description["config"]["network"]["widths"] = [4096, 4096, 4096]
    (tmp_path / "model.json").write_text(json.dumps(description))
    with pytest.raises(ValueError, match=r"describes a network of \d+ bytes, weights.safetensors has \d+"):
        load_model(tmp_path)


def test_a_new_folder_replaces_only_earlier_results(tmp_path: Path) -> None:
    old = tmp_path / "out"
    assert new_folder(old, overwrite=False, known={"file"}).is_dir()
    (old / "file").write_text("kept")
    with pytest.raises(ValueError, match="--overwrite"):
        new_folder(old, overwrite=False, known={"file"})
    (old / "thesis.tex").write_text("kept")
    with pytest.raises(ValueError, match="thesis.tex, which is not ours"):
        new_folder(old, overwrite=True, known={"file"})
    assert sorted(content(old)) == ["file", "thesis.tex"]
    (old / "thesis.tex").unlink()
    new_folder(old, overwrite=True, known={"file"})
    assert list(tmp_path.iterdir()) == [old] and list(old.iterdir()) == []
    (tmp_path / "plain").write_text("kept")
    with pytest.raises(ValueError, match="expected a folder"):
        new_folder(tmp_path / "plain", overwrite=True, known=())
