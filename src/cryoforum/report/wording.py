"""Numbers and lists in words."""

import numpy as np


def degrees(angle_rad: float) -> str:
    """An angle with one decimal, two where it is small."""
    angle = float(np.rad2deg(angle_rad))
    return f"{angle:.1f}°" if angle >= 1 else f"{angle:.2f}°"


def thousands(value: float) -> str:
    """A whole number with thin spaces between groups of three digits."""
    return f"{value:,.0f}".replace(",", "\u202f")


def quantity(value: float | None) -> str:
    """A number as a table shows it: three digits that matter; a dash where there is none."""
    if value is None or not np.isfinite(value):
        return "–"
    return thousands(value) if abs(value) >= 100 else f"{value:.3g}"


def percent(share: float, decimals: int = 0) -> str:
    """A share of 1 in per cent."""
    return f"{100 * share:.{decimals}f}\u202f%"


def radians(angle_rad: float) -> str:
    """An angle in the unit of the paper; smaller ones with more decimals."""
    return f"{angle_rad:.{3 if angle_rad >= 0.02 else 4}f} rad"


def listed(words: list[str]) -> str:
    """Words with commas and an "and" before the last."""
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))
