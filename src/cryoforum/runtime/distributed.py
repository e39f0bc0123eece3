"""Several processes that train as one: who they are, how they meet, and what they send each other.

torchrun, Slurm's srun or `start_processes` start them. Each holds a share of every batch, and one rule
keeps the sum equal to a single process: a loss that every process takes of its own share, averaged over all
of them, is that of the whole batch. Therefore gradients are averaged, and what `gathered` brings from other
processes takes the sum of their gradients back. With one process everything here does nothing.
"""

import atexit
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from tempfile import TemporaryDirectory
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, distributed

from cryoforum.errors import InputError
from cryoforum.runtime.messages import decoded, encoded

T = TypeVar("T")

PATIENCE = timedelta(hours=2)  # the slowest of several processes may be behind the fastest by so much
POLL_SECONDS = 0.1
_MEETING = "CRYOFORUM_MEETING"  # environment variable: where processes of one machine meet
_INTERFACE = "GLOO_SOCKET_IFNAME"
GRACE_SECONDS = 10.0  # for a process that is asked to end


def process_rank_and_count() -> tuple[int, int]:
    """This process, from 0, and how many there are, as torchrun or srun says; (0, 1) without them."""
    if "WORLD_SIZE" in os.environ:
        return int(os.environ.get("RANK", 0)), int(os.environ["WORLD_SIZE"])
    # Unlike SLURM_NTASKS, which a batch script sees, too, this one is there in processes of srun alone.
    if "SLURM_STEP_NUM_TASKS" in os.environ:
        return int(os.environ.get("SLURM_PROCID", 0)), int(os.environ["SLURM_STEP_NUM_TASKS"])
    return 0, 1


