"""Predicting on files: any number of particles, by any number of processes, going on after a kill.

The rows are cut into the same batches whatever happens, and every finished batch is logged beside the
output. So a run that was killed, or shared among processes or shards, writes what an undisturbed one would;
to the last bit where threads and number format are the same too.
"""

import hashlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cryoforum.checkpoint import PARTS, TrainedModel, load_model
from cryoforum.compute import process_rank_and_count, wait_for_all
from cryoforum.finding import make_poser
from cryoforum.inference import BATCH_SIZE, check_compatible, predict_batch
from cryoforum.io.batchlog import BatchLog, read_batches
from cryoforum.io.files import (
    is_leftover,
    progress_path,
    refuse_to_overwrite,
    remove_leftovers_of,
    require_folder_of,
)
from cryoforum.io.formats import read_particle_file, write_particle_file
from cryoforum.io.mrc import LazyImages
from cryoforum.io.star import (
    ParticleStar,
    number_column,
    select_rows,
    with_columns,
    with_orientations,
    with_poses,
)
from cryoforum.particles import Particles, Poses, Predictions, loaded_batches
from cryoforum.posing import PosingConfig, pose_batch, predict_with_shifts
from cryoforum.reconstruction import drawn_subsets
from cryoforum.reference import Reference, load_reference, reference_from_map
from cryoforum.structures import load_structure
from cryoforum.workflow import REFERENCE_HALF, Bar, checked_particles, parsed_shard

_QUATERNION = ("qx", "qy", "qz", "qw")
EVIDENCE_COLUMNS = ("rlnMaxValueProbDistribution", "rlnParticleFigureOfMerit")
DEFOCUS_CHANGE = "cryoforumDefocusChange"
_SHIFT = ("shift_x_angstrom", "shift_y_angstrom")


@dataclass(frozen=True)
class PredictionOptions:
    """How poses are found.

    polish: compare with a reference; None: wherever there is one. reference: a map or structure to use
    instead of the model's own, up to ``resolution_angstrom``. halves: each half set against its own half's
    reference; None: where the particles have half sets and the reference has halves.
    """

    polish: bool | None = None
    reference: str | None = None
    resolution_angstrom: float | None = None
    halves: bool | None = None
    posing: PosingConfig = field(default_factory=PosingConfig)

    def __post_init__(self) -> None:
        if self.polish is False and (self.posing.refine_defocus or self.posing.refine_scale):
            raise ValueError("expected --refine-defocus or --refine-scale with polishing, found --no-polish")
        if self.polish and self.posing.views is not None:
            raise ValueError("expected --views with --no-polish, found --polish: polishing has the last word")
        if self.resolution_angstrom is not None and self.reference is None:
            raise ValueError(
                "expected --resolution with --reference; the model's own knows how far it is right"
            )


@dataclass(frozen=True)
class Output:
    """Where the result goes, which share of the particles is done, and who is told.

    part: of the model's split. shard: "i/n" of the rows.
    """

    path: Path
    bar: Bar
    part: str | None = None
    shard: str | None = None
    batch_size: int = BATCH_SIZE
    overwrite: bool = False
    tell: Callable[[str], None] = lambda line: None


def predict_to_star(
    model_folder: Path, star_path: Path, root: Path | None, options: PredictionOptions, output: Output
) -> int:
    """Write the STAR file with predicted poses and beliefs; the number of its rows.

    Every row and column else is kept. Goes on where an earlier run of the same command was killed. Of several
    processes each does its share of the rows, and the first one shows progress and writes the file.
    """
    _refuse_output(output)
    return predict_rows_to_star(model_folder, read_particle_file(star_path), root, options, output)


def predict_rows_to_star(
    model_folder: Path, star: ParticleStar, root: Path | None, options: PredictionOptions, output: Output
) -> int:
    """The same for tables that were read already, such as some rows of a file, whose path they bear."""
    _refuse_output(output)
    model = load_model(model_folder)
    if output.part is not None:
        star = select_rows(star, _rows_of_part(model, star, output.part))
    particles = checked_particles(star, root)
    check_compatible(model, particles)
    if options.reference is None:
        reference = load_reference(model_folder)
    else:
        reference = _loaded_reference(options, particles, model.config.symmetry, output.tell)
    if reference is None:
        _refuse_without_reference(model_folder, options)
        output.tell("the model has no reference: orientations of the network alone, origins stay as they are")
    if options.halves and particles.subsets is None:
        output.tell("no rlnRandomSubset: half sets are drawn and written")
    star, particles, halves = _with_half_sets(star, particles, model, reference, options.halves)
    inputs = hash_of_model(model_folder, without=output.path)
    if reference is None:
        return _write_poses(
            star,
            particles,
            lambda batch: predict_batch(model, batch, options.posing.views),
            inputs,
            options,
            output,
        )
    posing, pose = options.posing, pose_batch
    if options.polish is None and posing.views is not None:
        raise ValueError("expected --views with --no-polish, as polishing has the last word; add it")
    if options.polish is False:
        posing, pose = replace(posing, source=posing.source or "network"), predict_with_shifts
    poser = make_poser(model, reference, particles, posing, halves=halves, tell=output.tell)
    return _write_poses(star, particles, lambda batch: pose(poser, batch), inputs, options, output)


