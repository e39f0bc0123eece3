"""Device and precision: a fixed rule, or what was asked for, or a refusal that says what there is."""

import pytest
import torch

from cryoforum.runtime.devices import CPU, Compute, compute_for
from cryoforum.runtime.random_streams import RandomStream

GPU = torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORLD_SIZE", "LOCAL_RANK", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"):
        monkeypatch.delenv(name, raising=False)


def pretend(monkeypatch: pytest.MonkeyPatch, gpus: int, bfloat16: bool = True, mps: bool = False) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0) if bfloat16 else (7, 5))
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)


@pytest.mark.parametrize("mps", [False, True])
def test_without_a_gpu_it_is_the_cpu_in_float32(monkeypatch: pytest.MonkeyPatch, mps: bool) -> None:
    pretend(monkeypatch, gpus=0, mps=mps)
    assert compute_for() == Compute(CPU, "float32") == Compute()
    assert str(compute_for()) == "cpu, float32"
    assert compute_for().dtype == torch.float32


@pytest.mark.parametrize(("bfloat16", "expected"), [(True, "bfloat16"), (False, "float32")])
def test_a_gpu_is_used_where_there_is_one(
    monkeypatch: pytest.MonkeyPatch, bfloat16: bool, expected: str
) -> None:
    pretend(monkeypatch, gpus=2, bfloat16=bfloat16)
    assert compute_for() == compute_for("cuda") == Compute(GPU, expected)
    assert str(compute_for("cuda:1")) == f"cuda:1, {expected}"
    assert compute_for("cpu") == Compute(CPU, "float32")
    assert compute_for("auto", "float32") == Compute(GPU, "float32")


def test_what_is_asked_for_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, gpus=0, mps=True)
    assert compute_for("cpu", "bfloat16").dtype == torch.bfloat16
    assert str(compute_for("mps")) == "mps, float32"
    weights = torch.ones(3, 3)
    for precision, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        with compute_for("cpu", precision).autocast():
            assert (weights @ weights).dtype == dtype


@pytest.mark.parametrize(
    ("device", "precision", "words"),
    [
        ("gpu", "auto", "out of auto, cpu, cuda, cuda:0, cuda:1 on this machine, found 'gpu'"),
        ("cuda:2", "auto", "on this machine, found 'cuda:2'"),
        ("mps", "auto", "on this machine, found 'mps'"),
        ("cpu", "float16", "a precision out of auto, float32, bfloat16, found 'float16'"),
        ("cuda", "bfloat16", "expected precision float32, as device cuda:0 has no bfloat16"),
    ],
)
def test_other_words_and_missing_devices_are_refused(
    monkeypatch: pytest.MonkeyPatch, device: str, precision: str, words: str
) -> None:
    pretend(monkeypatch, gpus=2, bfloat16=False)
    with pytest.raises(ValueError) as refusal:
        compute_for(device, precision)
    assert words in str(refusal.value)


def test_each_of_several_processes_takes_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, gpus=2)
    monkeypatch.setenv("WORLD_SIZE", "3")
    found = []
    for rank in "012":
        monkeypatch.setenv("LOCAL_RANK", rank)
        found.append(compute_for().device.index)
    assert found == [0, 1, 0]
    with pytest.raises(ValueError, match="each of several processes has its own, found 'cuda:1'"):
        compute_for("cuda:1")


def test_a_stream_gives_the_numbers_of_its_seed_and_leaves_the_callers_alone() -> None:
    before = torch.get_rng_state()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        expected = torch.rand(6)
    stream = RandomStream(3, CPU)
    with stream.drawn_from():
        first = torch.rand(2)
    kept = stream.state_dict()
    with pytest.raises(KeyboardInterrupt), stream.drawn_from():
        second = torch.rand(4)
        raise KeyboardInterrupt
    assert torch.equal(torch.cat([first, second]), expected)
    other = RandomStream(0, CPU)
    other.load_state_dict(kept)
    with other.drawn_from():
        assert torch.equal(torch.rand(4), second)
    assert torch.equal(torch.get_rng_state(), before)
