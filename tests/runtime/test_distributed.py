"""Several processes that train as one: step by step what a single process does, and clear ends.

Two processes on one machine, without a GPU; see `shared_trainings` for what they train.
"""

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import shared_trainings
from helpers.shared_trainings import STEPS, TRAININGS, first_steps, some_particles
from torch import Tensor
from typer.testing import CliRunner

from cryoforum.cli import app
from cryoforum.dataset.split import Split
from cryoforum.io.mrc.stacks import write_stack
from cryoforum.io.relion.particles import table_from_particles
from cryoforum.io.relion.star_files import write_star
from cryoforum.network.model import TrainedModel
from cryoforum.network.model_folder import load_model
from cryoforum.runtime import distributed as processes
from cryoforum.runtime.devices import Compute
from cryoforum.runtime.distributed import (
    first_host,
    own_share,
    process_rank_and_count,
    rank_on_machine,
    start_processes,
)
from cryoforum.training import trainer
from cryoforum.training.data import training_data

SOURCES = Path(processes.__file__).parents[2]
LAUNCHERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "SLURM_STEP_NUM_TASKS")
# The command line, with a state after every step.
CHILD = """
import os, sys
from cryoforum.training import loop as training
from cryoforum.training.trainer import Trainer
training.STATE_INTERVAL_SECONDS = 0.0
{changes}
from cryoforum.cli import app
app(sys.argv[1:])
"""


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in LAUNCHERS:
        monkeypatch.delenv(name, raising=False)


def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in LAUNCHERS}
    paths = os.pathsep.join([str(SOURCES), str(Path(__file__).parents[1])])
    return kept | {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths} | more


def free_port() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])


