"""Keep the particles whose orientation is most certain."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from cryoforum.choices import CertaintyStatistic
from cryoforum.curation.selection import knee, quantile_threshold, select, share_of
from cryoforum.dataset.columns import CRAMER_RAO_BOUND, EXPECTED_ERROR, LAMBDA_MAX, TRACE
from cryoforum.dataset.particle_table import ParticleTable, number_column, select_rows
from cryoforum.errors import InputError, require
from cryoforum.io.particle_files import (
    check_writable,
    read_particle_file,
    refuse_unwritable,
    write_particle_file,
)
from cryoforum.storage.files import check_output

DEFAULT_SHARE = 0.75
STATISTICS = {
    "error": EXPECTED_ERROR,
    "trace": TRACE,
    "max": LAMBDA_MAX,
    "gap": LAMBDA_MAX,  # the first eigengap is -Λmax
}


@dataclass(frozen=True)
class FilterRequest:
    """What `cryoforum filter` is asked for.

    Parameters
    ----------
    predictions
        A file with predicted poses.
    out, dropped_out
        Where the kept particles go; and the others, None for nowhere.
    keep
        Share of particles to keep, above 0 and up to 1, or 2 to 100 for per cent; None for three quarters.
    max_error_deg
        Expected error in degrees up to which particles are kept, instead.
    by
        Statistic; None: the expected error where images were compared with a reference, as it alone knows of
        other modes, else the trace.
    quantile_of
        Another file of predictions, whose surest share ``keep`` sets the threshold: then any number of
        particles may pass, but not none.
    overwrite
        Replace what is there.
    """

    predictions: Path
    out: Path
    keep: float | None = None
    by: CertaintyStatistic | None = None
    quantile_of: Path | None = None
    dropped_out: Path | None = None
    overwrite: bool = False
    max_error_deg: float | None = None

    def __post_init__(self) -> None:
        if self.by is not None and self.by not in STATISTICS:
            raise InputError(f"expected --by {' or '.join(STATISTICS)}, found '{self.by}'")
        if self.keep is not None:
            share_of(self.keep)
        if self.max_error_deg is None:
            return
        require(self.max_error_deg > 0, "--max-error above 0 degrees", self.max_error_deg)
        others = {"--keep": self.keep, "--quantile-of": self.quantile_of}
        given = [name for name, value in others.items() if value is not None]
        given += [f"--by {self.by}"] if self.by not in (None, "error") else []
        require(not given, "--max-error alone, as it is the threshold", " ".join(given))

    @property
    def share(self) -> float:
        """Of the particles that are kept, where no threshold is given."""
        return DEFAULT_SHARE if self.keep is None else share_of(self.keep)


@dataclass(frozen=True)
class FilterResult:
    """What `filter_particles` found.

    Parameters
    ----------
    kept, dropped
        Numbers of particles.
    errors_deg
        (n,) expected errors of all, in their order; None where the file does not say them.
    threshold_deg
        Largest expected error of those kept.
    knee_deg
        Expected error that parts sure from unsure particles; None where they are one population.
    """

    kept: int
    dropped: int
    errors_deg: Tensor | None = None
    threshold_deg: float | None = None
    knee_deg: float | None = None


def filter_particles(request: FilterRequest) -> FilterResult:
    """Write the surest particles, and the others where asked for."""
    outputs = [Path(path) for path in (request.out, request.dropped_out) if path is not None]
    for path in outputs:
        check_output(path, request.overwrite)
    if len({path.resolve() for path in outputs}) < len(outputs):
        raise InputError(f"expected two files to write to, found {request.out} for both --out and --drop-out")
    table = read_particle_file(request.predictions)
    inputs = (request.predictions, request.quantile_of, *table.companions)
    resolved = {Path(path).resolve() for path in inputs if path is not None}
    for path in outputs:
        require(path.resolve() not in resolved, "other names to write to than the input's", path)
    check_writable(table, outputs[0])
    for path in outputs[1:]:
        refuse_unwritable(table, path)
    kept = _kept_rows(table, request)
    dropped = torch.ones(len(table), dtype=torch.bool)
    dropped[kept] = False
    write_particle_file(select_rows(table, kept), request.out)
    if request.dropped_out is not None and dropped.any():
        write_particle_file(select_rows(table, dropped.nonzero()[:, 0]), request.dropped_out)
    elif request.dropped_out is not None:
        Path(request.dropped_out).unlink(missing_ok=True)  # of an earlier run, which dropped some
    errors = number_column(table, EXPECTED_ERROR)
    if errors is None:
        return FilterResult(len(kept), int(dropped.sum()))
    errors_deg = torch.tensor(errors)
    threshold = float(errors_deg[kept].max())
    return FilterResult(len(kept), int(dropped.sum()), errors_deg, threshold, knee(errors_deg))


def _kept_rows(table: ParticleTable, request: FilterRequest) -> Tensor:
    if request.max_error_deg is not None:
        return _rows_below(table, "error", request.max_error_deg, f"an error of {request.max_error_deg:g}°")
    by = request.by or ("error" if CRAMER_RAO_BOUND in table.particles else "trace")
    if request.quantile_of is None:
        return select(_statistic(table, by), request.share)
    others = _statistic(read_particle_file(request.quantile_of), by)
    threshold = quantile_threshold(others, request.share)
    return _rows_below(table, by, threshold, f"the surest {request.share:.0%} of {request.quantile_of}")


def _rows_below(table: ParticleTable, by: str, threshold: float, meaning: str) -> Tensor:
    """Rows whose statistic is not above a threshold; InputError where there are none."""
    values = _statistic(table, by)
    kept = (values <= threshold).nonzero()[:, 0]
    if len(kept) == 0:
        raise InputError(
            f"{table.path}: expected some as sure as {meaning}, found none: the surest has "
            f"{STATISTICS[by]} {float(values.min()):.4g}; raise the threshold"
        )
    return kept


def _statistic(table: ParticleTable, by: str) -> Tensor:
    values = number_column(table, STATISTICS[by])
    if values is None:
        raise InputError(
            f"{table.path}: expected predicted poses with a column {STATISTICS[by]}, found none; run "
            "'cryoforum predict' or 'cryoforum align' first"
        )
    return torch.from_numpy(values)
