"""Predicting on files: any number of particles, by any number of processes, going on after a kill.

The rows are cut into the same batches whatever happens, and every finished batch is logged beside the
output. So a run that was killed, or shared among processes or shards, writes what an undisturbed one would;
to the last bit where threads and number format are the same too.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cryoforum.alignment.aligner import SCALE_RANGE, align_batch
from cryoforum.alignment.fitting import make_aligner
from cryoforum.commands.aligners import PredictionOptions, loaded_reference, predictor_of
from cryoforum.commands.half_set_models import Predictor
from cryoforum.commands.workflow import (
    MODEL_HALF,
    REFERENCE_HALF,
    Bar,
    checked_particles,
    parsed_shard,
    read_joined,
)
from cryoforum.dataset.particle_table import ParticleTable, number_column, select_rows, with_columns
from cryoforum.dataset.particles import Particles, loaded_batches
from cryoforum.dataset.poses import Poses
from cryoforum.dataset.predictions import Predictions
from cryoforum.dataset.split import PARTS, parts_of
from cryoforum.errors import InputError
from cryoforum.io.particle_files import check_writable, write_particle_file
from cryoforum.io.relion.particles import with_orientations, with_poses
from cryoforum.io.scratch import NO_SCRATCH, Scratch, on_scratch
from cryoforum.network.model import TrainedModel
from cryoforum.network.model_folder import DESCRIPTION, SPLIT, WEIGHTS, load_models, model_folders
from cryoforum.network.predict import BATCH_SIZE, grid_of
from cryoforum.reconstruction.reference_map import REFERENCE_FILES
from cryoforum.runtime.distributed import process_rank_and_count, refuse_different, wait_for_all
from cryoforum.storage.batch_log import BatchLog, read_batches
from cryoforum.storage.files import progress_path, refuse_to_overwrite, remove_leftovers_of, require_folder_of

_QUATERNION = ("qx", "qy", "qz", "qw")
EVIDENCE_COLUMNS = ("rlnMaxValueProbDistribution", "rlnParticleFigureOfMerit")
DEFOCUS_CHANGE = "cryoforumDefocusChange"
_SHIFT = ("shift_x_angstrom", "shift_y_angstrom")


@dataclass(frozen=True)
class Output:
    """Where the result goes, which share of the particles is done, and who is told.

    part: of the model's split. shard: "i/n" of the rows. finished: the last change to the columns_of_all before it is
    written.
    """

    path: Path
    bar: Bar
    part: str | None = None
    shard: str | None = None
    batch_size: int = BATCH_SIZE
    overwrite: bool = False
    tell: Callable[[str], None] = lambda line: None
    scratch: Scratch = NO_SCRATCH
    finished: Callable[[ParticleTable], ParticleTable] = lambda table: table


@dataclass(frozen=True)
class PoseSummary:
    """What was written: how many poses, and the medians of expected root mean square errors and bounds.

    bound_deg and weak, the number of images whose particle is hardly there, are None where nothing was
    compared with a reference. All but the count is None in any but the first of several processes.
    """

    count: int
    expected_error_deg: float | None = None
    bound_deg: float | None = None
    weak: int | None = None


def predict_to_file(
    model_folder: Path,
    paths: Sequence[Path],
    root: Path | None,
    options: PredictionOptions,
    output: Output,
) -> PoseSummary:
    """Write the STAR file with predicted poses and beliefs.

    Every row and column else is kept. Images of another box or pixel size than the model's are resampled to
    it. Goes on where an earlier run of the same command was killed. Of several
    processes each does its share of the rows, and the first one shows progress and writes the file.
    """
    _refuse_output(output)
    models = load_models(model_folder)
    table = read_joined(paths, root, output.tell)
    _refuse_input_as_output([*paths, *table.companions], output)
    inputs = _hash_of_files([*paths, *table.companions])
    return predict_rows_to_file(model_folder, models, table, root, options, output, inputs)


def predict_rows_to_file(
    model_folder: Path,
    models: Sequence[TrainedModel],
    table: ParticleTable,
    root: Path | None,
    options: PredictionOptions,
    output: Output,
    inputs: str = "",
) -> PoseSummary:
    """The same for parts that were read already, such as some rows of a file, whose path they bear.

    models: those of ``model_folder``. inputs: what the result depends on besides; an earlier run with other
    ones is not gone on with.
    """
    _refuse_output(output)
    check_writable(table, output.path, output.tell)
    particles = checked_particles(table, root, output.tell, grid_of(models[0]))
    if output.part is not None:
        chosen = _rows_of_part(models, particles, output.part, table.path)
        table, particles = select_rows(table, chosen), particles.select(chosen)
    inputs += hash_of_model(model_folder)
    rows = _rows_of_shard(len(table), output.shard, output.batch_size)
    with on_scratch(particles, rows, output.scratch, output.bar) as near:
        table, near, predict = predictor_of(model_folder, models, table, near, options, output.tell)
        return _write_poses(table, near, predict, inputs, options, output)


def align_to_file(
    paths: Sequence[Path],
    root: Path | None,
    symmetry: str,
    options: PredictionOptions,
    output: Output,
) -> PoseSummary:
    """The same without a model: candidates from the search over all orientations of a map.

    Map and images are resampled to the box and pixel size that most images have.
    """
    _refuse_output(output)
    table = read_joined(paths, root, output.tell)
    _refuse_input_as_output([*paths, *table.companions], output)
    check_writable(table, output.path, output.tell)
    particles = checked_particles(table, root, output.tell)
    reference = loaded_reference(options, particles, symmetry, output.tell)
    inputs = symmetry + _hash_of_files([*paths, *table.companions])
    rows = _rows_of_shard(len(table), output.shard, output.batch_size)
    with on_scratch(particles, rows, output.scratch, output.bar) as near:
        aligner = make_aligner(None, reference, near, options.posing, tell=output.tell)
        return _write_poses(table, near, lambda batch: align_batch(aligner, batch), inputs, options, output)


def _refuse_input_as_output(inputs: Sequence[Path], output: Output) -> None:
    """The poses that a file came with would be lost, also where --overwrite is given."""
    if Path(output.path).resolve() in {Path(path).resolve() for path in inputs}:
        raise InputError(f"expected another name at --out than the input's, found {output.path}")


def _refuse_output(output: Output) -> None:
    refuse_to_overwrite(output.path, output.overwrite)
    require_folder_of(output.path)
    if output.batch_size < 1:
        raise InputError(f"expected --batch-size of 1 or more, found {output.batch_size}")


def _write_poses(
    table: ParticleTable,
    particles: Particles,
    predict: Predictor,
    inputs: str,
    options: PredictionOptions,
    output: Output,
) -> PoseSummary:
    """Predict this process's share of the rows, batch by batch into a log; the first one writes the file."""
    batch_size, out = output.batch_size, output.path
    inputs += getattr(particles.images, "identity", "")
    rows = _rows_of_shard(len(table), output.shard, batch_size)
    if len(rows) < len(table):
        table, particles = select_rows(table, rows), particles.select(rows)
    rank, process_count = process_rank_and_count()
    shares = shares_of_batches(len(table), process_count, batch_size)
    job = _fingerprint(inputs, options, rows, particles, batch_size)
    fingerprints = [f"{job} {share.start}-{share.stop}" for share in shares]
    refuse_different((job, str(out.absolute())))
    logs = [progress_path(out, process, process_count) for process in range(process_count)]

    wait_for_all()  # nobody begins, let alone writes, before everyone has seen that nothing is in the way
    share = shares[rank]
    with BatchLog(logs[rank], fingerprints[rank], len(share), batch_size) as log:
        left = share[log.rows_done :]
        if log.rows_discarded and rank == 0:
            done = _spaced(log.rows_discarded)
            output.tell(f"starting anew: {done} particles were done with other options or files")
        if log.rows_done and rank == 0:
            output.tell(f"continuing: {_spaced(log.rows_done)} of {_spaced(len(share))} particles were done")
        if left:
            advance = output.bar("predicting", len(left)) if rank == 0 else _keep_silent
            for batch in loaded_batches(particles.select(_tensor(left)), batch_size):
                log.append(batch_columns(predict(batch)))
                advance(len(batch))
    wait_for_all()
    if rank > 0:
        return PoseSummary(len(table))
    finished = zip(logs, fingerprints, shares, strict=True)
    parts = [read_batches(path, made_by, len(done)) for path, made_by, done in finished if done]
    columns_of_all = _joined(parts)
    write_particle_file(output.finished(with_predictions(table, columns_of_all)), out)
    remove_leftovers_of(out)
    return _posed(columns_of_all)


