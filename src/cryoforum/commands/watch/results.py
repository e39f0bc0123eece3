"""All that is made of predicted portions: joined files, maps, history and report, kept up to date."""

import logging
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from cryoforum.commands.reconstruct import write_maps
from cryoforum.commands.watch.job import MAPS, PREDICTED, WatchRequest, read_job, write_job
from cryoforum.commands.watch.portions import Portion, PortionScores, listed_portions, scores_of
from cryoforum.commands.watch.sums import updated_sums
from cryoforum.curation.junk import JUNK_SCALE
from cryoforum.curation.selection import quantile_threshold
from cryoforum.dataset.image_grid import ImageGrid
from cryoforum.dataset.particle_table import ParticleTable, select_rows
from cryoforum.dataset.particles import Particles
from cryoforum.errors import InputError
from cryoforum.io.particle_files import particle_set_of, read_particle_file
from cryoforum.io.predictions import half_sets_are_independent
from cryoforum.io.relion.growing import GrowingStar, check_joinable
from cryoforum.reconstruction.inversion import ReconstructionConfig, finished_maps
from cryoforum.report.watch import write_watch_report
from cryoforum.storage.csv_tables import read_csv, write_csv

logger = logging.getLogger(__name__)

FIRST_COUNT = 1000  # particles, in the order of arrival, whose quantile fixes the threshold
HISTORY = ("seconds", "particles", "kept", "junk", "unmasked", "masked")


@dataclass(frozen=True)
class _Counted:
    """A portion, what is believed of its rows, and which of them count: those named by no earlier portion."""

    portion: Portion
    scores: PortionScores
    rows: np.ndarray


