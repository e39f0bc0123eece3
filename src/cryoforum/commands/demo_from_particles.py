"""The whole way from particles without poses: a first map, a refinement, a model for those that come."""

from dataclasses import replace
from pathlib import Path

import torch

from cryoforum.commands.compare import matching_rows
from cryoforum.commands.demo import (
    ALL_RESULTS,
    DemoRequest,
    DemoResult,
    Timings,
    maps_and_page,
    predict_twice,
    simulate_into,
    timed,
    train_on,
    write_truth,
)
from cryoforum.commands.initial_model import FEWEST_PARTICLES, InitialModelRequest, initial_model
from cryoforum.commands.reference_maps import reference_maps
from cryoforum.commands.refine import PARTICLES, RefineRequest, refine
from cryoforum.dataset.columns import ANGLE_COLUMNS, ORIGIN_COLUMNS
from cryoforum.dataset.frames import common_frame
from cryoforum.dataset.particle_table import ParticleTable, select_rows
from cryoforum.errors import InputError, require
from cryoforum.io.relion.particles import poses_from_table, with_poses
from cryoforum.io.relion.star_files import read_star, write_star
from cryoforum.refinement.initial_model import InitialModelConfig
from cryoforum.refinement.refine import RefinementConfig
from cryoforum.runtime.reporter import SILENT, Reporter
from cryoforum.storage.files import new_folder
from cryoforum.storage.locks import taken

NEW_EVERY = 3  # of so many particles one comes after the refinement


def demo_from_particles(request: DemoRequest, reporter: Reporter = SILENT) -> DemoResult:
    """Simulate, forget the poses, make a first map, refine, train, predict a third that came later, report.

    Errors are those after the turn, move and hand of the map are taken away, which nobody can know.
    """
    least = FEWEST_PARTICLES * NEW_EVERY
    require(request.count >= least, f"--n of {least} or more with --from-particles", request.count)
    with taken(request.out):
        return _demo_into(new_folder(request.out, request.overwrite, ALL_RESULTS), request, reporter)


def _demo_into(out: Path, request: DemoRequest, reporter: Reporter) -> DemoResult:
    timings: Timings = []
    simulate_into(out, request, timings, reporter)
    truth, collected = read_star(out / "particles.star"), out / "collected.star"
    is_new = torch.arange(request.count) % NEW_EVERY == NEW_EVERY - 1
    for path, rows in ((collected, ~is_new), (out / "new.star", is_new)):
        write_star(_without_poses(select_rows(truth, rows)), path)
    count = int((~is_new).sum())
    with timed("initial model", count, timings):
        config = InitialModelConfig(seed=request.seed)
        initial_model(InitialModelRequest([collected], out / "initial", config), reporter)
    with timed("refine", count, timings):
        start = reference_maps([str(out / "initial")])
        refine(RefineRequest([collected], start, out / "refined", RefinementConfig()), reporter)
    shown = train_on(out / "refined" / PARTICLES, out, request, timings, reporter)
    predict_twice(out, out / "new.star", timings, reporter)
    write_truth(out, _in_frame_of(read_star(out / "refined" / PARTICLES), truth))
    return maps_and_page(out, timings, shown, reporter)


def _without_poses(table: ParticleTable) -> ParticleTable:
    return replace(table, particles=table.particles.drop(columns=[*ANGLE_COLUMNS, *ORIGIN_COLUMNS]))


def _in_frame_of(refined: ParticleTable, truth: ParticleTable) -> ParticleTable:
    """All true poses, as they are against the map of the refined particles."""
    true_poses, found = poses_from_table(truth), poses_from_table(refined)
    if true_poses is None or found is None:
        raise InputError("expected poses of simulated and of refined particles, found none")
    frame = common_frame(true_poses[matching_rows(truth, refined)], found)
    return with_poses(truth, frame.of(true_poses))
