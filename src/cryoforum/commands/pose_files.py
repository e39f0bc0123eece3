"""Poses written to a particle file, by any number of processes, going on after a kill.

The rows are cut into the same batches whatever happens, and every finished batch is logged beside the
output. So a run that was killed, or shared among processes or shards, writes what an undisturbed one would;
to the last bit where threads and precision are the same too.
"""

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cryoforum.alignment.aligner import Aligner
from cryoforum.curation.junk import is_probably_junk
from cryoforum.dataset.columns import CRAMER_RAO_BOUND, EXPECTED_ERROR, LOG_LIKELIHOOD_GAIN, SIGNAL_SCALE
from cryoforum.dataset.particle_set import ParticleSet
from cryoforum.dataset.particle_table import ParticleTable
from cryoforum.dataset.particles import loaded_batches
from cryoforum.errors import InputError, require
from cryoforum.io.particle_files import write_particle_file
from cryoforum.io.predictions import prediction_columns, with_predictions
from cryoforum.io.scratch import NO_SCRATCH, Scratch
from cryoforum.network.predict import BATCH_SIZE
from cryoforum.runtime.distributed import process_rank_and_count, refuse_different, wait_for_all
from cryoforum.runtime.reporter import SILENT, Reporter
from cryoforum.storage.batch_log import BatchLog, read_batches
from cryoforum.storage.files import check_output, progress_path, remove_leftovers_of

logger = logging.getLogger(__name__)

MOST_BOUNDS = 5.0  # median of the expected errors over that of the bounds, which is about 1


@dataclass(frozen=True)
class PoseOutput:
    """Where poses are written, and how the work is cut.

    Parameters
    ----------
    path
        A .star or .cs file.
    shard
        "i/n": only this part of the rows; None for all.
    batch_size
        Images at a time.
    overwrite
        Replace an existing file.
    scratch
        Fast disk that the stacks are copied to first.
    """

    path: Path
    shard: str | None = None
    batch_size: int = BATCH_SIZE
    overwrite: bool = False
    scratch: Scratch = NO_SCRATCH

    def __post_init__(self) -> None:
        require(self.batch_size >= 1, "--batch-size of 1 or more", self.batch_size)
        parsed_shard(self.shard)

    def check(self, inputs: Sequence[Path] = ()) -> None:
        """InputError where the file is in the way, its folder is missing, or it is one of the inputs."""
        check_output(self.path, self.overwrite)
        if Path(self.path).resolve() in {Path(path).resolve() for path in inputs}:
            raise InputError(f"expected another name at --out than the input's, found {self.path}")

    def rows(self, count: int) -> Tensor:
        """The rows of ``count`` that the shard names, whole batches."""
        index, shard_count = parsed_shard(self.shard)
        shares = shares_of_batches(count, shard_count, self.batch_size)
        if not all(shares):
            raise InputError(
                f"expected --shard of at most {-(-count // self.batch_size)}, one for each batch of "
                f"{self.batch_size} of {count} particles, found {shard_count}; or lower --batch-size"
            )
        return _tensor(shares[index - 1])


@dataclass(frozen=True)
class PoseSummary:
    """What was written: how many poses, and medians of their expected errors and Cramér-Rao lower bounds.

    bound_deg and junk, the number of images that probably hold no particle, are None where nothing was
    compared with a reference. All but the count is None in any but the first of several processes.
    """

    count: int
    expected_error_deg: float | None = None
    bound_deg: float | None = None
    junk: int | None = None


