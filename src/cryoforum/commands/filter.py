"""Keep the particles whose orientation is most certain."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from cryoforum.choices import CertaintyStatistic
from cryoforum.curation.selection import quantile_threshold, select
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
        Share of particles to keep, above 0 and up to 1.
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
    keep: float = 0.75
    by: CertaintyStatistic | None = None
    quantile_of: Path | None = None
    dropped_out: Path | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.by is not None and self.by not in STATISTICS:
            raise InputError(f"expected --by {' or '.join(STATISTICS)}, found '{self.by}'")


def filter_particles(request: FilterRequest) -> tuple[int, int]:
    """Write the surest particles, and the others where asked for; how many were kept and dropped."""
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
    return len(kept), int(dropped.sum())


def _kept_rows(table: ParticleTable, request: FilterRequest) -> Tensor:
    by = request.by or ("error" if CRAMER_RAO_BOUND in table.particles else "trace")
    values = _statistic(table, by)
    if request.quantile_of is None:
        return select(values, request.keep)
    threshold = quantile_threshold(_statistic(read_particle_file(request.quantile_of), by), request.keep)
    kept = (values <= threshold).nonzero()[:, 0]
    if len(kept) == 0:
        raise InputError(
            f"{table.path}: expected some as sure as the surest {request.keep:.0%} of "
            f"{request.quantile_of}, found none"
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
