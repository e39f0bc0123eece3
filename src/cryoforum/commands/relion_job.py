"""RELION's External job: the command that does it, the marker of how it ended, and the list of its results.

RELION (3.1 and later) calls a program from the project's folder with the job's folder, its inputs, the
parameters of its form as text, and a number of threads. The program leaves in the job's folder an empty file
that says how it ended, and a table of the files that later jobs may take as input.
"""

import re
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from cryoforum.commands.train import is_unfinished
from cryoforum.errors import InputError, require
from cryoforum.io.relion.star_text import open_for_writing, write_tables
from cryoforum.network.model_folder import model_folders
from cryoforum.reconstruction.reference_files import REFERENCE
from cryoforum.storage.files import replacing

SUCCESS, FAILURE, ABORTED = (f"RELION_JOB_EXIT_{ending}" for ending in ("SUCCESS", "FAILURE", "ABORTED"))
ABORT_NOW = "RELION_JOB_ABORT_NOW"
OUTPUT_NODES = "RELION_OUTPUT_NODES.star"
PARTICLES, DROPPED, MODEL = "particles.star", "dropped.star", "model"
OTHER_INPUTS = ("--in_movies", "--in_mics", "--in_coords")
RELION_5 = 50000  # its STAR files are of version 50001, those of 3.1 and 4 of 30001
ABORT_SECONDS = 1.0  # between two looks for ABORT_NOW


@dataclass(frozen=True)
class NodeType:
    """What a file is to RELION: a number in 3.1, a label in 4 and 5."""

    number: int
    label: str


MAP_NODE = NodeType(6, "DensityMap.mrc")


@dataclass(frozen=True)
class ExternalJob:
    """What RELION asks for; options are passed on to the command that does it.

    model: a model folder, or the folder of the job that trained it.
    """

    folder: Path
    action: str
    particles: Path | None
    model: Path | None = None
    reference: str | None = None
    mask: str | None = None
    options: tuple[str, ...] = ()

    @property
    def words(self) -> list[str]:
        """The words of the `cryoforum` command that does the job; what it wrote before it may replace."""
        require(self.action in _COMMANDS, f"--action {', '.join(_COMMANDS)}", f"'{self.action}'")
        if self.particles is None:
            raise InputError("expected --in_parts: particles in the Input tab of the job, found none")
        others = [word for word in self.options if word in OTHER_INPUTS]
        if others:
            raise InputError(f"expected particles as input, found {others[0]}; leave that field empty")
        if self.action != "predict" and (self.reference or self.mask):
            raise InputError(
                f"expected --in_3dref and --in_mask with --action predict alone, found {self.action}; "
                "leave these fields empty"
            )
        return _COMMANDS[self.action](self, str(self.particles)) + _spelled(self.options)

    @property
    def results(self) -> list[tuple[Path, NodeType]]:
        """The files that RELION may hand on to other jobs.

        Not a model's half maps: they are masked and filtered, and would pass for raw ones.
        """
        if self.action != "train":
            names = (PARTICLES, DROPPED) if self.action == "filter" else (PARTICLES,)
            files = [(self.folder / name, _particle_node(self.folder)) for name in names]
        else:
            files = [(folder / REFERENCE, MAP_NODE) for folder in model_folders(self.folder / MODEL)]
        return [(path, kind) for path, kind in files if path.exists()]


def _particle_node(folder: Path) -> NodeType:
    """Particles; RELION 5 has another label for them than 4, and the version in its job.star tells."""
    form = folder / "job.star"
    version = re.search(r"# version (\d+)", form.read_text(errors="replace")) if form.exists() else None
    is_older = version is not None and int(version[1]) < RELION_5
    return NodeType(3, "ParticlesData.star.relion" if is_older else "ParticleGroupMetadata.star.relion")


def _train(job: ExternalJob, particles: str) -> list[str]:
    out = job.folder / MODEL
    return ["train", particles, "--out", str(out), "--resume" if is_unfinished(out) else "--overwrite"]


def _predict(job: ExternalJob, particles: str) -> list[str]:
    if job.model is None:
        raise InputError("expected --model: a folder written by --action train, found none")
    inside = job.model / MODEL
    words = ["predict", str(inside if inside.is_dir() else job.model), particles]
    words += ["--out", str(job.folder / PARTICLES), "--overwrite"]
    words += [] if job.reference is None else ["--reference", job.reference]
    return words + ([] if job.mask is None else ["--mask", job.mask])


def _filter(job: ExternalJob, particles: str) -> list[str]:
    out = ["--out", str(job.folder / PARTICLES), "--drop-out", str(job.folder / DROPPED)]
    return ["filter", particles, *out, "--overwrite"]


_COMMANDS = {"train": _train, "predict": _predict, "filter": _filter}


def _spelled(options: Sequence[str]) -> list[str]:
    """Labels written as RELION's own, --max_minutes, in our spelling; what follows = stays."""
    return [re.sub("^--[^=]*", lambda label: label[0].replace("_", "-"), word) for word in options]


def write_output_nodes(job: ExternalJob) -> None:
    """The table of results, for RELION 3.1 (types as numbers) and 4 or 5 (labels) alike."""
    columns = ["rlnPipeLineNodeName", "rlnPipeLineNodeType", "rlnPipeLineNodeTypeLabel"]
    rows = [(_name_in_project(path), str(kind.number), kind.label) for path, kind in job.results]
    table = pd.DataFrame(rows, columns=columns)
    with replacing(job.folder / OUTPUT_NODES) as temporary, open_for_writing(temporary) as file:
        write_tables(file, [("output_nodes", table)], version_line="# version 30001")


def _name_in_project(path: Path) -> str:
    """As RELION writes names: relative to the project's folder, which is the current one."""
    path = path.absolute()
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


@contextmanager
def marked(folder: Path) -> Iterator[None]:
    """Leaves the marker of how the body ended in the job's folder; those of an earlier run go first.

    Where RELION wants the job to stop the body gets a KeyboardInterrupt, as from Ctrl-C.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name in (SUCCESS, FAILURE, ABORTED, OUTPUT_NODES):
        (folder / name).unlink(missing_ok=True)
    try:
        with _interrupted_by(folder / ABORT_NOW):
            yield
    except BaseException:
        wanted = (folder / ABORT_NOW).exists()
        (folder / (ABORTED if wanted else FAILURE)).touch()
        (folder / ABORT_NOW).unlink(missing_ok=True)
        raise
    (folder / SUCCESS).touch()


@contextmanager
def _interrupted_by(path: Path) -> Iterator[None]:
    """As Ctrl-C for the main thread when ``path`` is there.

    By a signal, as that also ends a wait for a lock or for the disk; not by that of Ctrl-C, which is ignored
    where a shell has started the job in the background.
    """
    if path.exists():
        raise KeyboardInterrupt
    done = threading.Event()
    before = signal.signal(signal.SIGUSR1, signal.default_int_handler)

    def watch() -> None:
        while not done.wait(ABORT_SECONDS):
            if path.exists():
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
                return

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()
        signal.signal(signal.SIGUSR1, before)
