"""Maps."""

from dataclasses import dataclass

from torch import Tensor

from cryoforum.errors import InputError, require
from cryoforum.fields.checks import floats, positive, settle


@dataclass(frozen=True)
class Volume:
    """A cubic map.

    Parameters
    ----------
    voxels
        (n, n, n) float32 in z, y, x order, origin at voxel n // 2.
    pixel_size_angstrom
        Width of a voxel.

    Raises
    ------
    InputError
        Where the map is no cube, has a value that is not finite, or the pixel size is not above 0.
    """

    voxels: Tensor
    pixel_size_angstrom: float

    def __post_init__(self) -> None:
        voxels = floats("voxels", self.voxels, None, None, None)
        if len(set(voxels.shape)) != 1:
            raise InputError(
                f"expected a cubic map, found shape {tuple(voxels.shape)}; pad or crop it to a cube"
            )
        settle(self, voxels=voxels)
        positive("pixel_size_angstrom", self.pixel_size_angstrom)

    def __repr__(self) -> str:
        return f"Volume({len(self.voxels)}³ voxels of {self.pixel_size_angstrom:.4g} Å)"


@dataclass(frozen=True)
class HalfMaps:
    """Two reconstructions from disjoint halves of the particles, and the one from all of them.

    Parameters
    ----------
    half1, half2, full
        Maps of one box.
    independent
        False where one model aligned both halves: their FSC then measures agreement with that model too, and
        the resolution is optimistic.
    """

    half1: Volume
    half2: Volume
    full: Volume
    independent: bool

    def __post_init__(self) -> None:
        grids = {(len(each.voxels), each.pixel_size_angstrom) for each in (self.half1, self.half2, self.full)}
        require(len(grids) == 1, "half maps and map of one box and pixel size", sorted(grids))
