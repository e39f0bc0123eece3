"""The watcher: look, predict what is new, bring everything that follows from it up to date, look again.

All state is files in the output folder, each of which is replaced in one step:

watch.json        the job, and the threshold once it is fixed
first/, initial/, refined/, model/   where no model was given (see `first_model`)
predicted/        one STAR file for each portion of an input file; its being there means that it is done
all.star          the rows of all portions, kept.star those sure enough, each image once
sums.npz          what the half maps are made of, with the list of portions that it holds
map/              half maps, map, FSC and resolution
history.csv       a line for each update; report.html shows it

Whatever a kill interrupts, the next start finds `predicted` true and everything else is made of it.
"""

import logging
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import torch

from cryoforum.commands.half_set_models import half_of_training
from cryoforum.commands.pose_files import PoseOutput
from cryoforum.commands.predict import predict_set
from cryoforum.commands.predict_request import PredictRequest
from cryoforum.commands.watch.first_model import FIRST, MODEL, FirstParticles, build_model
from cryoforum.commands.watch.job import (
    MAPS,
    PREDICTED,
    WatchRequest,
    begin_building,
    begin_or_go_on,
    refuse_other_folder,
)
from cryoforum.commands.watch.portions import (
    last_change_of_images,
    new_portions,
    source_of,
    split_by_change,
    with_findable_names,
)
from cryoforum.commands.watch.results import Results
from cryoforum.dataset.particle_set import ParticleSet
from cryoforum.dataset.particle_table import ParticleTable, select_rows
from cryoforum.dataset.particles import Particles
from cryoforum.dataset.repeats import refuse_oversights, repeats_of
from cryoforum.dataset.split import parts_of
from cryoforum.errors import InputError
from cryoforum.io.particle_files import particle_set_of, read_particle_file
from cryoforum.io.relion.particles import contrast_signs
from cryoforum.network.model import TrainedModel
from cryoforum.network.model_folder import load_models
from cryoforum.network.predict import grid_of
from cryoforum.reconstruction.half_sets import drawn_half_sets
from cryoforum.runtime.reporter import SILENT, Reporter
from cryoforum.storage.file_watcher import Arrivals
from cryoforum.storage.files import is_torn, reason_of, remove_leftovers_in
from cryoforum.storage.locks import taken

logger = logging.getLogger(__name__)

SHARE_OF_WORK = 9  # times as long as an update of maps and report took, predicting goes on before the next


def watch(request: WatchRequest, reporter: Reporter = SILENT) -> int:
    """Process what comes below ``request.folder``; the number of particles when it is over.

    InputError: a folder or model that is none, or an output folder of another job.
    """
    models = None if request.model is None else load_models(request.model)
    refuse_other_folder(request)
    with taken(request.out):
        folder = request.model or _model_of_first_particles(request, reporter)
        begin_or_go_on(request, folder)
        _remove_torn_files(Path(request.out))
        watcher = _Watcher(request, folder, models or load_models(folder), reporter)
        watcher.run()
        return watcher.results.count


def _model_of_first_particles(request: WatchRequest, reporter: Reporter) -> Path:
    """The model in the output folder, made of the first particles where it is not there yet."""
    out = Path(request.out)
    begin_building(request)
    if not (out / FIRST).is_dir():
        arrivals = Arrivals(Path(request.folder), request.pattern, out.absolute())
        first = FirstParticles(arrivals, request.root)
        patience = 0.0 if request.once else request.until_idle_seconds
        first.wait_for(request.first_model.count, request.every_seconds, patience)
        first.write(request.first_model.count)
    build_model(out, request.first_model, request.keep_ramp, reporter)
    return out / MODEL


def _remove_torn_files(out: Path) -> None:
    """What a kill left behind in the folders that a watcher writes to; links are not followed."""
    for folder in (out, out / PREDICTED, out / MAPS):
        if folder.is_dir() and not folder.is_symlink():
            remove_leftovers_in(folder, is_torn)  # batches in predicted/ are gone on with


def _identity(particles: Particles) -> str:
    """Text that changes when one of the stacks does."""
    return str(getattr(particles.images, "identity", ""))


class _NotNow(Exception):
    """A file has to wait; the message says what for."""


