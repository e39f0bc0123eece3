"""What the processes that tests start need: this tree, few threads, and one number format."""

import os
from pathlib import Path

import pytest
import torch

import cryoforum
from cryoforum.runtime import devices

# What a child process runs first, so that it computes in one format whatever the machine is busy with.
IN_FLOAT32 = "from cryoforum.runtime import devices\ndevices._is_bfloat16_faster = lambda device: False\n"


def _never(device: torch.device) -> bool:
    return False


def use_float32(patch: pytest.MonkeyPatch) -> None:
    """The same in this process."""
    patch.setattr(devices, "_is_bfloat16_faster", _never)


def environment(threads: int | None = None) -> dict[str, str]:
    """That of a child process, which imports the package from where this process did."""
    own = {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
    return os.environ | own | {"PYTHONPATH": str(Path(cryoforum.__file__).parents[1])}