def _posed(columns_of_all: Mapping[str, np.ndarray]) -> PoseSummary:
    errors, bounds, scales = (
        columns_of_all.get(name)
        for name in ("cryoforumExpectedErrorDeg", "cryoforumBoundDeg", "cryoforumSignalScale")
    )
    assert errors is not None
    return PoseSummary(
        len(errors),
        float(np.median(errors)),
        None if bounds is None else float(np.median(bounds)),
        None if scales is None else int((scales < SCALE_RANGE[0]).sum()),
    )


def batch_columns(predictions: Predictions) -> dict[str, np.ndarray]:
    """What is kept of a batch: float32 columns (b,) of the STAR file, and the pose as a quaternion.

    Errors are root mean squares in degrees: the one that the belief means and, where the image was compared
    with a reference, the Cramér-Rao bound.
    """
    posterior, evidence = predictions.posterior, predictions.evidence
    columns = dict(zip(_QUATERNION, posterior.mode.unbind(-1), strict=True))
    if predictions.shifts_angstrom is not None:
        columns |= dict(zip(_SHIFT, predictions.shifts_angstrom.unbind(-1), strict=True))
    columns |= {"cryoforumLambdaMax": posterior.lambda_max, "cryoforumTrace": posterior.trace}
    for row in range(4):
        for column in range(row, 4):
            columns[f"cryoforumA{row + 1}{column + 1}"] = posterior.concentration[:, row, column]
    columns["cryoforumExpectedErrorDeg"] = torch.rad2deg(predictions.expected_error_rad)
    columns["rlnParticleFigureOfMerit"] = predictions.figure_of_merit
    if predictions.model_half is not None:
        columns[MODEL_HALF] = predictions.model_half
    if evidence is not None:
        columns["cryoforumBoundDeg"] = torch.rad2deg(evidence.bound_rad)
        covariance = evidence.origin_covariance_angstrom2
        columns["cryoforumOriginErrorAngst"] = covariance.diagonal(dim1=1, dim2=2).sum(1).sqrt()
        columns["cryoforumLogLikelihoodGain"] = evidence.log_likelihood_gain
        columns["cryoforumSignalScale"] = evidence.signal_scale
        columns["rlnMaxValueProbDistribution"] = evidence.mode_probability
        columns[REFERENCE_HALF] = evidence.reference_half
        columns[DEFOCUS_CHANGE] = evidence.defocus_change_angstrom
    return {name: values.float().numpy() for name, values in columns.items()}