def write_poses(
    aligner: Aligner,
    particle_set: ParticleSet,
    output: PoseOutput,
    made_with: str,
    reporter: Reporter = SILENT,
    finished: Callable[[ParticleTable], ParticleTable] = lambda table: table,
) -> PoseSummary:
    """Align this process's share of the rows, batch by batch into a log; the first one writes the file.

    Parameters
    ----------
    made_with
        Text of everything else that the result depends on: an earlier run with another one is not continued.
    finished
        The last change to the table before it is written.
    """
    rows = output.rows(len(particle_set))
    if len(rows) < len(particle_set):
        particle_set = particle_set.select(rows)
    particles, batch_size = particle_set.particles, output.batch_size
    rank, process_count = process_rank_and_count()
    shares = shares_of_batches(len(particle_set), process_count, batch_size)
    job = _fingerprint(made_with, particle_set, rows, batch_size)
    fingerprints = [f"{job} {share.start}-{share.stop}" for share in shares]
    refuse_different((job, str(Path(output.path).absolute())))
    logs = [progress_path(output.path, process, process_count) for process in range(process_count)]

    wait_for_all()  # nobody begins, let alone writes, before everyone has seen that nothing is in the way
    share = shares[rank]
    with BatchLog(logs[rank], fingerprints[rank], len(share), batch_size) as log:
        left = share[log.rows_done :]
        if rank == 0:
            _say_where_it_goes_on(log, len(share))
        if left:
            advance = (reporter if rank == 0 else SILENT).progress("aligning", len(left))
            for batch in loaded_batches(particles.select(_tensor(left)), batch_size):
                log.append(prediction_columns(aligner.align_batch(batch)))
                advance(len(batch))
    wait_for_all()
    if rank > 0:
        return PoseSummary(len(particle_set))
    done = zip(logs, fingerprints, shares, strict=True)
    parts = [read_batches(path, made_by, len(part)) for path, made_by, part in done if part]
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    write_particle_file(finished(with_predictions(particle_set.table, columns)), output.path)
    remove_leftovers_of(output.path)
    return summary_of(columns)


def _say_where_it_goes_on(log: BatchLog, count: int) -> None:
    if log.rows_discarded:
        logger.info(
            f"starting anew: {_spaced(log.rows_discarded)} particles were done with other options or files"
        )
    if log.rows_done:
        logger.info(f"continuing: {_spaced(log.rows_done)} of {_spaced(count)} particles were done")


def summary_of(columns: Mapping[str, np.ndarray]) -> PoseSummary:
    """Medians of written columns; a warning where the errors are far above what the images allow."""
    errors = columns[EXPECTED_ERROR]
    median = float(np.median(errors))
    if CRAMER_RAO_BOUND not in columns:
        return PoseSummary(len(errors), median)
    bound = float(np.median(columns[CRAMER_RAO_BOUND]))
    evidence = (torch.tensor(columns[name]) for name in (SIGNAL_SCALE, LOG_LIKELIHOOD_GAIN, EXPECTED_ERROR))
    junk = int(is_probably_junk(*evidence).sum())
    if median > MOST_BOUNDS * bound:
        logger.warning(
            f"the expected errors (median {median:.1f}°) are far above the bound ({bound:.2f}°): most images "
            "do not fit the reference at a single pose; the likeliest cause is a wrong pixel size of the "
            "reference (--map-pixel-size), then another molecule, images without particles, or a symmetry "
            "that was not given"
        )
    return PoseSummary(len(errors), median, bound, junk)


def parsed_shard(shard: str | None) -> tuple[int, int]:
    """Number, from 1, and count of a shard written as "1/4"; None is the one of one."""
    if shard is None:
        return 1, 1
    number, _, count = shard.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise InputError(f"expected --shard as 1/4, 2/4, 3/4 or 4/4, found '{shard}'")
    return int(number), int(count)


def shares_of_batches(row_count: int, share_count: int, batch_size: int) -> list[range]:
    """Contiguous rows for each of several workers: whole batches, as evenly as they go."""
    batch_count = -(-row_count // batch_size)
    edges = [batch_count * share // share_count * batch_size for share in range(share_count + 1)]
    return [range(start, min(stop, row_count)) for start, stop in zip(edges, edges[1:], strict=False)]


def _fingerprint(made_with: str, particle_set: ParticleSet, rows: Tensor, batch_size: int) -> str:
    """Hash of all that the result depends on: files, options, rows, images, batches, versions."""
    particles = particle_set.particles
    digest = hashlib.sha256(made_with.encode())
    digest.update(str(getattr(particles.images, "identity", "")).encode())
    digest.update(rows.numpy().tobytes())
    digest.update("\n".join(particles.names).encode())
    digest.update(f"{batch_size} {version('cryo-forum')} {torch.__version__}".encode())
    return digest.hexdigest()


def hash_of_files(paths: Sequence[Path]) -> str:
    """Hash of the content of several files."""
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _tensor(rows: range) -> Tensor:
    return torch.arange(rows.start, rows.stop)


def _spaced(number: int) -> str:
    return f"{number:,}".replace(",", " ")
