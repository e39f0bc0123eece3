"""What `cryoforum watch` is asked for, and the folder that remembers it."""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryoforum.commands.predict import hash_of_model
from cryoforum.commands.watch.first_model import MODEL, FirstModel
from cryoforum.errors import InputError, require
from cryoforum.storage.files import contents, write_json

FORMAT = "cryo-forum watch 1"
JOB, PREDICTED, MAPS = "watch.json", "predicted", "map"
_OLD_LOCK = "watch.lock"  # that earlier versions leave


@dataclass(frozen=True)
class WatchRequest:
    """Particle files that fit ``pattern`` anywhere below ``folder`` are predicted by ``model`` into ``out``.

    model: None for one that is made of the first particles, as ``first_model`` says.
    keep, max_error_deg: a particle counts where its expected error is at most ``max_error_deg`` or, where
        that is None, what the surest share ``keep`` of the first particles does not exceed.
    every_seconds: between two looks; a file is taken that did not change from one to the next.
    until_idle_seconds: end when nothing came for so long; once: end after what is there; neither: never.
    root: where image names are looked for first. refine, keep_ramp: as of `PredictRequest`.
    """

    folder: Path
    model: Path | None
    out: Path
    pattern: str = "*.star"
    keep: float = 0.75
    max_error_deg: float | None = None
    every_seconds: float = 20.0
    until_idle_seconds: float | None = None
    once: bool = False
    root: Path | None = None
    refine: bool | None = None
    keep_ramp: bool = False
    first_model: FirstModel = field(default_factory=FirstModel)

    def __post_init__(self) -> None:
        require(Path(self.folder).is_dir(), "a folder to watch", f"none at {self.folder}")
        error, seconds = self.max_error_deg, self.every_seconds
        require(0 < self.keep <= 1, "--keep above 0 and at most 1", self.keep)
        require(error is None or error > 0, "--max-error above 0 degrees", error)
        require(0 < seconds < math.inf, "--every above 0 seconds", seconds)
        require(not self.once or self.until_idle_seconds is None, "--once or --until-idle", "both")
        is_relative = bool(self.pattern) and not self.pattern.startswith("/")
        require(is_relative, "--pattern as '*.star'", f"'{self.pattern}'")


def refuse_other_folder(request: WatchRequest) -> None:
    """InputError where the output folder is somebody's own."""
    out = Path(request.out)
    require(not out.exists() or out.is_dir(), f"a folder at {out}", "a file; choose another --out")
    entries = [path.name for path in contents(out) if path.name != _OLD_LOCK]
    if entries and JOB not in entries:
        raise InputError(f"{out} holds {min(entries)} but no {JOB}; choose an empty folder for --out")


def begin_building(request: WatchRequest) -> None:
    """Write down that a model is made of what comes first. InputError where the folder has another job."""
    known = read_job(request.out)
    if "model" in known and not (Path(request.out) / MODEL).is_dir():
        raise InputError(f"{request.out} holds the results of a model that was given; give it with --model")
    _compare_and_write(request.out, {"format": FORMAT, "folder": str(Path(request.folder).resolve())})


def begin_or_go_on(request: WatchRequest, model: Path) -> None:
    """Write the job down, or compare it with the one that is there. InputError where it is another."""
    job = {
        "format": FORMAT,
        "folder": str(Path(request.folder).resolve()),
        "model": hash_of_model(model),
        "refine": request.refine,
        "keep_ramp": request.keep_ramp,
    }
    _compare_and_write(request.out, job)
    (Path(request.out) / PREDICTED).mkdir(exist_ok=True)


def _compare_and_write(out: Path, job: dict[str, Any]) -> None:
    known = read_job(out)
    for name, value in job.items():
        if name in known and known[name] != value:
            # Of a model there are only hashes.
            values = "" if name == "model" else f" ({known.get(name)}, not {value})"
            raise InputError(f"{out} holds the results of another {name}{values}; choose another --out")
    write_job(out, {**known, **job})


def read_job(out: Path) -> dict[str, Any]:
    """The job of an output folder; empty where there is none yet."""
    path = Path(out) / JOB
    if not path.is_file():
        return {}
    try:
        job = json.loads(path.read_text())
        if not isinstance(job, dict):
            raise InputError(f"found {type(job).__name__}")
    except ValueError as error:
        raise InputError(f"{path}: expected what the watcher wrote: {error}; choose another --out") from None
    return job


def write_job(out: Path, job: dict[str, Any]) -> None:
    """Write the job down, atomically."""
    write_json(Path(out) / JOB, job)
