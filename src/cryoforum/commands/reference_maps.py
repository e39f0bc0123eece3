"""Maps that users give to compare images with."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from cryoforum.dataset.particles import Particles
from cryoforum.errors import InputError
from cryoforum.io.mrc.maps import check_volume, read_volume
from cryoforum.molecules.structures import MAP_SUFFIXES, load_structure
from cryoforum.reconstruction.reference_map import Reference, reference_from_map, without_visible_noise
from cryoforum.storage.class_folders import class_folder, class_folders

MAP, CLASSES, MAP_FILE = "map", "reconstruction", "map.mrc"
MASK_TOLERANCE = 1e-2  # of values beyond 0 and 1, as resampled masks have them


@dataclass(frozen=True)
class ReferenceMap:
    """A map or structure from elsewhere.

    Parameters
    ----------
    spec
        A map, a PDB or mmCIF file, or a shipped molecule.
    pixel_size_angstrom
        Of a map, whatever its header says; None for the header's.
    resolution_angstrom
        Up to which the map is used; None for 0.9 of the Nyquist frequency.
    """

    spec: str
    pixel_size_angstrom: float | None = None
    resolution_angstrom: float | None = None

    @property
    def files(self) -> list[Path]:
        """The file that it is read from, if any."""
        return [Path(self.spec)] if Path(self.spec).is_file() else []


def reference_maps(
    specs: Sequence[str], pixel_size_angstrom: float | None = None, resolution_angstrom: float | None = None
) -> tuple[ReferenceMap, ...]:
    """What ``specs`` name, in order; a folder of `initial-model` or `refine` stands for its maps."""
    found = [path for spec in specs for path in _maps_in_folder(spec)]
    return tuple(ReferenceMap(path, pixel_size_angstrom, resolution_angstrom) for path in found)


def _maps_in_folder(spec: str) -> list[str]:
    folder = Path(spec)
    if not folder.is_dir():
        return [spec]
    places = class_folders(folder / CLASSES, MAP_FILE) or [folder / MAP]
    if not (places[0] / MAP_FILE).is_file():
        raise InputError(f"expected a map, or a folder written by initial-model or refine, found {folder}")
    return [str(place / MAP_FILE) for place in places]


def map_folder(out: Path, number: int, count: int) -> Path:
    """Where `initial-model` and `refine` put the maps of a class, by its number from 1."""
    return Path(out) / MAP if count == 1 else class_folder(Path(out) / CLASSES, number)


def load_reference_map(given: ReferenceMap, particles: Particles, symmetry: str) -> Reference:
    """The map at the particles' box and pixel size."""
    volume = load_structure(
        given.spec, particles.box, particles.pixel_size_angstrom, given.pixel_size_angstrom
    )
    reference = without_visible_noise(reference_from_map(volume, symmetry, given.resolution_angstrom))
    if not given.spec.lower().endswith(MAP_SUFFIXES):
        return reference
    size = given.pixel_size_angstrom or check_volume(Path(given.spec))
    return replace(reference, file_pixel_size_angstrom=size)


def load_mask(path: str, particles: Particles) -> Tensor:
    """A mask (n, n, n) at the particles' box and pixel size, its values from 0 to 1."""
    voxels = read_volume(Path(path)).voxels
    low, high = float(voxels.min()), float(voxels.max())
    if low < -MASK_TOLERANCE or not 0.5 < high < 1 + MASK_TOLERANCE:
        raise InputError(f"{path}: expected a mask with values from 0 to 1, found {low:.3g} to {high:.3g}")
    resampled = load_structure(path, particles.box, particles.pixel_size_angstrom)
    return resampled.voxels.clamp(0, 1)  # resampling overshoots at edges
