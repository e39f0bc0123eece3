"""How particles are simulated: ideal ones, and what those of a microscope have besides."""

import math
from dataclasses import asdict, dataclass

from cryoforum.choices import JUNK_KINDS
from cryoforum.errors import InputError, require
from cryoforum.fields.settings import one_of, settle_settings


@dataclass(frozen=True)
class SimulationConfig:
    """Synthetic particles; the defaults are the package's demonstration set.

    Parameters
    ----------
    count
        How many.
    snr
        Var(signal after CTF) / var(noise), over the whole image.
    orientations
        "random" or "grid", at random or on a uniform grid.
    max_shift_pixel
        Largest shift along x and y.
    min_defocus_angstrom
        Least defocus.
    max_defocus_angstrom
        Most defocus.
    max_astigmatism_angstrom
        Largest defocus U - V.
    voltage_kv
        Of the microscope.
    spherical_aberration_mm
        Of the microscope.
    amplitude_contrast
        Share of it, 0 to 1.
    seed
        Of all that is random.
    """

    count: int = 5000
    snr: float = 0.1
    orientations: str = one_of(("random", "grid"), "random")
    max_shift_pixel: float = 3.0
    min_defocus_angstrom: float = 10_000.0
    max_defocus_angstrom: float = 30_000.0
    max_astigmatism_angstrom: float = 500.0
    voltage_kv: float = 300.0
    spherical_aberration_mm: float = 2.7
    amplitude_contrast: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        settle_settings(self)
        least, most = self.min_defocus_angstrom, self.max_defocus_angstrom
        require(self.count >= 1, "a count of at least 1 particle", self.count)
        require(self.snr > 0, "a signal-to-noise ratio snr above 0", self.snr)
        require(0 <= self.seed < 2**32, "a seed of 0 to 2³² - 1", self.seed)
        require(0 <= least <= most, "0 <= smallest defocus <= largest defocus", f"{least} and {most} Å")


@dataclass(frozen=True)
class Imperfections:
    """What images and labels have that ideal ones lack; the defaults are none of it.

    Noise has a variance of 1 over the image; lengths of "the noise" are its standard deviation.

    Parameters
    ----------
    conformation_shares
        Of each conformation among the genuine particles.
    hinge_angle_deg
        By which a domain turns from each conformation to the next.
    preferred_views
        Density ∝ exp(this · cos²) of the angle between a view and one axis.
    strength_spread
        Standard deviation of the logarithm of the signal's strength.
    neighbours
        Mean number of further particles that reach into an image.
    noise_colour
        Noise power at low frequencies above that at high ones; spreads by micrograph.
    particles_per_micrograph
        Which share the colour of their noise.
    ramp
        Standard deviation of the rise from edge to edge along x and y, in the noise.
    defocus_error_angstrom
        Standard deviation; the same for U and V.
    pose_error_deg
        Standard deviation of the labels about each axis.
    shift_error_angstrom
        Standard deviation of the labels along x and y.
    wrong_pose_share
        Share of the labels that have a random orientation.
    junk_share
        Share of all images.
    junk_kinds
        Which there are.
    """

    conformation_shares: tuple[float, ...] = (1.0,)
    hinge_angle_deg: float = 7.0
    preferred_views: float = 0.0
    strength_spread: float = 0.0
    neighbours: float = 0.0
    noise_colour: float = 0.0
    particles_per_micrograph: int = 50
    ramp: float = 0.0
    defocus_error_angstrom: float = 0.0
    pose_error_deg: float = 0.0
    shift_error_angstrom: float = 0.0
    wrong_pose_share: float = 0.0
    junk_share: float = 0.0
    junk_kinds: tuple[str, ...] = JUNK_KINDS

    def __post_init__(self) -> None:
        settle_settings(self)
        shares, per_micrograph = self.conformation_shares, self.particles_per_micrograph
        is_whole = min(shares, default=0) > 0 and abs(sum(shares) - 1) < 1e-6
        require(is_whole, "shares of conformations that add up to 1", shares)
        require(per_micrograph >= 1, "1 or more particles per micrograph", per_micrograph)
        for name in ("wrong_pose_share", "junk_share"):
            require(0 <= getattr(self, name) < 1, f"{name} from 0 to below 1", getattr(self, name))
        for kind in self.junk_kinds or ("none",):
            require(kind in JUNK_KINDS, f"junk kinds from {', '.join(JUNK_KINDS)}", kind)
        for name, value in asdict(self).items():
            if isinstance(value, float):
                require(0 <= value < math.inf, f"{name} of 0 or more", value)


# Particles as they are: what a refinement of two states of one molecule leaves behind.
REALISTIC = Imperfections(
    conformation_shares=(0.6, 0.4),
    preferred_views=1.0,
    strength_spread=0.15,
    neighbours=0.3,
    noise_colour=3.0,
    ramp=1.0,
    defocus_error_angstrom=250.0,
    pose_error_deg=1.0,
    shift_error_angstrom=1.0,
    wrong_pose_share=0.03,
)


def shares_from_text(text: str) -> tuple[float, ...]:
    """Shares that add up to 1 from percentages as in "60,40"; InputError where they are none."""
    try:
        percents = [float(word) for word in text.split(",")]
    except ValueError:
        percents = []
    if not percents or abs(sum(percents) - 100) > 0.5 or min(percents) <= 0:  # room for thirds
        raise InputError(f"expected percentages above 0 that add up to 100, as in 60,40; found '{text}'")
    return tuple(percent / sum(percents) for percent in percents)
