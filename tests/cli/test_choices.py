"""Every choice that is made by name: listed by --help, and by the refusal of any other word."""

from pathlib import Path
from typing import Any, get_args

import pytest
from helpers.untyped import untyped
from typer.testing import CliRunner, Result

from cryoforum import choices
from cryoforum.alignment.config import AlignmentConfig
from cryoforum.cli import app
from cryoforum.commands.convert import ConvertRequest
from cryoforum.commands.filter import FilterRequest
from cryoforum.commands.pose_files import PoseOutput
from cryoforum.commands.predict_request import PredictRequest
from cryoforum.config import preset
from cryoforum.errors import InputError

OUT = ("--out", "out")
# Command, option, its choices, and the other words that the command needs; STUDY is an argument.
CHOICES: list[tuple[str, str, Any, tuple[str, ...]]] = [
    ("predict", "--candidates", choices.CandidateSource, ("model", "a.star", *OUT)),
    ("predict", "--half-maps", choices.HalfMapsChoice, ("model", "a.star", *OUT)),
    ("predict", "--part", choices.SplitPart, ("model", "a.star", *OUT)),
    ("predict", "--tta", choices.TtaCopies, ("model", "a.star", *OUT)),
    ("predict", "--precision", choices.Precision, ("model", "a.star", *OUT)),
    ("train", "--precision", choices.Precision, ("a.star", *OUT)),
    ("find-rate", "--precision", choices.Precision, ("a.star",)),
    ("filter", "--by", choices.CertaintyStatistic, ("a.star", *OUT)),
    ("simulate", "--orientations", choices.Orientations, OUT),
    ("convert", "--relion", choices.RelionDialect, ("a.cs", *OUT)),
    ("train", "--preset", choices.PresetName, ("a.star", *OUT)),
    ("find-rate", "--preset", choices.PresetName, ("a.star",)),
    ("demo", "--preset", choices.PresetName, OUT),
    ("study", "STUDY", choices.StudyName, OUT),
    ("study", "--scale", choices.StudyScale, ("all", *OUT)),
    ("relion-job", "--action", choices.RelionAction, ("--o", "out")),
]
IDS = [f"{command} {option}" for command, option, *_ in CHOICES]


def invoke(*words: str) -> Result:
    return CliRunner().invoke(app, words, env={"COLUMNS": "250"})


def test_all_choices_of_the_package_are_here() -> None:
    known = {kind for kind in vars(choices).values() if get_args(kind)}
    assert known == {kind for _, _, kind, _ in CHOICES}


@pytest.mark.parametrize(("command", "option", "kind", "others"), CHOICES, ids=IDS)
def test_help_lists_every_choice(command: str, option: str, kind: Any, others: tuple[str, ...]) -> None:
    lines = [line for line in invoke(command, "--help").output.splitlines() if option in line]
    assert any(all(word in line for word in get_args(kind)) for line in lines), lines


@pytest.mark.parametrize("word", ["other", ""])
@pytest.mark.parametrize(("command", "option", "kind", "others"), CHOICES, ids=IDS)
def test_any_other_word_is_refused_before_any_work(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    option: str,
    kind: Any,
    others: tuple[str, ...],
    word: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    result = invoke(command, *others, *((option,) if option.startswith("-") else ()), word)
    assert f"'{word}'" in result.stderr and option in result.stderr and "Traceback" not in result.output
    assert all(choice in result.stderr for choice in get_args(kind))
    if command == "relion-job":  # RELION waits for a marker, whatever went wrong
        assert result.exit_code == 1
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["RELION_JOB_EXIT_FAILURE"]
    else:
        assert result.exit_code == 2 and not list(tmp_path.iterdir())


def test_any_other_word_is_refused_from_python() -> None:
    with pytest.raises(InputError, match="expected candidates from network, search, both, found 'guesses'"):
        AlignmentConfig(untyped("guesses"))
    with pytest.raises(InputError, match="1, 4, 8 copies, found 3"):
        AlignmentConfig(tta=3)
    with pytest.raises(InputError, match=r"3.0, 3.1, found '4'"):
        ConvertRequest([Path("a.cs")], Path("a.star"), untyped("4"))
    with pytest.raises(InputError, match="part from train, validation, test, found 'rest'"):
        PredictRequest(Path("model"), [], PoseOutput(Path("b.star")), part=untyped("rest"))
    with pytest.raises(InputError, match="error or trace or max or gap, found 'luck'"):
        FilterRequest(Path("a.star"), Path("b.star"), by=untyped("luck"))
    with pytest.raises(InputError, match="tiny, small, paper, expedited"):
        preset("huge")
