"""Where numbers are computed and in which format: chosen by fixed rules, never by timing."""

from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from cryoforum.errors import InputError
from cryoforum.runtime.distributed import process_rank_and_count, rank_on_machine

CPU = torch.device("cpu")
FLOAT32, BFLOAT16 = "float32", "bfloat16"
PRECISIONS = (FLOAT32, BFLOAT16)


@dataclass(frozen=True)
class Compute:
    """A device and the number format in which a network runs there; made by `compute_for`.

    Attributes
    ----------
    device : torch.device
    precision : str
        "float32" or "bfloat16". With bfloat16 the network's products are mixed precision (autocast); its
        parameters and all geometry stay float32.
    """

    device: torch.device = CPU
    precision: str = FLOAT32

    @property
    def dtype(self) -> torch.dtype:
        """The format as torch's type."""
        return torch.bfloat16 if self.precision == BFLOAT16 else torch.float32

    def autocast(self) -> AbstractContextManager[object]:
        """The context in which the network is called."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == BFLOAT16)

    def __str__(self) -> str:
        return f"{self.device}, {self.precision}"


def compute_for(device: str = "auto", precision: str = "auto") -> Compute:
    """The device and the number format that two words name.

    Parameters
    ----------
    device : str
        "cpu", "cuda", "cuda:1", "mps", or "auto": the CUDA GPU where torch sees one, else the CPU. Of several
        processes on one machine each takes a GPU of its own, so that they may not name one by number.
    precision : str
        "float32", "bfloat16", or "auto": bfloat16 on a GPU that computes in it, else float32.

    Raises
    ------
    InputError
        For unknown words, and for what this machine does not have.
    """
    chosen = _device(device)
    available = (FLOAT32,) if not _computes_in_bfloat16(chosen) else PRECISIONS
    if precision == "auto":
        return Compute(chosen, BFLOAT16 if chosen.type == "cuda" and BFLOAT16 in available else FLOAT32)
    if precision not in PRECISIONS:
        raise InputError(f"expected a precision out of auto, {', '.join(PRECISIONS)}, found '{precision}'")
    if precision not in available:
        raise InputError(f"expected precision {FLOAT32}, as device {chosen} has no {precision}")
    return Compute(chosen, precision)


def _device(word: str) -> torch.device:
    known = _devices()
    if word == "auto":
        word = "cuda" if "cuda" in known else "cpu"
    if word not in known:
        raise InputError(f"expected a device out of auto, {', '.join(known)} on this machine, found '{word}'")
    if word == "cuda":
        return torch.device("cuda", rank_on_machine() % torch.cuda.device_count())
    if word.startswith("cuda:") and process_rank_and_count()[1] > 1:
        raise InputError(f"expected device cuda, as each of several processes has its own, found '{word}'")
    return torch.device(word)


def _devices() -> list[str]:
    found = ["cpu"]
    if torch.cuda.is_available():
        found += ["cuda", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    return found + (["mps"] if torch.backends.mps.is_available() else [])


def _computes_in_bfloat16(device: torch.device) -> bool:
    """On a CPU always, though where it is emulated it is slower than float32."""
    if device.type == "cuda":
        return torch.version.hip is not None or torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu"
