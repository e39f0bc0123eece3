"""What the processes that tests start need: this tree, and few threads."""

import os
from pathlib import Path

import cryoforum


def environment(threads: int | None = None) -> dict[str, str]:
    """That of a child process, which imports the package from where this process did."""
    own = {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
    return os.environ | own | {"PYTHONPATH": str(Path(cryoforum.__file__).parents[1])}
