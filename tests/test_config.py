"""Presets, and TOML files that change them or are refused by name."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from cryoforum.config import (
    PRESETS,
    Config,
    chosen_config,
    preset,
    read_config,
    updated,
    with_settings,
    with_symmetry,
)


def written(folder: Path, text: str) -> Path:
    path = folder / "config.toml"
    path.write_text(text)
    return path


def test_presets_are_known_by_name() -> None:
    assert list(PRESETS) == ["tiny", "small", "paper", "expedited"]
    assert all(preset(name) is PRESETS[name] for name in PRESETS)
    assert preset("paper").network.head == "qcqp" and preset("paper").preprocessing.box == 128
    with pytest.raises(ValueError, match="tiny, small, paper, expedited, found 'huge'"):
        preset("huge")


@pytest.mark.parametrize("name", list(PRESETS))
def test_a_preset_survives_json(name: str) -> None:
    values = json.loads(json.dumps(asdict(preset(name))))
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
        ("[training]\nbatch_size = 1\n", "batch_size of 2 to 65536, found 1"),
        (
            "[training]\nmax_learning_rate = nan\n",
            "finite number for max_learning_rate, such as 0.002, found nan",
        ),
        ("[augmentation]\nrotate = 1\n", "expected a bool"),
        ("training = 3\n", "training: expected a TrainingConfig"),
        ("[network]\nhead = 'bingham'\n", "head: expected one of quaternion, gram_schmidt, qcqp"),
        ("[network]\nbackbone = 'resnet'\n", "expected one of residual, vgg"),
        ("[network]\nwidths = 8\n", "expected a tuple"),
        ("[network]\nwidths = ['a']\n", "expected a tuple"),
        ("[network]\nwidths = []\n", "widths of 1 to 4096"),
        ("[network]\nwidths = [8, 8, 8, 8, 8, 8, 8]\n", "at most 6 widths for backbone residual"),
        (
            "[network]\nwidths = [8, 8]\n[preprocessing]\nbox = 66\n",
            "a box divisible by 4 for 2 widths, found 66",
        ),
        ("[network]\nstem_stride = 3\n", "stem_stride of 1, 2 or 4, found 3"),
        ("[network]\ndepth = 0\n", "depth of 1 to 64, found 0"),
        ("[network]\nhead_nside = 9\n", "head_nside of 1 to 8, found 9"),
        ("[augmentation]\nnoise = -1.0\n", "noise of 0 or more, found -1.0"),
        ("[augmentation]\nsimulated_share = 1.5\n", "simulated_share of 1 or less, found 1.5"),
        ("[training]\npairs = 'some'\n", "pairs: expected one of all, random, stratified, found 'some'"),
        ("[training]\ncurriculum_exponent = 0\n", "curriculum_exponent above 0, found 0.0"),
        ("symmetry_handling = 'both'\n", "symmetry_handling: expected one of group, domain"),
        ("[network]\ndegree = 0\n", "degree of 1 or more, found 0"),
        ("[network]\ndropout = 1.0\n", "below 1, found 1.0"),
        ("symmetry = 'D2h'\n", "expected a point group out of C1 to C99, D1 to D99, T, O, I, I1, I2, I3, I4"),
        ("symmetry = 'D8'\n", "degree of 8 or more for symmetry D8, found 6"),
        ("symmetry = 2\n", "symmetry: expected a str such as 'C1', found 2"),
        ("[preprocessing]\nbox = 63\n", "an even box of 8 to 1024, found 63"),
        ("[preprocessing]\nmask_inner = 1.0\n", "mask_inner < mask_outer"),
        ("[training\n", "expected a TOML file"),
        ("\x00", "expected a TOML file"),
    ],
)
def test_what_is_wrong_is_named_with_its_file(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ValueError) as refusal:
        read_config(written(tmp_path, text), Config())
    assert words in str(refusal.value) and "config.toml" in str(refusal.value)


def test_settings_change_what_they_name() -> None:
    settings = (
        "network.pooling=gem",
        'network.blur = "gaussian"',
        "network.widths=[8, 16]",
        "network.depth=2",
        "training.max_learning_rate=1e-3",
        "training.weight_decay=1",
        "augmentation.rotate=false",
        "symmetry=D2",
    )
    config = with_settings(Config(), settings)
    network, training = config.network, config.training
    assert (network.pooling, network.blur, network.widths, network.depth) == ("gem", "gaussian", (8, 16), 2)
    assert (training.max_learning_rate, training.weight_decay) == (1e-3, 1.0)
    assert type(training.weight_decay) is float
    assert config.augmentation.rotate is False and config.symmetry == "D2"
    assert network.head == Config().network.head and config.preprocessing == Config().preprocessing
    assert with_settings(Config(), ()) == Config()
    assert with_settings(Config(), ("network.depth=2", "network.depth=3")).network.depth == 3


def test_settings_that_are_only_together_right_may_come_in_any_order() -> None:
    settings = ["network.widths=[4, 4, 4, 4, 4, 4, 4, 4]", "network.backbone=vgg", "preprocessing.box=66"]
    for order in (settings, settings[::-1]):
        assert with_settings(Config(), order).network.backbone == "vgg"


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        (
            "network.pooling",
            "expected --set TABLE.NAME=VALUE, as network.pooling=gem, found 'network.pooling'",
        ),
        ("=gem", "expected --set TABLE.NAME=VALUE"),
        ("network.=gem", "expected --set TABLE.NAME=VALUE"),
        ("network.head.size=3", "expected --set TABLE.NAME=VALUE"),
        ("network.poling=gem", "found 'poling'"),
        ("net.pooling=gem", "found 'net'"),
        ("pooling=gem", "found 'pooling'"),
        ("network=gem", "network: expected a NetworkConfig"),
        ("network.pooling=jam", "pooling: expected one of flatten, max, max_average, gem, found 'jam'"),
        ("network.pooling=", "found ''"),
        ("network.depth=two", "depth: expected a int such as 1, found 'two'"),
        ("network.depth=1.5", "found 1.5"),
        ("augmentation.rotate=no", "rotate: expected a bool such as True, found 'no'"),
        ("training.batch_size=1", "batch_size of 2 to 65536, found 1"),
        ("symmetry=D2h", "expected a point group"),
    ],
)
def test_settings_that_are_wrong_are_refused_in_one_line(setting: str, words: str) -> None:
    with pytest.raises(ValueError) as refusal:
        with_settings(Config(), [setting])
    assert words in str(refusal.value) and "--set" in str(refusal.value) and "\n" not in str(refusal.value)


@pytest.mark.parametrize("second", ["network.depth=2", "symmetry.order=2"])
def test_a_value_is_no_table(second: str) -> None:
    with pytest.raises(ValueError, match="--set"):
        with_settings(Config(), ["network=3", "symmetry=C2", second])


def test_a_file_changes_the_preset_and_settings_change_the_file(tmp_path: Path) -> None:
    file = written(
        tmp_path, "symmetry = 'C2'\n[network]\ndegree = 4\ndepth = 2\n[training]\nbatch_size = 8\n"
    )
    assert chosen_config("tiny") == preset("tiny")
    assert chosen_config("tiny", file) == read_config(file, preset("tiny"))
    config = chosen_config("tiny", file, ["network.degree=2", "symmetry=C1"], "O")
    assert config.network.widths == preset("tiny").network.widths
    assert (config.network.depth, config.training.batch_size) == (2, 8)
    assert config.symmetry == "O" and config.network.degree == 4  # the least for O, after degree=2 of --set
    assert chosen_config("tiny", file, ["network.degree=2"]).symmetry == "C2"


def test_in_one_domain_the_network_knows_of_no_symmetry() -> None:
    with pytest.raises(ValueError, match="degree of 8 or more for symmetry D8"):
        with_settings(Config(), ["symmetry=D8"])
    config = with_settings(Config(), ["symmetry=D8", "symmetry_handling=domain"])
    assert config.learned_symmetry == "C1" and config.symmetry == "D8"
    assert with_settings(Config(), ["symmetry=D2"]).learned_symmetry == "D2"


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
    assert updated(Config(), asdict(octahedral), where="model.json") == octahedral
    assert with_symmetry(preset("paper"), "I1").symmetry == "I1"
    with pytest.raises(ValueError, match="found 'D2h'"):
        with_symmetry(Config(), "D2h")


def test_models_made_before_there_was_symmetry_have_none() -> None:
    values = asdict(Config())
    del values["symmetry"]
    assert updated(Config(), values, where="model.json").symmetry == "C1"