def with_predictions(table: ParticleTable, columns_of_all: Mapping[str, np.ndarray]) -> ParticleTable:
    """The file with the columns of all batches, their poses as RELION's angles and origins.

    Where no shifts were found those of the file stay, and so does the defocus. What an earlier prediction
    said beyond the pose is dropped.
    """
    earlier = [name for name in table.particles if name.startswith("cryoforum") or name in EVIDENCE_COLUMNS]
    table = replace(table, particles=table.particles.drop(columns=earlier))
    quaternions = torch.from_numpy(np.stack([columns_of_all[name] for name in _QUATERNION], axis=-1))
    columns = {name: values for name, values in columns_of_all.items() if name not in (*_QUATERNION, *_SHIFT)}
    for name in {MODEL_HALF, REFERENCE_HALF} & columns.keys():
        columns[name] = columns[name].astype(np.int64)
    change = columns.pop(DEFOCUS_CHANGE, np.zeros(1))
    if change.any():
        columns[DEFOCUS_CHANGE] = change
        for name in ("rlnDefocusU", "rlnDefocusV"):
            columns[name] = number_column(table, name) + change
    if _SHIFT[0] in columns_of_all:
        shifts = torch.from_numpy(np.stack([columns_of_all[name] for name in _SHIFT], axis=-1))
        return with_columns(with_poses(table, Poses(quaternions, shifts)), columns)
    return with_columns(with_orientations(table, quaternions), columns)


