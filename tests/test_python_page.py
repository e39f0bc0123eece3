"""docs/python.md runs from top to bottom, and what it shows is true."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.children import environment

from cryoforum.geometry.rotations import geodesic_distance

PAGE = Path(__file__).resolve().parents[1] / "docs" / "python.md"


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """All names after the last block."""
    names: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("python"))
        text = PAGE.read_text()
        for match in re.finditer(r"```python\n(.*?)```", text, re.DOTALL):
            line = text[: match.start(1)].count("\n")
            exec(compile("\n" * line + match[1], str(PAGE), "exec"), names)
    return names


def test_what_the_page_finds_is_near_the_truth(known: dict[str, Any]) -> None:
    for found in (known["found"], known["refined"], known["again"]):
        assert float(found.poses.errors(known["truth"]).median()) < 0.06
    assert (known["found"].evidence.log_likelihood_gain > 0).float().mean() > 0.9
    error = known["table"]["cryoforumErrorDeg"]
    assert 0.4 < (error / known["table"]["cryoforumExpectedErrorDeg"]).median() < 1.6
    assert float((known["back"].voxels - known["volume"].voxels).std() / known["volume"].voxels.std()) < 0.5


def test_what_the_page_says_of_shapes_and_certainty_is_so(known: dict[str, Any]) -> None:
    assert repr(known["particles"]) in PAGE.read_text()
    for name, shape in re.findall(r"^(\w+) = .*# (\(\d+, [^)]*\)|\(\d+,\))", PAGE.read_text(), re.MULTILINE):
        assert str(tuple(known[name].shape)) == shape, name
    angles = geodesic_distance(known["draws"], known["posterior"].mode[:, None])
    inside = (angles <= known["inside"][:, None]).float().mean()
    assert float(inside) == pytest.approx(0.95, abs=0.02)
    assert torch.isfinite(known["density"]).all() and known["shifts"].grad.abs().min() > 0


def test_the_example_script_runs() -> None:
    script = Path(__file__).resolve().parents[1] / "scripts" / "example.py"
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, env=environment(1))
    assert done.returncode == 0, done.stderr
    assert "torch.Size([20, 32, 32])" in done.stdout and "cryoforumErrorDeg" in done.stdout
