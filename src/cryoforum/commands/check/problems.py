"""The problems of a particle file in words, each with its fix."""

import math
from dataclasses import dataclass

from cryoforum.commands.check.findings import Findings, Outcome
from cryoforum.commands.check.interpretations import Interpretation, Transfer
from cryoforum.commands.check.map_comparison import Comparison
from cryoforum.dataset.particles import Particles
from cryoforum.dataset.repeats import BEFORE_EXPANSION, repeats_of

LEAST_PIXEL_CHANGE = 0.02  # smaller differences are calibration, not error
LEAST_SKEWNESS = 0.5  # of a map: a molecule is dense and small beside its box, and has 1 to 4
LEAST_SIZE_CHANGE = 0.025  # of a map beside another


@dataclass(frozen=True)
class Problem:
    """A fault of a file, and how to fix it; both begin in lower case and end without a full stop."""

    fault: str
    fix: str


INVERSE_ROTATIONS = Problem(
    "the angles describe the inverse rotations",
    "write -rlnAnglePsi, -rlnAngleTilt, -rlnAngleRot as rlnAngleRot, rlnAngleTilt, rlnAnglePsi",
)
OTHER_ORIENTATIONS = Problem(
    "the orientations explain no more of the images than the orientations of other images do",
    "use the file of a refinement of these very images; check that stacks were not reordered",
)
INVERTED_CONTRAST = Problem(
    "the contrast is inverted: the molecule is darker than its surroundings",
    "multiply the images by -1: relion_image_handler --i IN.mrcs --o OUT.mrcs --multiply_constant -1",
)
_RECORDED_AGAIN = "extract them again as they were recorded, without CTF correction"
_OF_TRANSFER = {
    Transfer.OVERFOCUS: Problem(
        "the defocus has the opposite sign", "multiply rlnDefocusU and V by -1: underfocus is positive"
    ),
    Transfer.CORRECTED: Problem(
        "the images are corrected for their CTF already",
        "remove the CTF columns (rlnDefocusU, …), or extract the images again without correction",
    ),
    Transfer.FLIPPED: Problem(f"the images are {Transfer.FLIPPED} already", _RECORDED_AGAIN),
    Transfer.MULTIPLIED: Problem(f"the images are {Transfer.MULTIPLIED} already", _RECORDED_AGAIN),
}


def problems(
    findings: Findings, pixel_size: float, in_pixels: bool, is_overfocus: bool = False
) -> list[Problem]:
    """List the problems that the images show.

    Parameters
    ----------
    findings
        The interpretation that fits the images best.
    pixel_size
        In Å, as the file gives it.
    in_pixels
        Whether origins are in pixels (RELION 3.0) or in Å.
    is_overfocus
        Whether most of the defocus is negative: a sign that explains why images seem to have no CTF.
    """
    interpretation, found = findings.interpretation, []
    if interpretation.inverse_rotation:
        found.append(INVERSE_ROTATIONS)
    factor = _origin_factor(interpretation, in_pixels)
    if abs(factor - 1) > LEAST_PIXEL_CHANGE:
        found.append(_about_origins(factor, pixel_size, in_pixels))
    transfer = interpretation.transfer
    if is_overfocus and transfer is Transfer.CORRECTED and _may_be_underfocus(findings):
        transfer = Transfer.OVERFOCUS
    if transfer in _OF_TRANSFER:
        found.append(_OF_TRANSFER[transfer])
    if findings.undescribed_defocus_angstrom is not None:
        found.append(_about_undescribed_ctf(findings.undescribed_defocus_angstrom))
    if _size_factor(interpretation) != 1:
        size = pixel_size * interpretation.pixel_factor
        found.append(
            Problem(
                f"the pixel size is {pixel_size:.4g} Å, but the CTF in the images fits {size:.3g} Å",
                "correct rlnImagePixelSize; or the defocus, which was estimated at another pixel size",
            )
        )
    if findings.oriented is False:
        found.append(OTHER_ORIENTATIONS)
    elif findings.oriented and findings.skewness < -LEAST_SKEWNESS:
        found.append(INVERTED_CONTRAST)
    return found


def _may_be_underfocus(findings: Findings) -> bool:
    """Whether the images do not exclude the opposite defocus."""
    name = f"images {Transfer.OVERFOCUS}"
    return any(one.name == name and one.outcome is not Outcome.WORSE for one in findings.alternatives)


def problems_of_repeats(particles: Particles) -> list[Problem]:
    """List what keeps particles from being used that are in several rows."""
    found = repeats_of(particles)
    if found is None:
        return []
    if found.is_expansion:
        return [
            Problem(
                str(found),
                f"to train, predict and align give {BEFORE_EXPANSION}; reconstruct, convert, filter and "
                "compare take it as it is",
            )
        ]
    return [Problem(str(found), "remove the duplicates: train and reconstruct refuse them")]


