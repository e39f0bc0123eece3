"""A first map of particles in files that need no poses."""

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from cryoforum.commands.held_folder import taken_by_first
from cryoforum.commands.reference_maps import CLASSES, MAP, MAP_FILE, map_folder
from cryoforum.commands.refine import REPORT, earlier_state, fingerprint_of_run
from cryoforum.dataset.particles import Particles
from cryoforum.dataset.repeats import WITH_SYMMETRY, refuse_expansion
from cryoforum.errors import require
from cryoforum.io.mrc.maps import write_volume
from cryoforum.io.particle_files import load_particle_set
from cryoforum.refinement.initial_model import InitialModelConfig, Stage, Start, stages, volumes_of
from cryoforum.report.page import write_report
from cryoforum.runtime.distributed import refuse_different, wait_for_all
from cryoforum.runtime.reporter import SILENT, Reporter
from cryoforum.storage.files import new_folder
from cryoforum.storage.locks import Hold
from cryoforum.storage.state import save_state

logger = logging.getLogger(__name__)

STATE = ".initial-model-state"
RESULTS = {STATE, MAP, CLASSES, REPORT}
STEPS_A_STATE, STEPS_A_PAGE = 10, 50
FEWEST_PARTICLES = 100


@dataclass(frozen=True)
class InitialModelRequest:
    """What `cryoforum initial-model` is asked for.

    Parameters
    ----------
    particles
        Particle files, joined where there are several; their poses are not used.
    out
        Folder for the map and a page.
    config
        Settings.
    root
        Folder that image names are looked for in first.
    overwrite
        Replace what is there.
    keep_ramp
        Leave in each image the ramp that a gradient of the ice left.
    """

    particles: Sequence[Path]
    out: Path
    config: InitialModelConfig = field(default_factory=InitialModelConfig)
    root: Path | None = None
    overwrite: bool = False
    keep_ramp: bool = False


def initial_model(request: InitialModelRequest, reporter: Reporter = SILENT) -> list[Path]:
    """Write a map for each class, of either hand; the same command goes on after a kill."""
    particle_set = load_particle_set(request.particles, request.root, keep_ramp=request.keep_ramp)
    refuse_expansion(particle_set, "to make a first map of", WITH_SYMMETRY)
    particles, out, config = particle_set.particles, Path(request.out), request.config
    require(len(particles) >= FEWEST_PARTICLES, f"{FEWEST_PARTICLES} particles or more", len(particles))
    job = fingerprint_of_run(particle_set, request.particles, config)
    refuse_different(job)
    with taken_by_first(out) as hold:
        state = earlier_state(out / STATE, job)
        wait_for_all()  # nobody writes before everyone has read
        if hold is not None and state is None:
            new_folder(out, request.overwrite, RESULTS)
        last = None
        if state is not None:
            last = Stage(state["step"], tuple(Start(**start) for start in state["starts"]))
            logger.info(f"continuing after step {last.step}")
        advance = reporter.progress("initial model", config.steps - (last.step if last else 0))
        for stage in stages(particles, config, last):
            if hold is not None:
                _keep(stage, particles, request, job, hold)
            advance(1)
    wait_for_all()
    return [map_folder(out, number, config.classes) / MAP_FILE for number in range(1, config.classes + 1)]


def _keep(stage: Stage, particles: Particles, request: InitialModelRequest, job: str, hold: Hold) -> None:
    """Now and then a state to go on from and a page; at the end the maps, and no state any more."""
    state, ended = request.out / STATE, stage.step == request.config.steps
    if stage.step % STEPS_A_STATE == 0 and not ended:  # a kill before the maps are written costs a few steps
        hold.check()
        save_state({"job": job, **asdict(stage)}, state)
    if stage.step % STEPS_A_PAGE == 0 or ended:
        hold.check()
        _write(stage, particles, request)
    if ended:
        state.unlink(missing_ok=True)


def _write(stage: Stage, particles: Particles, request: InitialModelRequest) -> None:
    """The maps as they are now, and a page that shows them."""
    for number, volume in enumerate(volumes_of(stage, particles, request.config), 1):
        folder = map_folder(request.out, number, request.config.classes)
        folder.mkdir(parents=True, exist_ok=True)
        write_volume(volume, folder / MAP_FILE)
    write_report(request.out, request.out / REPORT, request.root)