def shares_of_batches(row_count: int, share_count: int, batch_size: int) -> list[range]:
    """Contiguous rows for each of several workers: whole batches, as evenly as they go."""
    batch_count = -(-row_count // batch_size)
    edges = [batch_count * share // share_count * batch_size for share in range(share_count + 1)]
    return [range(start, min(stop, row_count)) for start, stop in zip(edges, edges[1:], strict=False)]


def _rows_of_shard(count: int, shard: str | None, batch_size: int) -> Tensor:
    """The share of ``count`` rows that ``shard`` "i/n" names; all where it is None."""
    if shard is None:
        return torch.arange(count)
    index, shard_count = parsed_shard(shard)
    shares = shares_of_batches(count, shard_count, batch_size)
    if not all(shares):
        raise InputError(
            f"expected --shard of at most {-(-count // batch_size)}, one for each batch of {batch_size} "
            f"of {count} particles, found {shard_count}; or lower --batch-size"
        )
    return _tensor(shares[index - 1])


def _rows_of_part(models: Sequence[TrainedModel], particles: Particles, part: str, path: Path) -> Tensor:
    if part not in PARTS:
        raise InputError(f"expected --part {', '.join(PARTS)}, found '{part}'")
    found = [parts_of(particles, model.parts, model.sources) for model in models]
    rows = [row for row, parts in enumerate(zip(*found, strict=True)) if part in parts]
    if not rows:
        raise InputError(f"{path}: none of its particles is in the {part} part of the model's split")
    return torch.tensor(rows)


def _fingerprint(
    inputs: str,
    options: PredictionOptions,
    rows: Tensor,
    particles: Particles,
    batch_size: int,
) -> str:
    """Hash of all that the result depends on: files, options, rows, images, batches, versions."""
    digest = hashlib.sha256(inputs.encode())
    maps = [Path(path) for path in (options.reference, options.mask) if path and Path(path).is_file()]
    digest.update(_hash_of_files(maps).encode())
    digest.update(repr(options).encode())
    digest.update(rows.numpy().tobytes())
    digest.update("\n".join(particles.names).encode())
    digest.update(f"{batch_size} {version('cryo-forum')} {torch.__version__}".encode())
    return digest.hexdigest()


def hash_of_model(model_folder: Path) -> str:
    """Hash of all files of one model or two that predictions depend on."""
    names = (WEIGHTS, DESCRIPTION, SPLIT, *REFERENCE_FILES)
    files = [folder / name for folder in model_folders(model_folder) for name in names]
    return _hash_of_files([path for path in files if path.is_file()])


def _hash_of_files(paths: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _joined(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([columns_of_all[name] for columns_of_all in parts]) for name in parts[0]}


def _tensor(rows: range) -> Tensor:
    return torch.arange(rows.start, rows.stop)


def _spaced(number: int) -> str:
    return f"{number:,}".replace(",", " ")


def _keep_silent(count: int) -> None:
    pass
