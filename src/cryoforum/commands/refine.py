"""Poses, classes and half maps of particles in files, from a map of any kind and no poses."""

import hashlib
import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from cryoforum.commands.held_folder import taken_by_first
from cryoforum.commands.pose_files import hash_of_files
from cryoforum.commands.reconstruct import MAP_FILES, write_maps
from cryoforum.commands.reference_maps import (
    CLASSES,
    MAP,
    MAP_FILE,
    ReferenceMap,
    load_mask,
    load_reference_map,
    map_folder,
)
from cryoforum.dataset.columns import CLASS_NUMBER, CLASS_PROBABILITY
from cryoforum.dataset.particle_set import ParticleSet
from cryoforum.dataset.particle_table import with_columns
from cryoforum.dataset.particles import Particles
from cryoforum.dataset.repeats import WITH_SYMMETRY, refuse_expansion
from cryoforum.errors import InputError
from cryoforum.io.mrc.maps import read_volume
from cryoforum.io.particle_files import check_writable, load_particle_set, write_particle_file
from cryoforum.io.predictions import prediction_columns, with_predictions
from cryoforum.reconstruction.half_sets import checked_half_sets
from cryoforum.reconstruction.postprocess import corrected_fsc
from cryoforum.refinement.refine import RefinementConfig, Round
from cryoforum.refinement.refine import refine as rounds_of
from cryoforum.refinement.state import round_of, state_of
from cryoforum.report.page import write_report
from cryoforum.runtime.distributed import process_rank_and_count, refuse_different, wait_for_all
from cryoforum.runtime.reporter import SILENT, Reporter
from cryoforum.storage.csv_tables import write_csv
from cryoforum.storage.files import new_folder
from cryoforum.storage.locks import Hold
from cryoforum.storage.state import load_state, save_state

logger = logging.getLogger(__name__)

PARTICLES, ROUNDS, STATE, REPORT = "predictions.star", "rounds.csv", ".refinement-state", "report.html"
RESULTS = {PARTICLES, ROUNDS, STATE, REPORT, MAP, CLASSES}


@dataclass(frozen=True)
class RefineRequest:
    """What `cryoforum refine` is asked for.

    Parameters
    ----------
    particles
        Particle files, joined where there are several; their poses are not used.
    references
        The map to start from, or one of each class.
    out
        Folder for particles with poses, half maps, and a page.
    config
        Settings.
    mask
        A map that references are multiplied by.
    root
        Folder that image names are looked for in first.
    overwrite
        Replace what is there.
    keep_ramp
        Leave in each image the ramp that a gradient of the ice left.
    """

    particles: Sequence[Path]
    references: Sequence[ReferenceMap]
    out: Path
    config: RefinementConfig = field(default_factory=RefinementConfig)
    mask: str | None = None
    root: Path | None = None
    overwrite: bool = False
    keep_ramp: bool = False


@dataclass(frozen=True)
class RefinedClass:
    """How many particles a class has, and the resolution of its half maps in Å, corrected for the mask."""

    count: int
    resolution_angstrom: float


@dataclass(frozen=True)
class RefineSummary:
    """What came out.

    Parameters
    ----------
    rounds
        How many there were.
    classes
        In the order of their numbers.
    expected_error_deg
        Median.
    found_nothing
        Whether no half maps agree beyond the resolution of the start.
    """

    rounds: int
    classes: tuple[RefinedClass, ...]
    expected_error_deg: float
    found_nothing: bool


def refine(request: RefineRequest, reporter: Reporter = SILENT) -> RefineSummary:
    """Write poses, classes, half maps and a page; the same command goes on after a kill."""
    particle_set = load_particle_set(request.particles, request.root, keep_ramp=request.keep_ramp)
    refuse_expansion(particle_set, "to refine", WITH_SYMMETRY)
    particle_set = particle_set.with_half_sets(checked_half_sets(particle_set.particles))
    particles, out = particle_set.particles, Path(request.out)
    check_writable(particle_set.table, out / PARTICLES)
    symmetry = request.config.symmetry
    starts = [load_reference_map(given, particles, symmetry).full for given in request.references]
    mask = None if request.mask is None else load_mask(request.mask, particles)
    files = [*request.particles, *(path for given in request.references for path in given.files)]
    settings = request.config, request.references, request.mask
    job = fingerprint_of_run(particle_set, files, settings)
    refuse_different(job)
    with taken_by_first(out) as hold:
        state = earlier_state(out / STATE, job)
        wait_for_all()  # nobody writes before everyone has read
        if hold is not None and state is None:
            new_folder(out, request.overwrite, RESULTS)
        last = None if state is None else round_of(state["round"], particles, symmetry)
        log: list[dict[str, float]] = [] if state is None else state["log"]
        if last is not None:
            logger.info(f"continuing after round {last.number}")
        started, advance = time.monotonic(), _progress(particles, reporter)
        for found in rounds_of(particles, starts, request.config, mask, advance, last):
            log = [*log, _row(found, time.monotonic() - started)]
            logger.info(_in_words(found))
            if hold is not None:
                hold.check()
                save_state({"job": job, "round": state_of(found), "log": log}, out / STATE)
                write_csv(out / ROUNDS, log)
            last = found
        assert last is not None
        return _write_results(particle_set, last, request, hold)


