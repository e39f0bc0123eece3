"""The steps on files: read, call one verb, write. The command line and the demonstration share them."""

import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from cryoforum.config import SimulationConfig
from cryoforum.curation.selection import quantile_threshold, select
from cryoforum.dataset.particle_table import ParticleStar, missing_columns, number_column, select_rows
from cryoforum.dataset.particles import HalfMaps, Particles, Poses, all_rows
from cryoforum.dataset.resampling import Sampling
from cryoforum.imaging.potential import load_structure
from cryoforum.imaging.simulation import simulate
from cryoforum.io.join import joined
from cryoforum.io.mrc.maps import write_volume
from cryoforum.io.mrc.stacks import write_stack
from cryoforum.io.particle_files import check_writable, read_each, read_particle_file, write_particle_file
from cryoforum.io.relion.particles import (
    CTF_COLUMNS,
    has_only_2d_alignments,
    particles_from_star,
    poses_from_star,
    star_from_particles,
)
from cryoforum.io.scratch import NO_SCRATCH, Scratch, on_scratch
from cryoforum.reconstruction.fsc import ErrorSummary, fsc_curve, orientation_errors, summarise_errors
from cryoforum.reconstruction.inversion import ReconstructionConfig, drawn_subsets, reconstruct
from cryoforum.storage.files import refuse_to_overwrite, replacing, require_folder_of

# Shows a long step: bar(description, total) gives a function that is told how many more are done.
Bar = Callable[[str, int], Callable[[int], None]]
STATISTICS = {
    "trace": "cryoforumTrace",
    "max": "cryoforumLambdaMax",
    "gap": "cryoforumLambdaMax",  # the first eigengap is -Λmax
    "error": "cryoforumExpectedErrorDeg",
}
BOUND = "cryoforumBoundDeg"
REFERENCE_HALF = "cryoforumReferenceHalf"
MODEL_HALF = "cryoforumModelHalf"
MAP_FILES = ("half1.mrc", "half2.mrc", "map.mrc", "fsc.csv", "resolution.json")


def simulate_to_folder(
    structure: str,
    box: int,
    pixel_size: float,
    config: SimulationConfig,
    out: Path,
    bar: Bar,
    overwrite: bool,
    tell: Callable[[str], None] = lambda line: None,
    map_pixel_size: float | None = None,
) -> Path:
    """Write particles.star, with half sets, and particles.mrcs into ``out``; the path of the STAR file."""
    out = Path(out)
    for name in ("particles.star", "particles.mrcs"):
        refuse_to_overwrite(out / name, overwrite)
    with notices_to(tell):
        volume = load_structure(structure, box, pixel_size, map_pixel_size)
    particles = simulate(volume, config)
    out.mkdir(parents=True, exist_ok=True)
    advance = bar("simulating", len(particles))

    def batches() -> Iterator[Tensor]:
        for rows in all_rows(len(particles), 128):
            yield particles.images[rows]
            advance(len(rows))

    write_stack(out / "particles.mrcs", batches(), len(particles), box, pixel_size)
    halved = replace(particles, subsets=drawn_subsets(len(particles), config.seed))
    write_particle_file(star_from_particles(halved, particles.names), out / "particles.star")
    return out / "particles.star"


def _statistic(star: ParticleStar, by: str) -> Tensor:
    values = number_column(star, STATISTICS[by])
    if values is None:
        raise ValueError(
            f"{star.path}: expected predicted poses with a column {STATISTICS[by]}, found none; run "
            "'cryoforum predict' or 'match' first"
        )
    return torch.from_numpy(values)


def parsed_shard(shard: str) -> tuple[int, int]:
    """Number, from 1, and count of a shard written as "1/4"."""
    number, _, count = shard.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise ValueError(f"expected --shard as 1/4, 2/4, 3/4 or 4/4, found '{shard}'")
    return int(number), int(count)


