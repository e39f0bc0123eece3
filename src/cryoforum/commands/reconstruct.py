"""Half maps, map and FSC of particles in files."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from cryoforum.commands.workflow import (
    MODEL_HALF,
    REFERENCE_HALF,
    STATISTICS,
    Bar,
    checked_particles,
    checked_poses,
    notices_to,
    read_tables_of,
)
from cryoforum.dataset.particle_table import ParticleTable, number_column
from cryoforum.dataset.volumes import HalfMaps
from cryoforum.io.join import joined
from cryoforum.io.mrc.maps import write_volume
from cryoforum.io.scratch import NO_SCRATCH, Scratch, on_scratch
from cryoforum.reconstruction.fsc import fsc_curve
from cryoforum.reconstruction.inversion import ReconstructionConfig, reconstruct
from cryoforum.storage.files import refuse_to_overwrite, replacing

MAP_FILES = ("half1.mrc", "half2.mrc", "map.mrc", "fsc.csv", "resolution.json")


def reconstruct_to_folder(
    paths: Sequence[Path],
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
    tables = read_tables_of(paths, tell)
    independent = all(map(halves_are_independent, tables))  # asked of each: joining may drop what tells it
    with notices_to(tell):
        table = joined(tables, root)
    particles = checked_particles(table, root, tell)
    checked_poses(table, particles, "to reconstruct")
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


def halves_are_independent(table: ParticleTable) -> bool:
    """Whether no prediction posed the particles, or each half set was posed by its own half's reference.

    Where there are two models, each half set by its own half's model, too.
    """
    if STATISTICS["trace"] not in table.particles.columns:
        return True
    columns = [number_column(table, name) for name in (MODEL_HALF, REFERENCE_HALF)]
    used, half_sets = [c for c in columns if c is not None], number_column(table, "rlnRandomSubset")
    return half_sets is not None and bool(used) and all(bool((half == half_sets).all()) for half in used)