class Results:
    """The predicted portions of an output folder and everything that is made of them."""

    def __init__(self, request: WatchRequest, symmetry: str, grid: ImageGrid) -> None:
        self._request, self._grid = request, grid
        self._out = Path(request.out)
        self._config = ReconstructionConfig(symmetry=symmetry)
        self._all, self._kept = (GrowingStar(self._out / name) for name in ("all.star", "kept.star"))
        self._joined: list[str] = []  # portions that both hold, of the threshold below
        self._joined_threshold = 0.0
        self._counted: list[_Counted] = []
        self._seen: set[str] = set()
        self._head: ParticleTable | None = None  # optics and columns that other files have to fit
        for portion in listed_portions(self._out / PREDICTED):
            self.add(portion)

    @property
    def portions(self) -> list[Portion]:
        """All of them, in the order of arrival."""
        return [counted.portion for counted in self._counted]

    @property
    def count(self) -> int:
        """Particles; an image that two files name is one."""
        return sum(int(counted.rows.sum()) for counted in self._counted)

    def add(self, portion: Portion) -> None:
        """A portion was predicted. One that cannot be read is removed, and so predicted again."""
        try:
            table = read_particle_file(portion.path)
            scores = scores_of(table, half_sets_are_independent(table))
        except InputError as error:  # torn by a power cut
            logger.info(f"predicting again: {error}")
            portion.path.unlink()
            return
        self._head = self._head or select_rows(table, [])
        self._count(portion, scores)

    def check_fits(self, table: ParticleTable) -> None:
        """InputError where the particles of a file cannot be joined with the others.

        Their columns, of which the predictions are not there yet, are no news before they are joined.
        """
        check_joinable([*([] if self._head is None else [self._head]), select_rows(table, [])])

    def remove(self, portions: list[Portion]) -> None:
        """Portions hold no longer: their files go, and what counts is counted anew."""
        for portion in portions:
            portion.path.unlink()
        left = [counted for counted in self._counted if counted.portion not in portions]
        self._counted, self._seen = [], set()
        for counted in left:
            self._count(counted.portion, counted.scores)

    def _count(self, portion: Portion, scores: PortionScores) -> None:
        rows = np.array([key not in self._seen for key in scores.keys])
        self._seen.update(scores.keys)
        self._counted.append(_Counted(portion, scores, rows))
        again = int((~rows).sum())
        if again and not self._is_newer_version(portion):
            logger.info(
                f"{portion.source}: {again} of {len(rows)} images were predicted in another file already and "
                "count once; narrow --pattern to save the work"
            )

    def _is_newer_version(self, portion: Portion) -> bool:
        """Whether rows of the same file that it overlaps are still counted: they are about to leave."""
        earlier = (
            counted.portion for counted in self._counted[:-1] if counted.portion.source == portion.source
        )
        return any(other.start < portion.stop and portion.start < other.stop for other in earlier)

    def update(self) -> None:
        """Bring every file up to date with the portions; each is replaced in one step."""
        if not self._counted:
            return
        threshold = self._threshold()
        self._join(threshold)
        resolution = self._update_maps(threshold)
        errors, scales = self._errors_deg(), self._scales()
        history = self._update_history(errors, scales, threshold, resolution)
        write_watch_report(self._out, history, errors, threshold, scales, JUNK_SCALE)

    def _threshold(self) -> float:
        """Degrees of expected error up to which a particle counts; fixed as soon as enough are there."""
        keep = self._request.keep
        if self._request.max_error_deg is not None:
            return self._request.max_error_deg
        job = read_job(self._out)
        if job.get("keep") == keep and "max_error_deg" in job:
            return float(job["max_error_deg"])
        errors = torch.from_numpy(self._errors_deg()[:FIRST_COUNT])
        threshold = quantile_threshold(errors, keep)
        if len(errors) >= FIRST_COUNT:
            write_job(self._out, {**job, "keep": keep, "max_error_deg": threshold})
        return threshold

    def _join(self, threshold: float) -> None:
        """all.star and kept.star: new portions are added; where others left, all is written anew."""
        names = [counted.portion.path.name for counted in self._counted]
        new = self._counted[len(self._joined) :]
        grown = names[: len(self._joined)] == self._joined and threshold == self._joined_threshold
        tables = [self._rows(counted) for counted in new] if grown else []
        kept = [self._rows(counted, threshold) for counted in new] if grown else []
        self._joined_threshold = np.nan  # where only one of them can be written, both are written anew
        if not (grown and self._all.append(tables) and self._kept.append(kept)):
            self._all.rewrite(lambda: map(self._rows, self._counted))
            self._kept.rewrite(lambda: (self._rows(counted, threshold) for counted in self._counted))
        self._joined, self._joined_threshold = names, threshold

    def _rows(self, counted: _Counted, threshold: float = np.inf) -> ParticleTable:
        """The particles of a portion that count and are sure enough."""
        chosen = counted.rows & (counted.scores.errors_deg <= threshold)
        return select_rows(read_particle_file(counted.portion.path), chosen)

    def _update_maps(self, threshold: float) -> dict[str, float | bool]:
        """Sums and maps; the resolution, empty while one half set is."""
        entries = {self._entry(counted, threshold): counted for counted in self._counted}

        keep_ramp = self._request.keep_ramp

        def particles_of(entry: str) -> Particles | None:
            table = self._rows(entries[entry], threshold)
            return particle_set_of(table, None, self._grid, keep_ramp).particles if len(table) else None

        sums = updated_sums(self._out / "sums.npz", list(entries), particles_of, self.count > FIRST_COUNT)
        if sums is None or not all(bool((weight > 0).any()) for weight in sums.weight):
            return {}
        folder = self._out / MAPS
        folder.mkdir(exist_ok=True)
        independent = all(counted.scores.apart for counted in self._counted)
        return write_maps(finished_maps(sums, self._config, independent=independent), folder)

    @staticmethod
    def _entry(counted: _Counted, threshold: float) -> str:
        """What sums say of a portion that they hold: all that decides which of its rows count."""
        return f"{counted.portion.path.name} {int(counted.rows.sum())} {threshold:.9g}"

    def _update_history(
        self, errors: np.ndarray, scales: np.ndarray, threshold: float, resolution: dict[str, float | bool]
    ) -> list[dict[str, float | None]]:
        """history.csv with a line of now, unless nothing has come since the last."""
        path = self._out / "history.csv"
        rows = read_csv(path) if path.is_file() else []
        now = {
            "particles": str(len(errors)),
            "kept": str(int((errors <= threshold).sum())),
            "junk": str(int((scales < JUNK_SCALE).sum())) if len(scales) else "",
            "unmasked": f"{resolution['unmasked']:.4f}" if resolution else "",
            "masked": f"{resolution['masked']:.4f}" if resolution else "",
        }
        if not rows or any(rows[-1].get(name) != value for name, value in now.items()):
            rows.append({"seconds": f"{time.time():.1f}", **now})
            logger.info(_state_line(now))
            write_csv(path, rows)
        return [{name: float(row[name]) if row.get(name) else None for name in HISTORY} for row in rows]

    def _errors_deg(self) -> np.ndarray:
        return np.concatenate([counted.scores.errors_deg[counted.rows] for counted in self._counted])

    def _scales(self) -> np.ndarray:
        parts = [c.scores.scales[c.rows] for c in self._counted if len(c.scores.scales)]
        return np.concatenate(parts) if parts else np.empty(0)


def _state_line(now: dict[str, str]) -> str:
    """A line of the history in words."""
    words = [f"{now['particles']} particles", f"{now['kept']} kept"]
    words += [f"{now['junk']} probably junk"] if now["junk"] else []
    words += [f"map at {float(now['masked']):.1f} Å"] if now["masked"] else []
    return ", ".join(words)