def filter_star(
    star_path: Path,
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
        raise ValueError(f"expected two files to write to, found {out} for both --out and --drop-out")
    if by is not None and by not in STATISTICS:
        raise ValueError(f"expected --by {' or '.join(STATISTICS)}, found '{by}'")
    star = read_particle_file(star_path)
    inputs = {Path(path).resolve() for path in (star_path, quantile_of, *star.companions) if path is not None}
    for path in outputs:
        if path.resolve() in inputs:
            raise ValueError(f"expected other names to write to than the input's, found {path}")
        check_writable(star, path, tell if path == outputs[0] else lambda line: None)
    by = by or ("error" if BOUND in star.particles else "trace")
    values = _statistic(star, by)
    if quantile_of is None:
        kept = select(values, keep)
    else:
        threshold = quantile_threshold(_statistic(read_particle_file(quantile_of), by), keep)
        kept = (values <= threshold).nonzero()[:, 0]
        if len(kept) == 0:
            raise ValueError(
                f"{star_path}: expected some as sure as the surest {keep:.0%} of {quantile_of}, found none"
            )
    dropped = torch.ones(len(star), dtype=torch.bool)
    dropped[kept] = False
    write_particle_file(select_rows(star, kept), out)
    if dropped_out is not None and dropped.any():
        write_particle_file(select_rows(star, dropped.nonzero()[:, 0]), dropped_out)
    elif dropped_out is not None:
        Path(dropped_out).unlink(missing_ok=True)  # of an earlier run, which dropped some
    return len(kept), int(dropped.sum())


def reconstruct_to_folder(
    star_paths: Sequence[Path],
    root: Path | None,
    out: Path,
    *,
    symmetry: str = "C1",
    overwrite: bool,
    bar: Bar,
    tell: Callable[[str], None] = lambda line: None,
    scratch: Scratch = NO_SCRATCH,
) -> dict[str, float | bool]:
    """Write half maps, map, FSC and resolution in Å; "independent" in the result is about the halves.

    They are not independent where one reference or one network posed both halves.
    """
    config = ReconstructionConfig(symmetry=symmetry)
    stars = read_stars(star_paths, tell)
    independent = all(map(halves_are_independent, stars))  # asked of each: joining may drop what tells it
    with notices_to(tell):
        star = joined(stars, root)
    particles = checked_particles(star, root, tell)
    checked_poses(star, particles, "to reconstruct")
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    for name in MAP_FILES:
        refuse_to_overwrite(out / name, overwrite)
    with on_scratch(particles, torch.arange(len(particles)), scratch, bar) as near:
        progress = bar("reconstructing", len(near))
        maps = reconstruct(near, config, independent=independent, progress=progress)
    return write_maps(maps, out)


def write_maps(maps: HalfMaps, folder: Path) -> dict[str, float | bool]:
    """Write `MAP_FILES` into ``folder``, each atomically; the resolution in Å and whether it is honest."""
    *map_paths, fsc_path, resolution_path = (Path(folder) / name for name in MAP_FILES)
    for volume, path in zip((maps.half1, maps.half2, maps.full), map_paths, strict=True):
        write_volume(volume, path)
    curve = fsc_curve(maps)
    with replacing(fsc_path) as temporary:
        curve.table().to_csv(temporary, index=False)
    result = {
        "unmasked": curve.unmasked_resolution_angstrom,
        "masked": curve.masked_resolution_angstrom,
        "independent": maps.independent,
    }
    with replacing(resolution_path) as temporary:
        temporary.write_text(json.dumps(result, indent=2) + "\n")
    return result


def halves_are_independent(star: ParticleStar) -> bool:
    """Whether no prediction posed the particles, or each half set was posed by its own half's reference.

    Where there are two models, each half set by its own half's model, too.
    """
    if STATISTICS["trace"] not in star.particles.columns:
        return True
    columns = [number_column(star, name) for name in (MODEL_HALF, REFERENCE_HALF)]
    used, subsets = [c for c in columns if c is not None], number_column(star, "rlnRandomSubset")
    return subsets is not None and bool(used) and all(bool((half == subsets).all()) for half in used)


def compare_stars(
    predicted_path: Path,
    truth_path: Path,
    json_path: Path | None,
    overwrite: bool,
    symmetry: str = "C1",
) -> ErrorSummary:
    """Orientation errors of the particles of the first file, matched by image name."""
    if json_path is not None:
        refuse_to_overwrite(json_path, overwrite)
        require_folder_of(json_path)
    predicted, truth = read_particle_file(predicted_path), read_particle_file(truth_path)
    errors = matched_errors(predicted, truth, symmetry)
    summary = summarise_errors(errors)
    if json_path is not None:
        with replacing(json_path) as temporary:
            temporary.write_text(json.dumps(summary.to_dict(), indent=2) + "\n")
    return summary


def median_shift_error_angstrom(predicted_path: Path, truth_path: Path) -> float:
    """Of the same particles: median distance between origins."""
    errors = matched_shift_errors_angstrom(read_particle_file(predicted_path), read_particle_file(truth_path))
    return float(errors.quantile(0.5))


def matched_errors(predicted: ParticleStar, truth: ParticleStar, symmetry: str = "C1") -> Tensor:
    """Geodesic errors in radians, in the order of ``predicted``; every particle must be in ``truth``."""
    found, true = _matched_poses(predicted, truth)
    return orientation_errors(found.quaternions, true.quaternions, symmetry)


def matched_shift_errors_angstrom(predicted: ParticleStar, truth: ParticleStar) -> Tensor:
    """Distances in Å between origins, in the order of ``predicted``; every particle must be in ``truth``."""
    found, true = _matched_poses(predicted, truth)
    return torch.linalg.vector_norm(found.shifts_angstrom - true.shifts_angstrom, dim=1)


def _matched_poses(predicted: ParticleStar, truth: ParticleStar) -> tuple[Poses, Poses]:
    """Poses of ``predicted`` and those of the same image names in ``truth``."""
    poses = []
    for star in (predicted, truth):
        found = poses_from_star(star)
        if found is None:
            raise ValueError(f"{star.path}: expected rlnAngleRot, rlnAngleTilt and rlnAnglePsi to compare")
        poses.append(found)
    row_of_name = {name: row for row, name in enumerate(truth.particles["rlnImageName"])}
    rows = []
    for name in predicted.particles["rlnImageName"]:
        if name not in row_of_name:
            raise ValueError(f"{truth.path}: expected image {name} of {predicted.path}, found none")
        rows.append(row_of_name[name])
    return poses[0], poses[1][torch.tensor(rows)]


def read_joined(
    paths: Sequence[Path], root: Path | None, tell: Callable[[str], None] = lambda line: None
) -> ParticleStar:
    """The tables of one or several particle files as one; ``tell`` is told what joining changed."""
    stars = read_stars(paths, tell)
    with notices_to(tell):
        return joined(stars, root)


def read_stars(paths: Sequence[Path], tell: Callable[[str], None] = lambda line: None) -> list[ParticleStar]:
    """The tables of each particle file; ``tell`` is told which were merged into one."""
    if not paths:
        raise ValueError("expected a particle file, found none")
    stars = read_each(paths)
    for companion in (path for star in stars for path in star.companions):
        tell(f"merged with {companion}")
    return stars


def checked_particles(
    star: ParticleStar,
    root: Path | None,
    tell: Callable[[str], None] = lambda line: None,
    sampling: Sampling | None = None,
) -> Particles:
    """The particles of a file that has all of the CTF or none of it: half of it is an oversight.

    ``tell`` is told what is odd about them, though they can be read. ``sampling`` as in
    `particles_from_star`.
    """
    missing = missing_columns(star, CTF_COLUMNS)
    if missing and not missing_columns(star, ["rlnDefocusU"]):
        raise ValueError(f"{star.path}: expected {missing[0]} for the CTF, found none; add the column")
    with notices_to(tell):
        return particles_from_star(star, root, sampling)


@contextmanager
def notices_to(tell: Callable[[str], None]) -> Iterator[None]:
    """Tell, a line each, what the block warns of."""
    with warnings.catch_warnings(record=True) as notices:
        warnings.simplefilter("always")
        yield
    for notice in notices:
        tell(str(notice.message))


def checked_poses(star: ParticleStar, particles: Particles, purpose: str) -> Poses:
    """The poses; ValueError where there are none, or all orientations are one, as before a refinement."""
    poses = particles.poses
    if poses is None:
        found = "2D alignments only; run a 3D refinement" if has_only_2d_alignments(star) else "none"
        raise ValueError(
            f"{star.path}: expected rlnAngleRot, rlnAngleTilt and rlnAnglePsi {purpose}, found {found}"
        )
    if len(poses) > 1 and bool((poses.quaternions == poses.quaternions[0]).all()):
        raise ValueError(
            f"{star.path}: expected the orientations of a refinement {purpose}, found the same one in all "
            f"{len(poses)} rows; predict them first"
        )
    return poses
