"""Training as a process that is killed from outside: resumed, it ends with the model of an undisturbed one."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

from cryoforum.commands.simulate import SimulateRequest, simulate
from cryoforum.network.model_folder import load_model
from cryoforum.simulation.config import SimulationConfig
from cryoforum.training import loop

STEPS = 100
# One thread, a state after every step, and steps slow enough to be hit.
CHILD = """
import sys, time
import torch
torch.set_num_threads(1)
from cryoforum.training import loop as training
training.STATE_INTERVAL_SECONDS = 0.0
from cryoforum.training.trainer import Trainer
step = Trainer.step
Trainer.step = lambda *arguments: time.sleep(0.02) or step(*arguments)
from cryoforum.cli import app
app(sys.argv[1:])
"""
SETTINGS = f"""
[training]
image_passes = {16 * STEPS}
batch_size = 16
grid_nside = 2
grid_count = 2
[network]
widths = [4, 8]
degree = 2
"""


def start(folder: Path, out: Path, *options: str) -> subprocess.Popen[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(loop.__file__).parents[2])}
    arguments = ["train", folder / "set" / "particles.star", "--out", out, "--preset", "tiny"]
    arguments += ["--config", folder / "settings.toml", *options]
    return subprocess.Popen(
        [sys.executable, folder / "child.py", *arguments], env=environment, stderr=subprocess.PIPE, text=True
    )


def test_a_training_killed_again_and_again_gives_the_model_of_an_undisturbed_one(tmp_path: Path) -> None:
    (tmp_path / "child.py").write_text(CHILD)
    (tmp_path / "settings.toml").write_text(SETTINGS)
    config = SimulationConfig(count=60, snr=5.0)
    simulate(SimulateRequest(tmp_path / "set", "4v5d", 32, 11.2, config))
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    peaceful = start(tmp_path, undisturbed)
    state, options = killed / "state.pt", ()
    steps = []
    for _ in range(2):
        running, begun = start(tmp_path, killed, *options), time.time()
        while running.poll() is None and not (state.exists() and state.stat().st_mtime > begun):
            time.sleep(0.005)
        time.sleep(random.uniform(0, 0.5))
        running.kill()
        assert running.wait() == -signal.SIGKILL
        steps.append(torch.load(state, weights_only=True)["history"]["steps"])
        options = ("--resume",)
    assert 0 < steps[0] < steps[1] < STEPS
    for process in (peaceful, start(tmp_path, killed, "--resume")):
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    expected, found = (load_file(folder / "weights.safetensors") for folder in (undisturbed, killed))
    assert expected.keys() == found.keys()
    assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())
    logs = [[line["step"] for line in load_model(folder).log] for folder in (undisturbed, killed)]
    assert logs[0] == logs[1]
    assert sorted(path.name for path in killed.iterdir()) == sorted(
        path.name for path in undisturbed.iterdir()
    )
