"""Half maps, map and FSC of particles in files."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from cryoforum.dataset.repeats import refuse_oversights, repeats_of
from cryoforum.dataset.volumes import HalfMaps, Volume
from cryoforum.io.join import joined
from cryoforum.io.mrc.maps import write_volume
from cryoforum.io.particle_files import checked_poses, particle_set_of, read_files
from cryoforum.io.predictions import half_sets_are_independent
from cryoforum.io.scratch import NO_SCRATCH, Scratch, on_scratch
from cryoforum.reconstruction import inversion
from cryoforum.reconstruction.postprocess import corrected_fsc, postprocessed
from cryoforum.runtime.reporter import SILENT, Reporter
from cryoforum.storage.files import refuse_to_overwrite, replacing, write_json
from cryoforum.storage.locks import taken

logger = logging.getLogger(__name__)

MAP_FILES = (
    *("half1.mrc", "half2.mrc", "map.mrc", "mask.mrc", "postprocessed.mrc"),
    *("fsc.csv", "resolution.json"),
)


@dataclass(frozen=True)
class ReconstructRequest:
    """What `cryoforum reconstruct` is asked for.

    Parameters
    ----------
    particles
        Files of particles with poses, joined where there are several.
    out
        Folder for `MAP_FILES`.
    root
        Folder that image names are looked for in first.
    symmetry
        Point group of the molecule.
    overwrite
        Replace what is there.
    scratch
        Fast disk that the stacks are copied to first.
    keep_ramp
        Leave in each image the ramp that a gradient of the ice left; else it is removed first of all.
    drop_unusable
        Leave out particles whose numbers are none or cannot be; else they are refused.
    """

    particles: Sequence[Path]
    out: Path
    root: Path | None = None
    symmetry: str = "C1"
    overwrite: bool = False
    scratch: Scratch = NO_SCRATCH
    keep_ramp: bool = False
    drop_unusable: bool = False


def reconstruct(request: ReconstructRequest, reporter: Reporter = SILENT) -> dict[str, float | bool]:
    """Write half maps, map, FSC and resolution in Å; "independent" in the result is about the half sets.

    They are not independent where one reference or one network aligned both, nor where the file has none.
    """
    config = inversion.ReconstructionConfig(symmetry=request.symmetry)
    tables = read_files(request.particles, request.drop_unusable)
    independent = all(map(half_sets_are_independent, tables))  # of each: joining may drop what tells it
    particle_set = particle_set_of(joined(tables, request.root), request.root, keep_ramp=request.keep_ramp)
    checked_poses(particle_set, "to reconstruct")
    refuse_oversights(particle_set.table, repeats_of(particle_set.particles))
    out, particles = Path(request.out), particle_set.particles
    if particles.half_sets is None:
        logger.warning("no rlnRandomSubset: half sets are drawn, and poses may depend on both of them")
        independent = False
    with taken(out) as hold:
        for name in MAP_FILES:
            refuse_to_overwrite(out / name, request.overwrite)
        with on_scratch(particles, torch.arange(len(particles)), request.scratch, reporter) as near:
            progress = reporter.progress("reconstructing", len(near))
            maps = inversion.reconstruct(near, config, independent=independent, progress=progress)
        hold.check()
        return write_maps(maps, out)


def write_maps(maps: HalfMaps, folder: Path) -> dict[str, float | bool]:
    """Write `MAP_FILES`, each atomically; resolutions in Å, and whether the halves are independent.

    "corrected" in the result is the masked resolution without what the mask adds: the one to publish, where
    the halves are independent; "b_factor_angstrom2" that of postprocessed.mrc, where it could be found.
    """
    *map_paths, fsc_path, resolution_path = (Path(folder) / name for name in MAP_FILES)
    fsc = corrected_fsc(maps)
    mask, sharpened = Volume(fsc.mask, maps.full.pixel_size_angstrom), postprocessed(maps, fsc)
    volumes = maps.half1, maps.half2, maps.full, mask, sharpened.volume
    for volume, path in zip(volumes, map_paths, strict=True):
        write_volume(volume, path)
    with replacing(fsc_path) as temporary:
        fsc.table().to_csv(temporary, index=False)
    result = {
        "unmasked": fsc.curve.unmasked_resolution_angstrom,
        "masked": fsc.curve.masked_resolution_angstrom,
        "corrected": fsc.resolution_angstrom,
        "independent": maps.independent,
    }
    if sharpened.b_factor_angstrom2 is not None:
        result["b_factor_angstrom2"] = sharpened.b_factor_angstrom2
    write_json(resolution_path, result)
    return result