def _refuse_without_reference(model_folder: Path, options: PredictionOptions) -> None:
    """ValueError where something was asked for that only a comparison with a reference can give."""
    posing = options.posing
    refining = posing.refine_defocus or posing.refine_scale
    if options.polish or options.halves or refining or posing.source in ("search", "both"):
        raise ValueError(
            f"{model_folder} has no reference to compare images with; give a map with --reference"
        )


def match_to_star(
    star_path: Path, root: Path | None, symmetry: str, options: PredictionOptions, output: Output
) -> int:
    """The same without a model: candidates from the search over all orientations of a map."""
    _refuse_output(output)
    star = read_particle_file(star_path)
    particles = checked_particles(star, root)
    reference = _loaded_reference(options, particles, symmetry, output.tell)
    poser = make_poser(None, reference, particles, options.posing, tell=output.tell)
    return _write_poses(star, particles, lambda batch: pose_batch(poser, batch), symmetry, options, output)


def _loaded_reference(
    options: PredictionOptions, particles: Particles, symmetry: str, tell: Callable[[str], None]
) -> Reference:
    """A map from elsewhere at the particles' box and pixel size; resampling is said aloud."""
    with warnings.catch_warnings(record=True) as notices:
        warnings.simplefilter("always")
        volume = load_structure(options.reference or "", particles.box, particles.pixel_size_angstrom)
    for notice in notices:
        tell(str(notice.message))
    return reference_from_map(volume, symmetry, options.resolution_angstrom)


def _with_half_sets(
    star: ParticleStar,
    particles: Particles,
    model: TrainedModel,
    reference: Reference | None,
    wanted: bool | None,
) -> tuple[ParticleStar, Particles, bool]:
    """Table and particles with half sets where they are wanted, and whether they are kept apart."""
    possible = reference is not None and reference.halves is not None
    if wanted and not possible:
        raise ValueError("expected a reference with half maps for --halves; leave out --reference")
    if not possible or wanted is False or (wanted is None and particles.subsets is None):
        return star, particles, False
    if particles.subsets is None:
        if any(model.parts.get(name) == "train" for name in particles.names):
            raise ValueError(
                f"{star.path}: expected rlnRandomSubset for --halves, as some of these particles are in the "
                "map of one half of the training"
            )
        subsets = drawn_subsets(len(star))
        star = with_columns(star, {"rlnRandomSubset": subsets})
        particles = replace(particles, subsets=subsets)
    return star, particles, True


def _refuse_output(output: Output) -> None:
    refuse_to_overwrite(output.path, output.overwrite)
    require_folder_of(output.path)
    if output.batch_size < 1:
        raise ValueError(f"expected --batch-size of 1 or more, found {output.batch_size}")


def _write_poses(
    star: ParticleStar,
    particles: Particles,
    predict: Callable[[Particles], Predictions],
    inputs: str,
    options: PredictionOptions,
    output: Output,
) -> int:
    """Predict this process's share of the rows, batch by batch into a log; the first one writes the file."""
    batch_size, out = output.batch_size, output.path
    inputs += particles.images.identity if isinstance(particles.images, LazyImages) else ""
    rows = _rows_of_shard(len(star), output.shard, batch_size)
    if len(rows) < len(star):
        star, particles = select_rows(star, rows), particles.select(rows)
    rank, process_count = process_rank_and_count()
    shares = shares_of_batches(len(star), process_count, batch_size)
    job = _fingerprint(inputs, star, options, rows, particles, batch_size)
    fingerprints = [f"{job} {share.start}-{share.stop}" for share in shares]
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
    if rank == 0:
        finished = zip(logs, fingerprints, shares, strict=True)
        tables = [read_batches(path, made_by, len(done)) for path, made_by, done in finished if done]
        write_particle_file(with_predictions(star, _joined(tables)), out)
        remove_leftovers_of(out)
    return len(star)


