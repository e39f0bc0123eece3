"""What the processes that tests start need: this tree, and few threads."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cryoforum


def environment(threads: int | None = None) -> dict[str, str]:
    """That of a child process, which imports the package from where this process did."""
    own = {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
    return os.environ | own | {"PYTHONPATH": str(Path(cryoforum.__file__).parents[1])}


HOLDER = """
import sys
from pathlib import Path
from cryoforum.storage.locks import taken
with taken(Path(sys.argv[1])):
    print("in", flush=True)
    sys.stdin.readline()
"""


@contextmanager
def held_by_another_process(folder: Path) -> Iterator[int]:
    """Another process has taken the folder, as for a command that writes there; its number."""
    command = [sys.executable, "-c", HOLDER, str(folder)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, text=True, env=environment(), **pipes) as other:
        assert other.stdout is not None and other.stdout.readline() == "in\n"
        yield other.pid
        other.communicate("\n")
