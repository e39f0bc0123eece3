"""Where `watch` is given no model: one made of the first particles that come.

OUT/first     the particles that it is made of; its being there means that enough had come
OUT/initial   their first map, as of `initial-model`
OUT/refined   poses and half maps, as of `refine`
OUT/model     as of `train`

A kill interrupts one of the three commands, each of which goes on where it was.
"""

import logging
import shutil
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

from cryoforum.commands.initial_model import STATE as INITIAL_STATE
from cryoforum.commands.initial_model import InitialModelRequest, initial_model
from cryoforum.commands.reference_maps import reference_maps
from cryoforum.commands.refine import PARTICLES, REPORT, RefineRequest, has_found_nothing, refine
from cryoforum.commands.refine import STATE as REFINEMENT_STATE
from cryoforum.commands.train import TrainRequest, is_unfinished, train
from cryoforum.commands.watch.portions import image_keys, with_findable_names
from cryoforum.config import Config, preset
from cryoforum.dataset.particle_table import ParticleTable, select_rows
from cryoforum.errors import InputError, require
from cryoforum.io.particle_files import particle_set_of, read_particle_file
from cryoforum.io.relion.star_files import write_star
from cryoforum.network.model_folder import DESCRIPTION
from cryoforum.refinement.initial_model import InitialModelConfig
from cryoforum.refinement.refine import RefinementConfig
from cryoforum.report.watch import write_page_without_results
from cryoforum.runtime.reporter import Reporter
from cryoforum.storage.file_watcher import Arrivals

logger = logging.getLogger(__name__)

FIRST, INITIAL, REFINED, MODEL = "first", "initial", "refined", "model"


@dataclass(frozen=True)
class FirstModel:
    """How a model is made where none is given.

    Parameters
    ----------
    count
        Particles that have to come first.
    minutes
        Time to train.
    initial, refinement, training
        Settings of the three steps.
    """

    count: int = 2000
    minutes: float = 10.0
    initial: InitialModelConfig = field(default_factory=InitialModelConfig)
    refinement: RefinementConfig = field(default_factory=RefinementConfig)
    training: Config = field(default_factory=lambda: preset("small"))

    def __post_init__(self) -> None:
        require(self.count >= 100, "--build-from of 100 particles or more", self.count)
        require(self.minutes > 0, "--train-minutes above 0", self.minutes)


def build_model(out: Path, settings: FirstModel, keep_ramp: bool, reporter: Reporter) -> None:
    """A model of the particles in OUT/first, unless it is there already.

    InputError where nothing is found in them.
    """
    particles, initial, refined, model = (out / name for name in (FIRST, INITIAL, REFINED, MODEL))
    files = sorted(particles.iterdir())
    if not _is_finished(initial, "map", INITIAL_STATE):
        _say(out, "no model was given: a first map is made", f"its page is {initial / REPORT}")
        initial_model(InitialModelRequest(files, initial, settings.initial, keep_ramp=keep_ramp), reporter)
    if not _is_finished(refined, PARTICLES, REFINEMENT_STATE):
        _say(out, "poses are refined", f"their page is {refined / REPORT}")
        start = reference_maps([str(initial)])
        request = RefineRequest(files, start, refined, settings.refinement, keep_ramp=keep_ramp)
        refine(request, reporter)
    if has_found_nothing(refined, settings.refinement):
        raise InputError(
            f"nothing was found in the first particles: half maps in {refined} do not agree beyond their "
            "start; see what was picked, or give a --model"
        )
    if is_unfinished(model) or not (model / DESCRIPTION).is_file():
        _say(out, f"a model is trained for {settings.minutes:g} minutes", f"its folder is {model}")
        resume = is_unfinished(model)
        training = TrainRequest(
            [refined / PARTICLES],
            model,
            settings.training,
            max_minutes=settings.minutes,
            resume=resume,
            overwrite=not resume,  # what a kill left of a training that had no state yet
            keep_ramp=keep_ramp,
        )
        train(training, reporter)


def _say(out: Path, step: str, more: str) -> None:
    """In the log, and on the page."""
    logger.info(f"{step}; {more}")
    write_page_without_results(out, step[0].upper() + step[1:], f"{more[0].upper()}{more[1:]}.")


def _is_finished(folder: Path, result: str, state: str) -> bool:
    return (folder / result).exists() and not (folder / state).exists()


@dataclass(frozen=True)
class _File:
    """A particle file whose images are all there, by names that need no root, and its `image_keys`."""

    table: ParticleTable
    keys: list[str]


@dataclass
class FirstParticles:
    """Particle files as they come; ``arrivals.without`` is the output folder.

    Parameters
    ----------
    arrivals
        The files.
    root
        Where image names are looked for first.
    """

    arrivals: Arrivals
    root: Path | None
    _files: dict[Path, _File] = field(default_factory=dict)
    _said: set[str] = field(default_factory=set)

    def wait_for(self, count: int, every_seconds: float, until_idle_seconds: float | None) -> None:
        """Until so many images are there; InputError where nothing more came for so many seconds."""
        self.arrivals.settled()  # what is there: the next look shows what has settled
        last_news, told = time.monotonic(), -1
        while (found := len({key for file in self._files.values() for key in file.keys})) < count:
            if found != told:
                waiting = f"no model was given: waiting for {count} particles"
                _say(self.arrivals.without, waiting, f"there are {found} so far")
                told = found
            time.sleep(every_seconds)
            if self._look():
                last_news = time.monotonic()
            elif until_idle_seconds is not None and time.monotonic() - last_news >= until_idle_seconds:
                raise InputError(
                    f"expected --model, or {count} particles (--build-from) to make one of, found {found}"
                )

    def write(self, most: int) -> None:
        """The first ``most`` particles, each image once, as files in a folder that comes up whole."""
        out, known = self.arrivals.without, set[str]()
        partial = out / f".{FIRST}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        for number, file in enumerate(self._files.values(), 1):
            rows = [row for row, key in enumerate(file.keys) if key not in known][: most - len(known)]
            known.update(file.keys[row] for row in rows)
            if rows:
                write_star(select_rows(file.table, rows), partial / f"{number:06d}.star")
        partial.rename(out / FIRST)

    def _look(self) -> bool:
        """Take what has settled; whether there was anything new."""
        news = False
        for path in self.arrivals.settled():
            try:
                table = read_particle_file(path)
                particle_set_of(table, self.root)
                place = self.arrivals.without / FIRST
                findable = replace(with_findable_names(table, self.root, place), path=place / path.name)
                self._files[path], news = _File(findable, image_keys(findable)), True
                self.arrivals.done(path)
            except (InputError, OSError) as error:
                if str(error) not in self._said:
                    logger.info(f"waiting: {error}")
                self._said.add(str(error))
        return news
