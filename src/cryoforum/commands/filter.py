"""Keep the particles whose orientation is most certain."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from cryoforum.commands.workflow import BOUND, STATISTICS
from cryoforum.curation.selection import quantile_threshold, select
from cryoforum.dataset.particle_table import ParticleTable, number_column, select_rows
from cryoforum.errors import InputError
from cryoforum.io.particle_files import check_writable, read_particle_file, write_particle_file
from cryoforum.storage.files import refuse_to_overwrite, require_folder_of


def _statistic(table: ParticleTable, by: str) -> Tensor:
    values = number_column(table, STATISTICS[by])
    if values is None:
        raise InputError(
            f"{table.path}: expected predicted poses with a column {STATISTICS[by]}, found none; run "
            "'cryoforum predict' or 'match' first"
        )
    return torch.from_numpy(values)


def filter_file(
    predictions_path: Path,
    keep: float,
    by: str | None,
    out: Path,
    dropped_out: Path | None,
    overwrite: bool,
    quantile_of: Path | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> tuple[int, int]:
    """Write the surest particles (and the others, where asked for); how many were kept and dropped.

    ``by`` None: the expected error where images were compared with a reference, as it alone knows of other
    modes; else the trace. ``quantile_of``: another file of predictions, whose surest share ``keep`` sets the
    threshold; then any number of particles may pass, but not none.
    """
    outputs = [Path(path) for path in (out, dropped_out) if path is not None]
    for path in outputs:
        refuse_to_overwrite(path, overwrite)
        require_folder_of(path)
    if len({path.resolve() for path in outputs}) < len(outputs):
        raise InputError(f"expected two files to write to, found {out} for both --out and --drop-out")
    if by is not None and by not in STATISTICS:
        raise InputError(f"expected --by {' or '.join(STATISTICS)}, found '{by}'")
    table = read_particle_file(predictions_path)
    inputs = {
        Path(path).resolve()
        for path in (predictions_path, quantile_of, *table.companions)
        if path is not None
    }
    for path in outputs:
        if path.resolve() in inputs:
            raise InputError(f"expected other names to write to than the input's, found {path}")
        check_writable(table, path, tell if path == outputs[0] else lambda line: None)
    by = by or ("error" if BOUND in table.particles else "trace")
    values = _statistic(table, by)
    if quantile_of is None:
        kept = select(values, keep)
    else:
        threshold = quantile_threshold(_statistic(read_particle_file(quantile_of), by), keep)
        kept = (values <= threshold).nonzero()[:, 0]
        if len(kept) == 0:
            raise InputError(
                f"{predictions_path}: expected some as sure as the surest {keep:.0%} of {quantile_of}, found none"
            )
    dropped = torch.ones(len(table), dtype=torch.bool)
    dropped[kept] = False
    write_particle_file(select_rows(table, kept), out)
    if dropped_out is not None and dropped.any():
        write_particle_file(select_rows(table, dropped.nonzero()[:, 0]), dropped_out)
    elif dropped_out is not None:
        Path(dropped_out).unlink(missing_ok=True)  # of an earlier run, which dropped some
    return len(kept), int(dropped.sum())
