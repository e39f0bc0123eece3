"""What is wrong with a particle file, in words, and how it is mended."""

import math
from dataclasses import dataclass

from cryoforum.commands.check.findings import Findings
from cryoforum.commands.check.interpretations import Interpretation, Transfer
from cryoforum.commands.check.map_comparison import Comparison

LEAST_PIXEL_CHANGE = 0.02  # smaller differences are calibration, not error
LEAST_SKEWNESS = 0.5  # of a map: a molecule is dense and small beside its box, and has 1 to 4
LEAST_SIZE_CHANGE = 0.025  # of a map beside another


@dataclass(frozen=True)
class Problem:
    """What is wrong, and how it is mended."""

    fault: str
    fix: str


def problems(findings: Findings, pixel_size: float, in_pixels: bool) -> list[Problem]:
    """What is wrong with a file whose origins are ``in_pixels`` (RELION 3.0) or in Å."""
    interpretation, found = findings.interpretation, []
    if interpretation.inverse_rotation:
        found.append(
            Problem(
                "the angles are those of the inverse rotations",
                "write -rlnAnglePsi, -rlnAngleTilt, -rlnAngleRot as rlnAngleRot, rlnAngleTilt, rlnAnglePsi",
            )
        )
    factor = _origin_factor(interpretation, in_pixels)
    if abs(factor - 1) > LEAST_PIXEL_CHANGE:
        found.append(_about_origins(factor, pixel_size, in_pixels))
    if interpretation.transfer is not Transfer.AS_RECORDED:
        found.append(_about_transfer(interpretation.transfer))
    if findings.unsaid_defocus_angstrom is not None:
        defocus = findings.unsaid_defocus_angstrom / 1e4
        found.append(
            Problem(
                f"the images carry a CTF (about {defocus:.1f} µm) that the file does not describe",
                "add rlnDefocusU, rlnDefocusV, rlnDefocusAngle, rlnVoltage, rlnSphericalAberration and "
                "rlnAmplitudeContrast; or extract the images again, corrected for it",
            )
        )
    if _size_factor(interpretation) != 1:
        size = pixel_size * interpretation.pixel_factor
        found.append(
            Problem(
                f"the pixel size is {pixel_size:.4g} Å, but the CTF in the images is that of {size:.3g} Å",
                "correct rlnImagePixelSize; or the defocus, which was estimated at another pixel size",
            )
        )
    if findings.oriented is False:
        found.append(
            Problem(
                "the orientations explain no more of the images than those of other images would",
                "use the file of a refinement of these very images; check that stacks were not reordered",
            )
        )
    elif findings.oriented and findings.skewness < -LEAST_SKEWNESS:
        found.append(
            Problem(
                "the contrast is inverted: the molecule is darker than its surroundings",
                "multiply the images by -1: "
                "relion_image_handler --i IN.mrcs --o OUT.mrcs --multiply_constant -1",
            )
        )
    return found


def problems_beside(reference: str, comparison: Comparison, pixel_size: float) -> list[Problem]:
    """What is wrong with the file by a map from elsewhere."""
    found = []
    if comparison.other_hand:
        found.append(
            Problem(
                f"the hand is not that of {reference}: the mirror image of the particles' map fits better",
                "find the poses again from a start of the other hand: refine with this map, or "
                f"cryoforum align {reference} PARTICLES.star --out aligned.star",
            )
        )
    if math.isnan(comparison.size):
        found.append(
            Problem(
                f"{reference} does not look like the particles' own map "
                f"(correlation {max(comparison.correlation, comparison.mirrored_correlation):.2f})",
                "give a map of this molecule, centred in its box",
            )
        )
    elif _size_beside(comparison) != 1:
        size = pixel_size * comparison.size
        found.append(
            Problem(
                f"beside {reference} the particles' map has the wrong size: its pixels are "
                f"{size:.3g} Å, not {pixel_size:.4g} Å",
                "correct rlnImagePixelSize, and origins in Å by the same factor; or the pixel size in the "
                "map's header",
            )
        )
    return found


def fixing_flags(
    interpretation: Interpretation, in_pixels: bool, comparison: Comparison | None = None
) -> tuple[str, ...]:
    """Options of `cryoforum convert` that make a table say what its images bear out; none where none can."""
    beside = 1.0 if comparison is None else _size_beside(comparison)
    # The images bear out origins in pixels, so origins in Å grow with what a map adds to the pixel size.
    origins = _origin_factor(interpretation, in_pixels) * (1.0 if in_pixels else beside)
    size = _size_factor(interpretation) * beside
    return (
        *(("--invert-rotations",) if interpretation.inverse_rotation else ()),
        *(("--scale-origins", f"{origins:.6g}") if abs(origins - 1) > LEAST_PIXEL_CHANGE else ()),
        *(("--scale-pixel-size", f"{size:.4g}") if size != 1 else ()),
    )


def _size_factor(interpretation: Interpretation) -> float:
    """By which the pixel size is to be multiplied; 1 where it is a matter of calibration."""
    return interpretation.pixel_factor if abs(interpretation.pixel_factor - 1) > LEAST_PIXEL_CHANGE else 1.0


def _size_beside(comparison: Comparison) -> float:
    """By which it is to be multiplied on top, by a map from elsewhere."""
    return comparison.size if abs(comparison.size - 1) > LEAST_SIZE_CHANGE else 1.0


def _origin_factor(interpretation: Interpretation, in_pixels: bool) -> float:
    """By which origins are to be multiplied in the unit that they are given in, beside `_size_factor`."""
    size = _size_factor(interpretation)
    if interpretation.origins_with_pixels:
        return interpretation.origin_factor * (1.0 if in_pixels else size)
    return interpretation.origin_factor / (size if in_pixels else 1.0)


def _about_origins(factor: float, pixel_size: float, in_pixels: bool) -> Problem:
    columns = "rlnOriginX and rlnOriginY" if in_pixels else "rlnOriginXAngst and rlnOriginYAngst"
    if factor == 0:
        fault, fix = "the images are centred already: their origins were applied", f"set {columns} to 0"
    elif factor == -1:
        fault, fix = "the origins have the opposite sign", f"multiply {columns} by -1"
    elif factor == pixel_size and not in_pixels:
        fault, fix = f"{columns} hold pixels, not Å", f"multiply them by {pixel_size:g}"
    elif factor == 1 / pixel_size and in_pixels:
        fault, fix = f"{columns} hold Å, not pixels", f"divide them by {pixel_size:g}"
    else:
        times, size = max(abs(factor), 1 / abs(factor)), "large" if abs(factor) < 1 else "small"
        fault = f"the origins are {times:.3g} times too {size}"
        fix = f"multiply {columns} by {factor:.4g}"
    return Problem(fault, fix)


def _about_transfer(transfer: Transfer) -> Problem:
    if transfer is Transfer.OVERFOCUS:
        return Problem(
            "the defocus has the opposite sign", "multiply rlnDefocusU and V by -1: underfocus is positive"
        )
    if transfer is Transfer.CORRECTED:
        fix = "remove the CTF columns (rlnDefocusU, …), or extract the images again without correction"
        return Problem("the images are corrected for their CTF already", fix)
    return Problem(
        f"the images are {transfer} already",
        "extract them again as they were recorded, without CTF correction",
    )