@pytest.fixture(scope="module")
def found_by_two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What either of two processes found that Slurm has started, or rather somebody who says so."""
    out = tmp_path_factory.mktemp("two") / "found"
    step = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NODELIST": "localhost", "MASTER_PORT": free_port()}
    running = [
        subprocess.Popen(
            [sys.executable, shared_trainings.__file__, str(out)],
            env=environment(SLURM_PROCID=rank, SLURM_LOCALID=rank, **step),
        )
        for rank in "01"
    ]
    assert [process.wait(300) for process in running] == [0, 0]
    return [torch.load(f"{out}-{rank}.pt") for rank in (0, 1)]


@pytest.mark.parametrize("name", list(TRAININGS))
def test_two_processes_take_the_steps_of_one(
    name: str, found_by_two: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "GRADIENT_NORM_LIMIT", float("inf"))
    one, (first, second) = first_steps(TRAININGS[name]), (found[name] for found in found_by_two)
    assert first["losses"] == pytest.approx(one["losses"], abs=1e-5)
    torch.testing.assert_close(first["validation"], one["validation"], atol=1e-4, rtol=0, equal_nan=True)
    assert first["losses"] == second["losses"] and torch.equal(first["validation"], second["validation"])
    for step in range(STEPS):
        for got, expected in zip(first["gradients"][step], one["gradients"][step], strict=True):
            torch.testing.assert_close(got, expected, rtol=0, atol=3e-4 * float(expected.abs().max()) + 1e-6)
        for got, expected in zip(first["statistics"][step], one["statistics"][step], strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
    for key, expected in one["weights"].items():
        assert torch.equal(first["weights"][key], second["weights"][key])
        if name == "likelihood" and key.startswith("dense"):
            # The constant in a log density is without effect: its gradient is rounding, which Adam takes to 1.
            expected, first["weights"][key] = expected[:-1], first["weights"][key][:-1]
        torch.testing.assert_close(first["weights"][key], expected, rtol=0, atol=1e-5)


def test_gradients_are_large_enough_to_tell(found_by_two: list[dict[str, Any]]) -> None:
    """A wrong factor, such as 2, would be far above the tolerances of the test before."""
    for name in TRAININGS:
        for gradients in found_by_two[0][name]["gradients"]:
            assert float(torch.stack([one.norm() for one in gradients]).norm()) > 0.5


def test_processes_stop_together_though_their_clocks_differ(found_by_two: list[dict[str, Any]]) -> None:
    first, second = (found["log by the clock"] for found in found_by_two)
    assert first == second and len(first) > 1
    assert first[-1]["seconds"] >= 0.5


def test_processes_with_different_tasks_do_not_begin(found_by_two: list[dict[str, Any]]) -> None:
    for found in found_by_two:
        assert found["refused"].startswith("expected one command in all processes, found different ones")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("distributed")
    particles, _ = some_particles()
    images = particles.images[torch.arange(len(particles))]
    write_stack(folder / "particles.mrcs", [images], len(images), 32, particles.pixel_size_angstrom)
    write_star(table_from_particles(particles, particles.names), folder / "particles.star")
    return folder


SETTINGS = (
    "network.widths=[8, 16]",
    "network.degree=2",
    "preprocessing.box=16",
    "augmentation.simulated_share=0.5",
    "training.batch_size=12",
    "training.image_passes=120",
    "training.max_learning_rate=1e-4",
)


def command(folder: Path, out: Path, *options: object) -> list[str]:
    settings = [word for setting in SETTINGS for word in ("--set", setting)]
    arguments = ("train", folder / "particles.star", "--out", out, "--preset", "tiny", *settings, *options)
    return [str(argument) for argument in arguments]


def run_two(script: Path, arguments: list[str]) -> tuple[list[int], list[str], list[str]]:
    """Exit codes, output and errors of two processes that nobody looks after."""
    group = environment(WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=free_port())
    running = [
        subprocess.Popen(
            [sys.executable, str(script), *arguments],
            env=group | {"RANK": rank, "LOCAL_RANK": rank},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in "01"
    ]
    said = [process.communicate(timeout=300) for process in running]
    return [p.returncode for p in running], [out for out, _ in said], [err for _, err in said]


def weights(model: TrainedModel) -> dict[str, Tensor]:
    return {k: v for k, v in model.network.state_dict().items() if not k.startswith("dense")}


def test_a_kill_ends_all_and_two_resume_to_the_model_of_one(folder: Path, tmp_path: Path) -> None:
    alone = CliRunner().invoke(app, command(folder, tmp_path / "one"))
    assert alone.exit_code == 0, alone.output

    script, out = tmp_path / "child.py", tmp_path / "two"
    killing = (
        "step = Trainer.step\n"
        "def killing(self, *arguments):\n"
        "    if self.history.steps == 4 and os.environ['RANK'] == '1': os._exit(9)\n"
        "    return step(self, *arguments)\n"
        "Trainer.step = killing"
    )
    script.write_text(CHILD.format(changes=killing))
    codes, _, errors = run_two(script, command(folder, out))
    assert codes == [1, 9]
    (line,) = (line for line in errors[0].splitlines() if "Error" in line)
    assert (
        line.startswith("Error: expected all 2 processes to come this far") and "Traceback" not in errors[0]
    )
    assert [path.name for path in out.iterdir()] == ["state.pt"]

    script.write_text(CHILD.format(changes=""))
    codes, said, errors = run_two(script, command(folder, out, "--resume"))
    assert codes == [0, 0], errors
    assert said[0].startswith(f"model in {out}") and said[1] == errors[1] == ""
    assert {path.name for path in out.iterdir()} == {path.name for path in (tmp_path / "one").iterdir()}
    one, two = load_model(tmp_path / "one"), load_model(out)
    assert [line["step"] for line in two.log] == [line["step"] for line in one.log]
    assert two.validation_median_rad == pytest.approx(one.validation_median_rad, abs=1e-3)
    for name, tensor in weights(one).items():
        torch.testing.assert_close(weights(two)[name], tensor, rtol=1e-4, atol=1e-5)


def test_one_option_runs_the_command_in_several_processes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[tuple[int, list[str]]] = []

    def start(count: int, arguments: list[str]) -> int:
        started.append((count, arguments))
        return 7

    arguments = command(folder, tmp_path / "model", "--devices", 2)
    monkeypatch.setattr(processes, "start_processes", start)
    monkeypatch.setattr(sys, "argv", ["cryoforum", *arguments])
    assert CliRunner().invoke(app, arguments).exit_code == 7
    assert started == [(2, arguments)] and not (tmp_path / "model").exists()


def pretend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: str, second: str) -> None:
    """Let what is started in place of the command do this in either process."""
    package = tmp_path / "cryoforum"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(
        f"import os, signal, sys, time\nif os.environ['RANK'] == '0':\n    {first}\nelse:\n    {second}\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


def test_all_started_processes_get_the_arguments_and_a_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = "'RANK', 'LOCAL_RANK', 'WORLD_SIZE', 'LOCAL_WORLD_SIZE', 'GLOO_SOCKET_IFNAME'"
    note = f"open(sys.argv[1] + os.environ['RANK'], 'w').write(' '.join(map(os.getenv, ({names}))))"
    pretend(tmp_path, monkeypatch, note, note)
    assert start_processes(2, [str(tmp_path / "out")]) == 0
    assert [(tmp_path / f"out{rank}").read_text() for rank in "01"] == [
        "0 0 2 2 lo",
        "1 1 2 2 lo",
    ]


def test_started_processes_meet_in_a_private_folder_that_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    note = "open(sys.argv[1] + os.environ['RANK'], 'w').write(os.environ['CRYOFORUM_MEETING'])"
    pretend(tmp_path, monkeypatch, note, note)
    assert start_processes(2, [str(tmp_path / "out")]) == 0
    places = {(tmp_path / f"out{rank}").read_text() for rank in "01"}
    (place,) = (Path(place.removeprefix("file://")) for place in places)
    assert place.is_absolute() and not place.parent.exists()


@pytest.mark.parametrize("waiting", [0, 1])
def test_where_one_fails_the_others_do_not_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, waiting: int
) -> None:
    sleep = "open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep(600)"
    doing = [
        f"while not os.path.exists(sys.argv[1]): time.sleep(0.01)\n    {how}" for how in ("sys.exit(3)",) * 2
    ]
    doing[waiting] = sleep
    pretend(tmp_path, monkeypatch, *doing)
    assert start_processes(2, [str(tmp_path / "pid")]) == 3
    assert_ended(tmp_path / "pid")


def test_a_process_killed_from_outside_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sleep = "open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep(600)"
    kill = "while not os.path.exists(sys.argv[1]): time.sleep(0.01)\n    os.kill(os.getpid(), signal.SIGKILL)"
    pretend(tmp_path, monkeypatch, sleep, kill)
    with pytest.raises(ValueError, match=r"process 2 of 2 was ended from outside \(signal 9; .*--resume"):
        start_processes(2, [str(tmp_path / "pid")])
    assert_ended(tmp_path / "pid")


def assert_ended(written: Path) -> None:
    with pytest.raises(ProcessLookupError):
        os.kill(int(written.read_text()), 0)


def test_more_devices_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match="--devices of at most 1, the GPUs of this machine, found 2"):
        start_processes(2, [])


def test_devices_must_be_those_that_were_started(folder: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("RANK", "0")
    result = CliRunner().invoke(app, command(folder, tmp_path / "model", "--devices", 2))
    assert result.exit_code == 1 and "no --devices where 3 processes were started, found 2" in result.stderr


@pytest.mark.parametrize(("name", "count", "images"), [("likelihood", 5, 12), ("all pairs", 7, 12)])
def test_a_batch_that_cannot_be_shared_is_refused(
    name: str, count: int, images: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    particles, reference = some_particles()
    monkeypatch.setenv("WORLD_SIZE", str(count))
    split = Split(torch.arange(20), torch.arange(20), torch.arange(0))
    expected = f"batches that {count} processes can share evenly, found {images} images"
    with pytest.raises(ValueError, match=expected):
        training_data(particles, TRAININGS[name], split, Compute(), reference=reference)


@pytest.mark.parametrize(
    ("variables", "place"),
    [
        ({}, (0, 1, 0)),
        ({"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}, (5, 8, 1)),
        ({"SLURM_PROCID": "6", "SLURM_STEP_NUM_TASKS": "8", "SLURM_LOCALID": "2"}, (6, 8, 2)),
        # torchrun that srun has started, and a batch script that has not come to srun yet
        (
            {
                "RANK": "1",
                "WORLD_SIZE": "4",
                "LOCAL_RANK": "1",
                "SLURM_PROCID": "0",
                "SLURM_STEP_NUM_TASKS": "1",
            },
            (1, 4, 1),
        ),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_LOCALID": "0"}, (0, 1, 0)),
    ],
)
def test_a_process_knows_its_place_from_whoever_started_it(
    variables: dict[str, str], place: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert (*process_rank_and_count(), rank_on_machine()) == place


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_shares_hold_every_row_once(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", str(count))
    rows, shares = torch.arange(20), []
    for rank in range(count):
        monkeypatch.setenv("RANK", str(rank))
        shares.append(rows[own_share()])
    assert torch.cat(shares).sort().values.tolist() == rows.tolist()
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize(
    ("hosts", "first"),
    [
        ("gpu03", "gpu03"),
        ("gpu-a,gpu-b", "gpu-a"),
        ("gpu[03-05,9],cpu1", "gpu03"),
        ("rack1-node[7,9-11]-ib", "rack1-node7-ib"),
    ],
)
def test_processes_of_slurm_meet_on_the_first_machine(hosts: str, first: str) -> None:
    assert first_host(hosts) == first


def test_the_package_is_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "cryoforum", "train", "--help"],
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and "cryoforum train" in done.stdout
