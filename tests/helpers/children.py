"""One number format in every process of a test, whatever the machine is busy with."""

import pytest
import torch

from cryoforum.runtime import devices

# What a child process runs first.
IN_FLOAT32 = "from cryoforum.runtime import devices\ndevices._is_bfloat16_faster = lambda device: False\n"


def _never(device: torch.device) -> bool:
    return False


def use_float32(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(devices, "_is_bfloat16_faster", _never)
