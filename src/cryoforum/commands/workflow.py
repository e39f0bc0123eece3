"""The steps on files: read, call one verb, write. The command line and the demonstration share them."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from cryoforum.dataset.image_grid import ImageGrid
from cryoforum.dataset.particle_table import ParticleTable, missing_columns
from cryoforum.dataset.particles import Particles
from cryoforum.dataset.poses import Poses
from cryoforum.errors import InputError
from cryoforum.io.join import joined
from cryoforum.io.particle_files import read_each
from cryoforum.io.relion.particles import (
    CTF_COLUMNS,
    has_only_2d_alignments,
    particles_from_table,
)

# Shows a long step: bar(description, total) gives a function that is told how many more are done.
Bar = Callable[[str, int], Callable[[int], None]]
STATISTICS = {
    "trace": "cryoforumTrace",
    "max": "cryoforumLambdaMax",
    "gap": "cryoforumLambdaMax",  # the first eigengap is -Λmax
    "error": "cryoforumExpectedErrorDeg",
}
BOUND = "cryoforumBoundDeg"
REFERENCE_HALF = "cryoforumReferenceHalf"
MODEL_HALF = "cryoforumModelHalf"


def parsed_shard(shard: str) -> tuple[int, int]:
    """Number, from 1, and count of a shard written as "1/4"."""
    number, _, count = shard.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise InputError(f"expected --shard as 1/4, 2/4, 3/4 or 4/4, found '{shard}'")
    return int(number), int(count)


def read_joined(
    paths: Sequence[Path], root: Path | None, tell: Callable[[str], None] = lambda line: None
) -> ParticleTable:
    """The tables of one or several particle files as one; ``tell`` is told what joining changed."""
    tables = read_tables_of(paths, tell)
    with notices_to(tell):
        return joined(tables, root)


def read_tables_of(
    paths: Sequence[Path], tell: Callable[[str], None] = lambda line: None
) -> list[ParticleTable]:
    """The tables of each particle file; ``tell`` is told which were merged into one."""
    if not paths:
        raise InputError("expected a particle file, found none")
    tables = read_each(paths)
    for companion in (path for table in tables for path in table.companions):
        tell(f"merged with {companion}")
    return tables


def checked_particles(
    table: ParticleTable,
    root: Path | None,
    tell: Callable[[str], None] = lambda line: None,
    sampling: ImageGrid | None = None,
) -> Particles:
    """The particles of a file that has all of the CTF or none of it: half of it is an oversight.

    ``tell`` is told what is odd about them, though they can be read. ``sampling`` as in
    `particles_from_table`.
    """
    missing = missing_columns(table, CTF_COLUMNS)
    if missing and not missing_columns(table, ["rlnDefocusU"]):
        raise InputError(f"{table.path}: expected {missing[0]} for the CTF, found none; add the column")
    with notices_to(tell):
        return particles_from_table(table, root, sampling)


class _Forwarding(logging.Handler):
    def __init__(self, tell: Callable[[str], None]) -> None:
        super().__init__(logging.INFO)
        self._tell = tell

    def emit(self, record: logging.LogRecord) -> None:
        self._tell(record.getMessage())


@contextmanager
def notices_to(tell: Callable[[str], None]) -> Iterator[None]:
    """Tell, a line each, what the block logs."""
    root, handler = logging.getLogger("cryoforum"), _Forwarding(tell)
    root.setLevel(logging.INFO)
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)


def checked_poses(table: ParticleTable, particles: Particles, purpose: str) -> Poses:
    """The poses; InputError where there are none, or all orientations are one, as before a refinement."""
    poses = particles.poses
    if poses is None:
        found = "2D alignments only; run a 3D refinement" if has_only_2d_alignments(table) else "none"
        raise InputError(
            f"{table.path}: expected rlnAngleRot, rlnAngleTilt and rlnAnglePsi {purpose}, found {found}"
        )
    if len(poses) > 1 and bool((poses.quaternions == poses.quaternions[0]).all()):
        raise InputError(
            f"{table.path}: expected the orientations of a refinement {purpose}, found the same one in all "
            f"{len(poses)} rows; predict them first"
        )
    return poses
