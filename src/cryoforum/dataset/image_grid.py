"""Box and pixel size of images."""

from dataclasses import dataclass

SAME_PIXEL_SIZE = 1e-4  # relative difference up to which pixel sizes are one
NEAR_PIXEL_SIZE = 0.01  # up to which images may be taken as they are


@dataclass(frozen=True)
class ImageGrid:
    """A box in pixels, which is even but for images on disk, and their size: pixel_size_angstrom."""

    box: int
    pixel_size_angstrom: float

    @property
    def even(self) -> "ImageGrid":
        """That of images whose odd box lost its last row and column: pixel n // 2 stays where it is."""
        return ImageGrid(self.box - self.box % 2, self.pixel_size_angstrom)

    def is_same(self, other: "ImageGrid") -> bool:
        """Whether images of one are images of the other."""
        return self._is_within(other, SAME_PIXEL_SIZE)

    def is_near(self, other: "ImageGrid") -> bool:
        """Whether images of one may be taken for images of the other: equal boxes, pixel sizes within 1 %."""
        return self._is_within(other, NEAR_PIXEL_SIZE)

    def _is_within(self, other: "ImageGrid", tolerance: float) -> bool:
        ratio = self.pixel_size_angstrom / other.pixel_size_angstrom
        return self.box == other.box and abs(ratio - 1) <= tolerance

    def __str__(self) -> str:
        return f"{self.box} px and {self.pixel_size_angstrom:.4g} Å/px"
