"""The other interpretations of a particle file that are compared with the current one.

They stand for the mistakes that are common: origins in another unit or of the opposite sign, angles of the
inverse rotation, images whose CTF was corrected, a wrong pixel size.
"""

from dataclasses import replace

from cryoforum.commands.check.interpretations import Interpretation, Sample, Transfer

PIXEL_FACTORS = (0.5, 0.8, 0.9, 0.95, 1.05, 1.1, 1.25, 2.0)
SAME_FACTOR = 0.1  # relative: origins scaled by nearly the same factor cannot be told apart
LEAST_ORIGIN_PIXEL = 0.05  # root mean square, below which origins are too small to judge


def other_interpretations(
    sample: Sample, current: Interpretation, pixel_size: float
) -> list[dict[str, Interpretation]]:
    """Every interpretation that differs from the current one in one respect.

    Parameters
    ----------
    sample
        Particles that the interpretations will be judged by. Pixel sizes and CTF corrections are left out
        where the file has no CTF parameters, origins where they are nearly zero.
    current
        The interpretation to differ from.
    pixel_size
        In Å, as the file gives it.

    Returns
    -------
    One dictionary for each respect: interpretations by their name.
    """
    angles = "angles as in the file" if current.inverse_rotation else "angles of the inverse rotation"
    respects = [{angles: replace(current, inverse_rotation=not current.inverse_rotation)}]
    rms_pixel = (
        sample.poses.shifts_angstrom.square().mean().sqrt() * sample.points.box / sample.extent_angstrom
    )
    has_origins = bool(rms_pixel > LEAST_ORIGIN_PIXEL)
    if has_origins:
        respects.append(_other_origins(current, pixel_size))
    if sample.ctf is not None:
        transfers = [transfer for transfer in Transfer if transfer is not current.transfer]
        respects.append({f"images {transfer}": replace(current, transfer=transfer) for transfer in transfers})
        respects.append(_other_pixel_sizes(current, pixel_size, with_origins=False))
        if has_origins:
            respects.append(_other_pixel_sizes(current, pixel_size, with_origins=True))
    return respects


def _other_pixel_sizes(
    current: Interpretation, pixel_size: float, with_origins: bool
) -> dict[str, Interpretation]:
    """Other pixel sizes by name; ``with_origins``: origins in Å are scaled by the same factor."""
    is_current = current.pixel_factor == 1 or with_origins == current.origins_with_pixels
    factors = PIXEL_FACTORS if is_current else (1.0, *PIXEL_FACTORS)
    note = " with origins" if with_origins else ""
    return {
        f"pixel size {pixel_size * factor:.3g} Å{note}": replace(
            current, pixel_factor=factor, origins_with_pixels=with_origins
        )
        for factor in (current.pixel_factor * factor for factor in factors)
    }


def _other_origins(current: Interpretation, pixel_size: float) -> dict[str, Interpretation]:
    """Other factors on origins by name; none nearly the same as an earlier one."""
    named = [
        (1.0, "origins as in the file"),
        (-1.0, "origins of the opposite sign"),
        (0.0, "origins applied already"),
        (pixel_size, "origins too small by the pixel size"),
        (1 / pixel_size, "origins too large by the pixel size"),
        (2.0, "origins too small by 2"),
        (0.5, "origins too large by 2"),
    ]
    distinct: dict[float, str] = {}
    for factor, name in named:
        if all(abs(factor - other) > SAME_FACTOR * abs(factor) for other in distinct):
            distinct[factor] = name
    return {
        name: replace(current, origin_factor=factor)
        for factor, name in distinct.items()
        if factor != current.origin_factor
    }