def _progress(particles: Particles, reporter: Reporter) -> Callable[[int], None]:
    """Called with the images of a batch done; each round is a step of its own."""
    _, processes = process_rank_and_count()
    own, done = -(-len(particles) // processes), 0
    advance = reporter.progress("refining", own)

    def progress(count: int) -> None:
        nonlocal advance, done
        if done >= own:
            advance, done = reporter.progress("refining", own), 0
        done += count
        advance(count)

    return progress


def earlier_state(path: Path, job: str) -> dict[str, Any] | None:
    """What an earlier run of the same ``job`` has left to go on from; None where there is nothing.

    InputError where another job has left it.
    """
    if not path.exists():
        return None
    state = load_state(path)
    if state.get("job") != job:
        raise InputError(
            f"{path.parent} holds an unfinished run with other options or particles; finish it with its own "
            "command, remove the folder, or choose another --out"
        )
    return state


def fingerprint_of_run(particle_set: ParticleSet, files: Sequence[Path], settings: object) -> str:
    """Hash of all that a result of whole particle sets depends on."""
    parts = [hash_of_files([*files, *particle_set.table.companions]), str(settings)]
    parts += [str(getattr(particle_set.particles.images, "identity", ""))]
    parts += [version("cryo-forum"), torch.__version__]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _row(found: Round, seconds: float) -> dict[str, float]:
    """A round as a row of `ROUNDS`."""
    resolutions = found.resolutions_angstrom
    by_class = {f"resolution_{n}_angstrom": round(one, 3) for n, one in enumerate(resolutions, 1)}
    expected = float(torch.rad2deg(found.predictions.expected_error_rad.median()))
    changes = {"change_deg": found.change_deg, "moved_share": found.moved_share}
    return {
        "round": found.number,
        "seconds": round(seconds, 1),
        "expected_error_deg": expected,
        **changes,
    } | by_class


def _in_words(found: Round) -> str:
    resolutions = " and ".join(f"{one:.1f}" for one in found.resolutions_angstrom)
    expected = float(torch.rad2deg(found.predictions.expected_error_rad.median()))
    moved = f", {100 * found.moved_share:.1f} % changed class" if len(found.references) > 1 else ""
    return f"round {found.number}: {resolutions} Å, expected error {expected:.2f}°{moved}"


def _write_results(
    particle_set: ParticleSet, last: Round, request: RefineRequest, hold: Hold | None
) -> RefineSummary:
    """Half maps of each class, particles with poses and classes, and the page; the first process writes."""
    out = Path(request.out)
    classes, unmasked = [], []
    for number, maps in enumerate(last.half_maps):
        fsc = corrected_fsc(maps)
        classes.append(RefinedClass(int((last.classes == number).sum()), fsc.resolution_angstrom))
        # A mask carries what the halves share in the start a few shells beyond it.
        unmasked.append(fsc.curve.unmasked_resolution_angstrom)
        if hold is not None:
            hold.check()
            folder = map_folder(out, number + 1, len(last.half_maps))
            folder.mkdir(parents=True, exist_ok=True)
            write_maps(replace(maps, independent=last.number > 1), folder)
    if hold is not None:
        table = with_predictions(particle_set.table, prediction_columns(last.predictions))
        if len(classes) > 1:
            probability = last.class_probabilities.amax(1)
            table = with_columns(table, {CLASS_NUMBER: last.classes + 1, CLASS_PROBABILITY: probability})
        write_particle_file(table, out / PARTICLES)
        write_report(out, out / REPORT, request.root)
        (out / STATE).unlink(missing_ok=True)
    wait_for_all()
    expected = float(torch.rad2deg(last.predictions.expected_error_rad.median()))
    extent = particle_set.particles.box * particle_set.particles.pixel_size_angstrom
    nothing = min(unmasked) > _least_resolution_angstrom(request.config, extent)
    return RefineSummary(last.number, tuple(classes), expected, found_nothing=nothing)


def _least_resolution_angstrom(config: RefinementConfig, extent_angstrom: float) -> float:
    """Where whole half maps have to agree: beyond what they share in the start, and what reading it adds."""
    return extent_angstrom / (config.first_shells(extent_angstrom) + 2)


def has_found_nothing(out: Path, config: RefinementConfig) -> bool:
    """Whether the half maps of one class in a folder of `refine` do not agree beyond the start."""
    volume = read_volume(out / MAP / MAP_FILE)
    extent = len(volume.voxels) * volume.pixel_size_angstrom
    reached = json.loads((out / MAP / MAP_FILES[-1]).read_text())["unmasked"]
    return bool(reached > _least_resolution_angstrom(config, extent))