def problems_beside(reference: str, comparison: Comparison, pixel_size: float) -> list[Problem]:
    """List the problems that a reference map shows.

    Parameters
    ----------
    reference
        Name of the reference map.
    comparison
        The particles' map compared with it.
    pixel_size
        Of the particles' map, in Å.
    """
    found = []
    if comparison.other_hand:
        found.append(
            Problem(
                f"the particles' map has the other hand than {reference}: its mirror image fits better",
                "find the poses again from a start of the other hand: refine with this map, or "
                f"cryoforum align {reference} PARTICLES.star --out aligned.star",
            )
        )
    if math.isnan(comparison.size):
        best = max(comparison.correlation, comparison.mirrored_correlation)
        found.append(
            Problem(
                f"{reference} does not look like the particles' own map (correlation {best:.2f})",
                "give a map of this molecule, centred in its box",
            )
        )
    elif _size_beside(comparison) != 1:
        found.append(
            Problem(
                f"the particles' map has another size than {reference}: the pixel size would have to be "
                f"{pixel_size * comparison.size:.3g} Å, not {pixel_size:.4g} Å",
                "correct rlnImagePixelSize, and origins in Å by the same factor; or the pixel size in the "
                "map's header",
            )
        )
    return found


def fixing_flags(
    interpretation: Interpretation, in_pixels: bool, comparison: Comparison | None = None
) -> tuple[str, ...]:
    """Options of `cryoforum convert` that correct the columns of a file.

    Parameters
    ----------
    interpretation
        The one that fits the images best.
    in_pixels
        Whether origins are in pixels (RELION 3.0) or in Å.
    comparison
        With a reference map, which may correct the pixel size further.

    Returns
    -------
    The options; empty where no column needs a correction that `convert` can make.
    """
    beside = 1.0 if comparison is None else _size_beside(comparison)
    # Origins in pixels fit the images, so origins in Å grow with the pixel size that a map corrects.
    origins = _origin_factor(interpretation, in_pixels) * (1.0 if in_pixels else beside)
    size = _size_factor(interpretation) * beside
    return (
        *(("--invert-rotations",) if interpretation.inverse_rotation else ()),
        *(("--scale-origins", f"{origins:.6g}") if abs(origins - 1) > LEAST_PIXEL_CHANGE else ()),
        *(("--scale-pixel-size", f"{size:.4g}") if size != 1 else ()),
    )


def _size_factor(interpretation: Interpretation) -> float:
    """Factor that corrects the pixel size; 1 where the difference may be calibration."""
    return interpretation.pixel_factor if abs(interpretation.pixel_factor - 1) > LEAST_PIXEL_CHANGE else 1.0


def _size_beside(comparison: Comparison) -> float:
    """Further factor on the pixel size, by a reference map."""
    return comparison.size if abs(comparison.size - 1) > LEAST_SIZE_CHANGE else 1.0


def _origin_factor(interpretation: Interpretation, in_pixels: bool) -> float:
    """Factor that corrects the origins in the unit they are given in, after `_size_factor`."""
    size = _size_factor(interpretation)
    if interpretation.origins_with_pixels:
        return interpretation.origin_factor * (1.0 if in_pixels else size)
    return interpretation.origin_factor / (size if in_pixels else 1.0)


def _about_origins(factor: float, pixel_size: float, in_pixels: bool) -> Problem:
    columns = "rlnOriginX and rlnOriginY" if in_pixels else "rlnOriginXAngst and rlnOriginYAngst"
    if factor == 0:
        return Problem("the images are centred already: their origins were applied", f"set {columns} to 0")
    if factor == -1:
        return Problem("the origins have the opposite sign", f"multiply {columns} by -1")
    if factor == pixel_size and not in_pixels:
        return Problem(f"{columns} hold pixels, not Å", f"multiply them by {pixel_size:g}")
    if factor == 1 / pixel_size and in_pixels:
        return Problem(f"{columns} hold Å, not pixels", f"divide them by {pixel_size:g}")
    times, size = max(abs(factor), 1 / abs(factor)), "large" if abs(factor) < 1 else "small"
    return Problem(f"the origins are {times:.3g} times too {size}", f"multiply {columns} by {factor:.4g}")


def _about_undescribed_ctf(defocus_angstrom: float) -> Problem:
    return Problem(
        f"the images carry a CTF (defocus about {defocus_angstrom / 1e4:.1f} µm) that the file does not "
        "describe",
        "add rlnDefocusU, rlnDefocusV, rlnDefocusAngle, rlnVoltage, rlnSphericalAberration and "
        "rlnAmplitudeContrast; or extract the images again, corrected for it",
    )