def batch_columns(predictions: Predictions) -> dict[str, np.ndarray]:
    """What is kept of a batch: float32 columns (b,) of the STAR file, and the pose as a quaternion.

    Errors are root mean squares in degrees: the one that the belief means and, where the image was compared
    with a reference, the Cramér-Rao bound.
    """
    belief, evidence = predictions.belief, predictions.evidence
    columns = dict(zip(_QUATERNION, belief.mode.unbind(-1), strict=True))
    if predictions.shifts_angstrom is not None:
        columns |= dict(zip(_SHIFT, predictions.shifts_angstrom.unbind(-1), strict=True))
    columns |= {"cryoforumLambdaMax": belief.lambda_max, "cryoforumTrace": belief.trace}
    for row in range(4):
        for column in range(row, 4):
            columns[f"cryoforumA{row + 1}{column + 1}"] = belief.concentration[:, row, column]
    columns["cryoforumExpectedErrorDeg"] = torch.rad2deg(predictions.expected_error_rad)
    columns["rlnParticleFigureOfMerit"] = predictions.figure_of_merit
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


def with_predictions(star: ParticleStar, table: Mapping[str, np.ndarray]) -> ParticleStar:
    """The file with the columns of all batches, their poses as RELION's angles and origins.

    Where no shifts were found those of the file stay, and so does the defocus. What an earlier prediction
    said beyond the pose is dropped.
    """
    earlier = [name for name in star.particles if name.startswith("cryoforum") or name in EVIDENCE_COLUMNS]
    star = replace(star, particles=star.particles.drop(columns=earlier))
    quaternions = torch.from_numpy(np.stack([table[name] for name in _QUATERNION], axis=-1))
    columns = {name: values for name, values in table.items() if name not in (*_QUATERNION, *_SHIFT)}
    if REFERENCE_HALF in columns:
        columns[REFERENCE_HALF] = columns[REFERENCE_HALF].astype(np.int64)
    change = columns.pop(DEFOCUS_CHANGE, np.zeros(1))
    if change.any():
        columns[DEFOCUS_CHANGE] = change
        for name in ("rlnDefocusU", "rlnDefocusV"):
            columns[name] = number_column(star, name) + change
    if _SHIFT[0] in table:
        shifts = torch.from_numpy(np.stack([table[name] for name in _SHIFT], axis=-1))
        return with_columns(with_poses(star, Poses(quaternions, shifts)), columns)
    return with_columns(with_orientations(star, quaternions), columns)


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
        raise ValueError(
            f"expected --shard of at most {-(-count // batch_size)}, one for each batch of {batch_size} "
            f"of {count} particles, found {shard_count}; or lower --batch-size"
        )
    return _tensor(shares[index - 1])


def _rows_of_part(model: TrainedModel, star: ParticleStar, part: str) -> Tensor:
    if part not in PARTS:
        raise ValueError(f"expected --part {', '.join(PARTS)}, found '{part}'")
    names = star.particles["rlnImageName"].tolist()
    rows = [row for row, name in enumerate(names) if model.parts.get(name) == part]
    if not rows:
        raise ValueError(f"{star.path}: none of its particles is in the {part} part of the model's split")
    return torch.tensor(rows)


def _fingerprint(
    inputs: str,
    star: ParticleStar,
    options: PredictionOptions,
    rows: Tensor,
    particles: Particles,
    batch_size: int,
) -> str:
    """Hash of all that the result depends on: files, options, rows, images, batches, versions."""
    digest = hashlib.sha256(inputs.encode())
    maps = [Path(options.reference)] if options.reference and Path(options.reference).is_file() else []
    digest.update(_hash_of_files([star.path, *maps]).encode())
    digest.update(repr(options).encode())
    digest.update(rows.numpy().tobytes())
    digest.update("\n".join(particles.names).encode())
    digest.update(f"{batch_size} {version('cryo-forum')} {torch.__version__}".encode())
    return digest.hexdigest()


def hash_of_model(folder: Path, without: Path | None = None) -> str:
    """Hash of the files in a model folder, but for one that is no part of it."""
    files = sorted(path for path in Path(folder).iterdir() if path.is_file() and not is_leftover(path))
    return _hash_of_files([path for path in files if without is None or path.resolve() != without.resolve()])


def _hash_of_files(paths: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _joined(tables: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([table[name] for table in tables]) for name in tables[0]}


def _tensor(rows: range) -> Tensor:
    return torch.arange(rows.start, rows.stop)


def _spaced(number: int) -> str:
    return f"{number:,}".replace(",", " ")


def _keep_silent(count: int) -> None:
    pass
