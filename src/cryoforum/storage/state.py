"""The file that a training or a refinement resumes from after a kill."""

from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from cryoforum.errors import InputError
from cryoforum.storage.files import replacing

# What torch raises for files that are missing, cut off, or not its own.
_OF_DAMAGE = (
    OSError,
    EOFError,
    RuntimeError,
    UnpicklingError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
)


def save_state(state: dict[str, Any], path: Path) -> None:
    """Write what a run needs to go on; the previous state stays until the new one is complete.

    Raises
    ------
    OSError
        Where the file cannot be written, for example on a full disk.
    """
    with replacing(path) as temporary, open(temporary, "wb") as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:  # its way to say that the disk is full
            raise OSError(f"cannot write {path}: {str(error).splitlines()[0]}") from error


def load_state(path: Path) -> dict[str, Any]:
    """Read the state of a run: tensors and plain values only, so that it cannot run code.

    Raises
    ------
    InputError
        Where there is no such file, or it holds no state.
    """
    try:
        return torch.load(path, weights_only=True, map_location="cpu")
    except _OF_DAMAGE as error:
        raise InputError(f"expected the state of a run to resume at {path}: {error}") from error
