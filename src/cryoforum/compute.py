"""Devices, number formats and threads: the one place that knows what the machine can do."""

import time
from contextlib import AbstractContextManager
from functools import lru_cache

import torch
from torch.nn.functional import conv2d

WORTHWHILE_SPEEDUP = 1.3  # below this bfloat16 on a CPU is emulated, or not worth its rounding


def best_device() -> torch.device:
    """The GPU where torch sees one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


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
