"""Presets, and TOML files that change them or are refused by name."""

import json
from pathlib import Path

import pytest

from cryoforum.config import PRESETS, Config, as_plain_dict, preset, read_config, updated, with_symmetry


def written(folder: Path, text: str) -> Path:
    path = folder / "config.toml"
    path.write_text(text)
    return path


def test_presets_are_known_by_name() -> None:
    assert list(PRESETS) == ["tiny", "small", "paper"]
    assert preset("small") == Config()
    assert preset("paper").network.head == "qcqp" and preset("paper").preprocessing.box == 128
    with pytest.raises(ValueError, match="tiny, small, paper, found 'huge'"):
        preset("huge")


@pytest.mark.parametrize("name", list(PRESETS))
def test_a_preset_survives_json(name: str) -> None:
    values = json.loads(json.dumps(as_plain_dict(preset(name))))
    assert updated(Config(), values, where="model.json") == preset(name)


def test_toml_changes_what_it_names(tmp_path: Path) -> None:
    text = (
        "[training]\nimage_passes = 500\nmax_learning_rate = 1\n[network]\nwidths = [8, 16]\nhead = 'qcqp'\n"
    )
    config = read_config(written(tmp_path, text), preset("tiny"))
    assert config.training.image_passes == 500
    assert type(config.training.max_learning_rate) is float
    assert config.network.widths == (8, 16) and config.network.head == "qcqp"
    assert config.preprocessing == preset("tiny").preprocessing
    assert config.training.batch_size == preset("tiny").training.batch_size
    assert read_config(written(tmp_path, ""), preset("tiny")) == preset("tiny")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[trainings]\n", "found 'trainings'"),
        ("[training]\nimage_pases = 3\n", "found 'image_pases'"),
        ("[training]\nimage_passes = 'many'\n", "image_passes: expected a int such as 120000, found 'many'"),
        ("[training]\nimage_passes = 1.5\n", "found 1.5"),
        ("[training]\nimage_passes = true\n", "found True"),
        ("[training]\nimage_passes = 0\n", "image_passes of 1 or more, found 0"),
        ("[training]\nbatch_size = 1\n", "batch_size of 2 or more, found 1"),
        ("[training]\nmax_learning_rate = nan\n", "above 0, found nan"),
        ("[training]\naugment = 1\n", "expected a bool"),
        ("training = 3\n", "training: expected a TrainingConfig"),
        ("[network]\nhead = 'bingham'\n", "head: expected one of exponential_family, qcqp, found 'bingham'"),
        ("[network]\nbackbone = 'resnet'\n", "expected one of residual, vgg"),
        ("[network]\nwidths = 8\n", "expected a tuple"),
        ("[network]\nwidths = ['a']\n", "expected a tuple"),
        ("[network]\nwidths = []\n", "widths of 1 or more"),
        ("[network]\nwidths = [8, 8, 8, 8, 8, 8, 8]\n", "a box divisible by 128 for 7 widths, found 64"),
        ("[network]\ndegree = 0\n", "degree of 1 or more, found 0"),
        ("[network]\ndropout = 1.0\n", "below 1, found 1.0"),
        ("symmetry = 'D2h'\n", "expected a point group out of C1 to C99, D1 to D99, T, O, I, I1, I2, I3, I4"),
        ("symmetry = 'D8'\n", "degree of 8 or more for symmetry D8, found 6"),
        ("symmetry = 2\n", "symmetry: expected a str such as 'C1', found 2"),
        ("[preprocessing]\nbox = 63\n", "an even box of 8 or more, found 63"),
        ("[preprocessing]\nmask_inner = 1.0\n", "mask_inner < mask_outer"),
        ("[training\n", "expected a TOML file"),
        ("\x00", "expected a TOML file"),
    ],
)
def test_what_is_wrong_is_named_with_its_file(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ValueError) as refusal:
        read_config(written(tmp_path, text), Config())
    assert words in str(refusal.value) and "config.toml" in str(refusal.value)


def test_missing_and_binary_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected a TOML file at .*none.toml"):
        read_config(tmp_path / "none.toml", Config())
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="expected a TOML file"):
        read_config(tmp_path / "binary.toml", Config())


def test_symmetry_is_set_with_a_degree_that_can_tell_it() -> None:
    assert Config().symmetry == "C1"
    assert with_symmetry(preset("tiny"), "D2").network == preset("tiny").network
    octahedral = with_symmetry(preset("tiny"), "O")
    assert octahedral.symmetry == "O" and octahedral.network.degree == 4
    assert updated(Config(), as_plain_dict(octahedral), where="model.json") == octahedral
    assert with_symmetry(preset("paper"), "I1").symmetry == "I1"
    with pytest.raises(ValueError, match="found 'D2h'"):
        with_symmetry(Config(), "D2h")


def test_models_made_before_there_was_symmetry_have_none() -> None:
    values = as_plain_dict(Config())
    del values["symmetry"]
    assert updated(Config(), values, where="model.json").symmetry == "C1"
