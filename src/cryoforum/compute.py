"""Devices, number formats and threads: the one place that knows what the machine can do."""

import os
import time
from contextlib import AbstractContextManager
from datetime import timedelta
from functools import lru_cache

import torch
from torch import distributed
from torch.nn.functional import conv2d

PATIENCE = timedelta(hours=2)  # the slowest of several processes may be behind the fastest by so much
WORTHWHILE_SPEEDUP = 1.3  # below this bfloat16 on a CPU is emulated, or not worth its rounding


def best_device() -> torch.device:
    """The GPU where torch sees one, else the CPU; processes of one machine take its GPUs in turn."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())


def use_threads(count: str) -> None:
    """Let torch use so many threads, and the compiled loops, which ask it when they are first imported."""
    if not count.isdecimal() or int(count) < 1:
        raise ValueError(f"expected a number of threads of 1 or more, found '{count}'")
    torch.set_num_threads(int(count))


def process_rank_and_count() -> tuple[int, int]:
    """This process, from 0, and how many there are, as torchrun says; (0, 1) without it."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def wait_for_all() -> None:
    """Return when every process has come here; at once where there is only one.

    ValueError where one of them ended before, or does not come within `PATIENCE`.
    """
    _, count = process_rank_and_count()
    if count == 1:
        return
    try:
        if not distributed.is_initialized():
            distributed.init_process_group("gloo", timeout=PATIENCE)
        distributed.barrier()
    except RuntimeError as error:
        raise ValueError(
            f"expected all {count} processes to come this far, but one has failed or was silent for "
            f"{PATIENCE}; see its message, then run the same command again to go on"
        ) from error


def fast_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where that is faster on ``device``, else float32."""
    return torch.bfloat16 if _is_bfloat16_faster(device) else torch.float32


def mixed_precision(device: torch.device) -> AbstractContextManager[object]:
    """Autocast to bfloat16 where that is faster on ``device``; parameters stay float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=_is_bfloat16_faster(device))


@lru_cache(maxsize=4)
def _is_bfloat16_faster(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    ratio = _convolution_seconds(torch.float32) / _convolution_seconds(torch.bfloat16)
    return ratio > WORTHWHILE_SPEEDUP


def _convolution_seconds(dtype: torch.dtype) -> float:
    """Fastest of several small convolutions on the CPU: which format it is quick in shows at once."""
    # Ones: a layer's random start would move the generator that a training is seeded with.
    weights = torch.ones(64, 64, 3, 3, dtype=dtype).to(memory_format=torch.channels_last)
    images = torch.ones(16, 64, 16, 16, dtype=dtype).to(memory_format=torch.channels_last)
    seconds = []
    with torch.inference_mode():
        for _ in range(24):
            start = time.perf_counter()
            conv2d(images, weights, padding=1)
            seconds.append(time.perf_counter() - start)
    return min(seconds)
