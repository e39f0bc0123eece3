"""What the library says goes through logging; the command line shows it, and errors in one line or in full."""

import ast
import logging
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.children import environment
from helpers.cryosparc_records import refined, write
from helpers.messages import messages
from typer.testing import CliRunner

import cryoforum
from cryoforum.cli import app
from cryoforum.cli.terminal import running
from cryoforum.commands import filter as filtering
from cryoforum.commands.convert import ConvertRequest, convert
from cryoforum.errors import InputError

LOST = "not written, as RELION counts it otherwise: ctf/tilt_A; estimate it there again"
MAIN = "from cryoforum.cli import main; main()"
BUG = "import cryoforum.commands.compare as c\ndef broken(*a): raise ValueError('a mistake')\nc.compare = broken\n"


@pytest.fixture
def request_that_loses(tmp_path: Path) -> ConvertRequest:
    """Of a file with a field that the output cannot hold, which is worth a message."""
    return ConvertRequest([write(tmp_path / "a.cs", refined())], tmp_path / "a.star")


def test_a_message_reaches_the_handlers_of_the_callers_and_nothing_is_printed(
    request_that_loses: ConvertRequest, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with messages() as told:
        convert(request_that_loses)
    assert LOST in told
    (record,) = (record for record in caplog.records if record.getMessage() == LOST)  # the root's handler
    assert record.name == "cryoforum.commands.convert" and record.levelno == logging.WARNING
    assert capfd.readouterr() == ("", "")


def test_the_command_line_shows_messages_and_leaves_the_log_as_it_was(
    request_that_loses: ConvertRequest,
) -> None:
    logger = logging.getLogger("cryoforum")
    before = logger.level, list(logger.handlers)
    (source,), out = request_that_loses.inputs, request_that_loses.out
    result = CliRunner().invoke(app, ["convert", str(source), "--out", str(out)])
    assert result.exit_code == 0 and result.stderr.splitlines().count(LOST) == 1
    assert "ctf/tilt_A" not in result.stdout
    assert (logger.level, logger.handlers) == before


def test_a_message_may_be_shown_once_however_often_it_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("cryoforum.somewhere")
    for each_once, count in ((True, 1), (False, 2)):
        with running(each_message_once=each_once):
            logger.info("again")
            logger.info("again")
        assert capsys.readouterr().err.splitlines().count("again") == count


def started(*arguments: str, before: str = "") -> tuple[int, str]:
    """Exit code and standard error of the installed command, after ``before``."""
    command = [sys.executable, "-c", before + MAIN, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment())
    return done.returncode, done.stderr


def test_bad_input_is_one_line_and_a_traceback_where_that_is_wanted(tmp_path: Path) -> None:
    missing = str(tmp_path / "none.star")
    line = f"STAR file {missing} not found\n"
    result = CliRunner().invoke(app, ["compare", missing, missing])
    assert (result.exit_code, result.stderr) == (1, f"Error: {line}")
    code, said = started("--debug", "compare", missing, missing)
    assert code == 1 and said.startswith("Traceback (most recent call last):")
    assert said.endswith(f"cryoforum.errors.InputError: {line}") and "Error: STAR" not in said.splitlines()


def test_a_bug_keeps_its_traceback_even_if_it_is_a_value_error() -> None:
    code, said = started("compare", "a.star", "b.star", before=BUG)
    assert code == 1 and said.startswith("Traceback (most recent call last):")
    assert said.endswith("ValueError: a mistake\n")
    assert not [line for line in said.splitlines() if line.startswith("Error: ")]


@pytest.mark.parametrize("kind", [ValueError, AttributeError, AssertionError])
def test_our_own_mistakes_are_not_dressed_as_bad_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[Exception]
) -> None:
    def broken(*arguments: object) -> None:
        raise kind("a mistake")

    path = write(tmp_path / "a.cs", refined() | {"cryoforum/Trace": np.arange(6, dtype="<f4")})
    monkeypatch.setattr(filtering, "select", broken)
    result = CliRunner().invoke(app, ["filter", str(path), "--out", str(tmp_path / "kept.cs")])
    assert type(result.exception) is kind and result.exit_code == 1 and "Error:" not in result.stderr


def test_debug_holds_for_one_command_and_for_the_one_inside_a_relion_job(tmp_path: Path) -> None:
    job = ["relion-job", "--o", str(tmp_path / "job"), "--in_parts", str(tmp_path / "none.star")]
    job += ["--action", "filter"]
    for debug in (True, False):
        result = CliRunner().invoke(app, [*["--debug"][: int(debug)], *job])
        assert isinstance(result.exception, InputError if debug else SystemExit)
        assert result.exit_code == 1 and ("Error: " in result.stderr) == (not debug)
        assert (tmp_path / "job" / "RELION_JOB_EXIT_FAILURE").exists()


def texts_of_the_package() -> list[str]:
    """All strings in its sources, f-strings piece by piece."""
    sources = (ast.parse(path.read_text()) for path in Path(cryoforum.__file__).parent.rglob("*.py"))
    nodes = (node for source in sources for node in ast.walk(source) if isinstance(node, ast.Constant))
    return [node.value for node in nodes if isinstance(node.value, str)]


def test_messages_name_only_commands_and_options_that_exist() -> None:
    help_of = {"": CliRunner().invoke(app, ["--help"]).output}
    help_of |= {name: CliRunner().invoke(app, [name, "--help"]).output for name in commands()}
    options = {option for text in help_of.values() for option in re.findall(r"--[\w-]+", text)}
    of_others = {"--assembly", "--i", "--multiply_constant", "--scratch_dir"}  # of gemmi and RELION
    of_others |= {"--in_mics", "--in_movies", "--in_coords", "--max_minutes"}  # of a job's form in RELION
    texts = texts_of_the_package()
    named = {command for text in texts for command in re.findall(r"cryoforum ([a-z][a-z-]+)", text)}
    assert named - set(help_of) == set()
    assert {option for text in texts for option in re.findall(r"--[a-z][\w-]*", text)} - options == of_others


def commands() -> list[str]:
    return [
        command.name or command.callback.__name__.strip("_").replace("_", "-")
        for command in app.registered_commands
    ]
