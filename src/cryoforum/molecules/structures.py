"""What to simulate or compare with: shipped molecules, PDB and mmCIF files and maps, at a wanted size."""

import logging
import math
from pathlib import Path

from cryoforum.dataset.resampling import resample_volume
from cryoforum.dataset.volumes import Volume
from cryoforum.errors import InputError
from cryoforum.io.mrc.maps import check_volume, read_volume
from cryoforum.molecules.potential import MOLECULES, atoms_to_volume, load_molecule, read_atoms

logger = logging.getLogger(__name__)

MAP_SUFFIXES = tuple(
    kind + packing for kind in (".mrc", ".map", ".ccp4", ".rec", ".mrcs") for packing in ("", ".gz", ".bz2")
)


ATOM_SUFFIXES = tuple(
    kind + packing for kind in (".pdb", ".ent", ".cif", ".mmcif") for packing in ("", ".gz")
)


_PLAIN_SUFFIXES = [
    suffix for suffix in ATOM_SUFFIXES + MAP_SUFFIXES if not suffix.endswith((".gz", ".bz2", ".mrcs"))
]


_PIXEL_SIZE_TOLERANCE = 1e-3  # relative difference of pixel sizes that is worth a notice


def load_structure(
    spec: str, box: int, pixel_size_angstrom: float, map_pixel_size_angstrom: float | None = None
) -> Volume:
    """The volume that ``spec`` names: a shipped molecule, a PDB or mmCIF file, or an MRC map.

    box, pixel_size_angstrom: voxels along a side, and their size in Å.
    map_pixel_size_angstrom: of the map, whatever its header says.
    Raises InputError for anything else, and where a molecule does not fit in the box.
    """
    check_structure(spec, map_pixel_size_angstrom)
    if spec.lower() in MOLECULES:
        return atoms_to_volume(load_molecule(spec.lower()), box, pixel_size_angstrom)
    if not spec.lower().endswith(MAP_SUFFIXES):
        return atoms_to_volume(read_atoms(Path(spec)), box, pixel_size_angstrom)
    volume = read_volume(Path(spec), map_pixel_size_angstrom)
    old_box = len(volume.voxels)
    same_pixels = math.isclose(volume.pixel_size_angstrom, pixel_size_angstrom, rel_tol=_PIXEL_SIZE_TOLERANCE)
    if not same_pixels or old_box != box:
        logger.warning(
            f"{spec}: resampled from {old_box} voxels of {volume.pixel_size_angstrom:.4g} Å "
            f"to {box} of {pixel_size_angstrom:.4g} Å"
        )
    return resample_volume(volume, box, pixel_size_angstrom)


def check_structure(spec: str, map_pixel_size_angstrom: float | None = None) -> None:
    """InputError where ``spec`` names nothing that `load_structure` can read; asked before long work."""
    is_map = spec.lower().endswith(MAP_SUFFIXES)
    if map_pixel_size_angstrom is not None and not is_map:
        raise InputError(f"expected a map with --map-pixel-size, found {spec!r}; leave the option out")
    if spec.lower() in MOLECULES:
        return
    if not is_map and not spec.lower().endswith(ATOM_SUFFIXES):
        raise InputError(
            f"expected a shipped molecule ({', '.join(MOLECULES)}), a PDB or mmCIF file or an MRC map, "
            f"found {spec!r}; name a file that ends in {', '.join(_PLAIN_SUFFIXES)}, or these and .gz"
        )
    if is_map:
        check_volume(Path(spec), map_pixel_size_angstrom)
    elif not Path(spec).is_file():
        raise InputError(f"{spec}: expected a PDB or mmCIF file, found none of that name")