def rank_on_machine() -> int:
    """This process among those of its machine, from 0: the number of its GPU."""
    return int(os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", 0)))


def is_first() -> bool:
    """Whether this process is the one that writes files and speaks."""
    return process_rank_and_count()[0] == 0


def own_share() -> slice:
    """Which rows of something are this process's: every W-th of W processes, so that all have alike work."""
    rank, count = process_rank_and_count()
    return slice(rank, None, count)


def refuse_unequal_shares(image_count: int) -> None:
    """InputError where a batch of so many images cannot be shared evenly."""
    _, count = process_rank_and_count()
    if image_count % count:
        raise InputError(
            f"expected batches that {count} processes can share evenly, found {image_count} images; "
            "change training.batch_size or the number of processes"
        )


def refuse_different(task: object) -> None:
    """InputError in all processes where they were not all given the same ``task``."""
    own = repr(task)
    if averaged(float(from_first(lambda: own) == own)) < 1:
        raise InputError(
            "expected one command in all processes, found different ones; what torchrun or one srun starts "
            "works on one thing, so start separate ones for separate work"
        )


def wait_for_all() -> None:
    """Return when every process has come here; at once where there is only one.

    InputError, as from all functions below, where one of them ended before, or is silent for `PATIENCE`.
    """
    averaged(0.0)


def gathered(own: Tensor) -> Tensor:
    """The tensors (b, …) of all W processes, (b·W, …), as they were before each took its `own_share`.

    Differentiable: the gradient of the own part is the sum of what all processes find for it.
    """
    _, count = process_rank_and_count()
    return own if count == 1 else _Gathered.apply(own).transpose(0, 1).flatten(0, 1)


def averaged(value: float) -> float:
    """The mean over all processes."""
    _, count = process_rank_and_count()
    if count == 1:
        return value
    total = torch.tensor(value, dtype=torch.float64)
    add_up(total)
    return total.item() / count


def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Replace every gradient by its mean over all processes."""
    _, count = process_rank_and_count()
    if count == 1:
        return
    gradients = [one.grad for one in parameters if one.grad is not None]
    together = torch.cat([gradient.flatten() for gradient in gradients])
    add_up(together)
    means = together.div_(count).split([gradient.numel() for gradient in gradients])
    for gradient, mean in zip(gradients, means, strict=True):
        gradient.copy_(mean.view_as(gradient))


def joined_shares(own: Tensor, row_count: int) -> Tensor:
    """The ``row_count`` rows of which this process has its `own_share`; without gradient."""
    _, count = process_rank_and_count()
    if count == 1:
        return own
    rows = own.new_zeros(row_count, *own.shape[1:])
    rows[own_share()] = own
    for part in rows.split(4096):
        add_up(part)
    return rows


def from_first(make: Callable[[], T], *types: type) -> T:
    """What ``make`` gives in the first process; the others wait and get it.

    It travels as JSON and tensors (see `messages.encoded`); ``types`` are the dataclasses that may be in it.
    """
    rank, count = process_rank_and_count()
    if count == 1:
        return make()
    if rank > 0:
        with _together():
            length = torch.empty(1, dtype=torch.long)
            _receive(length)
            text = torch.empty(int(length), dtype=torch.uint8)
            _receive(text)
            return cast(T, decoded(text.numpy().tobytes(), _receive, types))
    value = make()
    written, tensors = encoded(value)
    text = torch.frombuffer(bytearray(written), dtype=torch.uint8)
    with _together():
        for tensor in (torch.tensor([len(written)]), text, *tensors):
            _receive(tensor)
    return value


def _receive(tensor: Tensor) -> None:
    """Fill a tensor with that of the first process, which gives its own; there may be nothing in it."""
    if tensor.numel():
        distributed.broadcast(tensor, 0)


class _Gathered(torch.autograd.Function):
    """(…) of each process to (W, …); backwards the sum of all gradients that the own part has got."""

    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        _, count = process_rank_and_count()
        parts = [torch.empty_like(own, memory_format=torch.contiguous_format) for _ in range(count)]
        with _together():
            distributed.all_gather(parts, own.contiguous())
        return torch.stack(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone(memory_format=torch.contiguous_format)
        add_up(total)
        return total[process_rank_and_count()[0]]


def add_up(values: Tensor) -> None:
    """Replace ``values`` by their sum over all processes."""
    _, count = process_rank_and_count()
    if count > 1:
        with _together():
            distributed.all_reduce(values)


@contextmanager
def _together() -> Iterator[None]:
    """Whatever is done here, all processes do; they meet first if they have not."""
    _, count = process_rank_and_count()
    try:
        if not distributed.is_initialized():
            _meet()
        yield
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else "no reason given"
        raise InputError(
            f"expected all {count} processes to come this far, but one has failed or was silent for "
            f"{PATIENCE}; see its message, then run the same command again, for a training with --resume "
            f"({reason})"
        ) from error


def _meet() -> None:
    """Tensors in main memory travel by gloo, those of GPUs by NCCL."""
    rank, count = process_rank_and_count()
    place = os.environ.get(_MEETING)  # else torchrun says it by environment variables
    if "WORLD_SIZE" not in os.environ:
        host = os.environ.get("MASTER_ADDR") or first_host(os.environ.get("SLURM_STEP_NODELIST", "127.0.0.1"))
        step = 7 * int(os.environ.get("SLURM_JOB_ID", 0)) + int(os.environ.get("SLURM_STEP_ID", 0))
        port = os.environ.get("MASTER_PORT", 10_000 + step % 20_000)  # another one for every step
        place = f"tcp://{host}:{port}"
    backend = "gloo"
    if torch.cuda.is_available():
        backend = "cpu:gloo,cuda:nccl"
        torch.cuda.set_device(rank_on_machine() % torch.cuda.device_count())
    with _on_loopback():
        distributed.init_process_group(
            backend, init_method=place, rank=rank, world_size=count, timeout=PATIENCE
        )
    atexit.register(_part)


@contextmanager
def _on_loopback() -> Iterator[None]:
    """Where all processes are on this machine, no other one reaches the ports that gloo opens in here."""
    _, count = process_rank_and_count()
    loopback = _loopback()
    if os.environ.get("LOCAL_WORLD_SIZE") != str(count) or _INTERFACE in os.environ or loopback is None:
        yield
        return
    os.environ[_INTERFACE] = loopback
    try:
        yield
    finally:
        del os.environ[_INTERFACE]


def _loopback() -> str | None:
    """The name of the interface that only this machine reaches."""
    return next((name for _, name in socket.if_nameindex() if name in ("lo", "lo0")), None)


def _part() -> None:
    """Threads of gloo that still run when Python ends would now and then abort a process that is done."""
    if distributed.is_initialized():
        distributed.destroy_process_group()


def first_host(node_list: str) -> str:
    """The first of Slurm's list of machines: gpu03 of "gpu[03-05,9],cpu1"."""
    found = re.match(r"([^\[,]+)(?:\[(\w+)[^\]]*\]([^,]*))?", node_list)
    if found is None:
        raise InputError(f"expected a list of machines from Slurm, found '{node_list}'; set MASTER_ADDR")
    return "".join(part or "" for part in found.groups())


def start_processes(count: int, arguments: Sequence[str]) -> int:
    """Run ``python -m cryoforum`` with ``arguments`` in ``count`` processes on this machine; the exit code.

    Where one fails, the others are ended. InputError where one was killed, as it could not say so itself.
    """
    gpus = torch.cuda.device_count()
    if 0 < gpus < count:
        raise InputError(f"expected --devices of at most {gpus}, the GPUs of this machine, found {count}")
    threads = max(1, len(os.sched_getaffinity(0)) // count)
    group = {
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads)),
    }
    loopback = _loopback()
    if loopback is not None:
        group |= {name: os.environ.get(name, loopback) for name in (_INTERFACE, "NCCL_SOCKET_IFNAME")}
    with TemporaryDirectory(prefix="cryoforum-") as private:  # a file instead of a port that others reach
        return _run_all(count, arguments, group | {_MEETING: f"file://{private}/meeting"})


def _run_all(count: int, arguments: Sequence[str], group: dict[str, str]) -> int:
    """The exit code of ``count`` processes with these environment variables."""
    command = [sys.executable, "-m", "cryoforum", *arguments]
    running: list[subprocess.Popen[bytes]] = []
    try:
        for rank in range(count):
            place = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            running.append(subprocess.Popen(command, env=os.environ | group | place))
        codes: list[int | None] = [None]
        while None in codes and not any(codes):
            time.sleep(POLL_SECONDS)
            codes = [process.poll() for process in running]
    finally:
        for process in running:
            _end(process)
    for rank, code in enumerate(codes):
        if code is not None and code < 0:
            raise InputError(
                f"process {rank + 1} of {count} was ended from outside (signal {-code}; 9 may be for want of "
                "memory), and the others with it; go on with --resume"
            )
    return next((code for code in codes if code), 0)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ask a process to end where it still runs, then make it."""
    if process.poll() is None:
        process.terminate()
    try:
        process.wait(GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
