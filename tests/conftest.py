"""What every test shares: few threads, hypothesis without a stopwatch, and outside judges or a skip."""

import os
import shutil
from pathlib import Path

# Before torch is imported: threads that wait by spinning starve each other beside another program.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
# Where tests run side by side (pytest -n 2), each worker, and what it starts, has a core of its own.
os.environ.setdefault("OMP_NUM_THREADS", "1" if "PYTEST_XDIST_WORKER" in os.environ else "2")

import pytest
import torch
from hypothesis import settings

REPOSITORY = Path(__file__).resolve().parents[1]

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))

# The first call into torch is slow, so a deadline an example would fail at random.
settings.register_profile("cryoforum", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("cryoforum")


@pytest.fixture(scope="session")
def relion() -> Path:
    """Path of RELION's ``relion_project``; its sister programs lie in the same folder."""
    program = shutil.which("relion_project")
    if program is None:
        pytest.skip("RELION is not installed: no relion_project on PATH")
    return Path(program)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real RELION and cryoSPARC files: $CRYOFORUM_TEST_DATA, or beside the repository."""
    named = os.environ.get("CRYOFORUM_TEST_DATA")
    folder = Path(named) if named else REPOSITORY.parent / "shared" / "data" / "formats"
    if not folder.is_dir():
        pytest.skip(f"no sample files at {folder}: set CRYOFORUM_TEST_DATA to their folder")
    return folder
