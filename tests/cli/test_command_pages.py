"""The pages of docs/commands say what `--help` says."""

import runpy
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


def test_the_pages_are_those_that_the_script_writes() -> None:
    script = runpy.run_path(str(REPOSITORY / "scripts" / "command_pages.py"))
    written = {path.name: path.read_text() for path in (REPOSITORY / "docs" / "commands").glob("*.md")}
    assert written == script["pages"](), "run: python scripts/command_pages.py"