class _Watcher:
    """What one run remembers between two looks, to save work; everything that matters is in files."""

    def __init__(
        self, request: WatchRequest, model: Path, models: Sequence[TrainedModel], reporter: Reporter
    ) -> None:
        self._request, self._model, self._models, self._reporter = request, model, models, reporter
        self._grid = grid_of(models[0])
        self._said: set[str] = set()
        self._failed: dict[Path, tuple[str, str]] = {}  # rows and images that did not work, and why
        self._images: dict[Path, str] = {}  # their identity at the last look
        self._problem: str | None = None  # that the last update met
        self._look_again = False  # as images had been written a moment ago
        self._next_update, self._is_behind = 0.0, True  # a kill may have come between predicting and the rest
        self._predicted = Path(request.out).absolute() / PREDICTED
        self._arrivals = Arrivals(Path(request.folder), request.pattern, Path(request.out).absolute())
        self.results = Results(request, models[0].config.symmetry, self._grid)

    def run(self) -> None:
        """Look and work until it is over."""
        self._arrivals.settled()  # what is there: the next look shows what has settled
        last_news = time.monotonic()
        while True:
            time.sleep(self._request.every_seconds)
            if self._work():
                last_news = time.monotonic()
            elif self._is_over(time.monotonic() - last_news):
                break
        if self._problem is not None:
            raise InputError(self._problem)
        remove_leftovers_in(self._predicted)  # of portions that nobody wants any more

    def _is_over(self, idle_seconds: float) -> bool:
        limit = self._request.until_idle_seconds
        return (self._request.once and not self._look_again) or (limit is not None and idle_seconds >= limit)

    def _work(self) -> bool:
        """Predict what did not change since the last look; whether there was anything new."""
        news = self._look_again = False
        for path in self._arrivals.settled():
            for _ in self._steps(path):
                news = self._is_behind = True
                if time.monotonic() >= self._next_update:
                    self._update()
        if self._is_behind and (not news or time.monotonic() >= self._next_update):
            self._update()
        return news

    def _update(self) -> None:
        """Joined files, maps and page; images that are gone by now are no reason to stop predicting."""
        start = time.monotonic()
        try:
            self.results.update()
            self._problem = None
        except (InputError, OSError) as error:
            self._problem = reason_of(error)
            self._say_once(f"the maps stay as they are: {self._problem}")
        self._is_behind = False
        took = time.monotonic() - start
        self._next_update = time.monotonic() + max(self._request.every_seconds, SHARE_OF_WORK * took)

    def _steps(self, path: Path) -> Iterator[None]:
        """Predict the new rows of a file, a portion a step. What is wrong with a file is said once."""
        try:
            table = read_particle_file(path)
            if contrast_signs(table) is not None:
                raise InputError(f"{path}: its particles are dark on light, which no STAR file can say")
            self.results.check_fits(table)
        except InputError as error:
            self._say_once(f"left out until it changes: {error}")
            self._arrivals.done(path)
            return
        try:
            yield from self._portions(path, table)
        except _NotNow as error:  # its images may change though the file does not: looked at again
            self._say_once(str(error))
        else:
            self._arrivals.done(path)

    def _portions(self, path: Path, table: ParticleTable) -> Iterator[None]:
        source = source_of(path, Path(self._request.folder))
        start, stale = split_by_change(table, source, self.results.portions)
        for portion in new_portions(table, source, start, self._predicted):
            rows = self._complete_particles(select_rows(table, range(portion.start, portion.stop)))
            tried = f"{portion.digest} {_identity(rows.particles)}"
            if self._failed.get(path, ("", ""))[0] == tried:
                raise _NotNow(self._failed[path][1])
            try:
                self._predict(rows, portion.path)
            except InputError as error:
                self._failed[path] = tried, f"left out until it changes: {error}"
                raise _NotNow(self._failed[path][1]) from error
            self.results.add(portion)
            yield
        if stale:  # only now: until the new version is done, the old one counts
            self.results.remove(stale)
            yield

    def _complete_particles(self, rows: ParticleTable) -> ParticleSet:
        """The particles; _NotNow where an image is missing, cut off or just being written."""
        try:
            particle_set = particle_set_of(rows, self._request.root, self._grid, self._request.keep_ramp)
            refuse_oversights(rows, repeats_of(particle_set.particles))
            changed = last_change_of_images(rows, self._request.root)
        except (InputError, OSError) as error:
            raise _NotNow(f"waiting: {reason_of(error)}") from error
        identity = _identity(particle_set.particles)
        # A file server's clock may be wrong: what looks new is old enough if the last look found it the same.
        is_new = time.time() - changed < self._request.every_seconds
        known, self._images[rows.path] = self._images.get(rows.path), identity
        if is_new and known != identity:
            self._look_again = True
            raise _NotNow(f"waiting: {rows.path}: its images were written a moment ago")
        return particle_set

    def _predict(self, rows: ParticleSet, path: Path) -> None:
        """Write the predictions of these rows, which have half sets and can be found from there."""
        request, models, particles = self._request, self._models, rows.particles
        mixed = False
        if particles.half_sets is None:
            half_sets = drawn_half_sets(particles.names, sources=particles.sources)
            if len(models) == 2:
                learned = half_of_training(particles, models)
                half_sets = torch.where(learned > 0, learned, half_sets)
            else:
                mixed = "train" in parts_of(particles, models[0].parts, models[0].sources)
            rows = rows.with_half_sets(half_sets)
        if mixed:
            self._say_once(f"{rows.path}: the model learned from some of these: halves are not kept apart")
        prediction = PredictRequest(
            self._model,
            (),
            PoseOutput(path),
            root=request.root,
            refine=request.refine,
            keep_ramp=request.keep_ramp,
            half_maps="all" if mixed else None,
        )
        # They are aligned under their own names, by which a model may know them, and then made findable.
        findable = partial(with_findable_names, root=request.root, place=path.parent)
        predict_set(models, rows, prediction, self._reporter, findable)

    def _say_once(self, line: str) -> None:
        if line not in self._said:
            self._said.add(line)
            logger.info(line)
