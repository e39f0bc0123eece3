"""How a training went, and what has to be said of its network wherever that is used."""

import math
from dataclasses import dataclass

# Median error over that of a guess from which on a network has learned nothing that can be relied on.
HARDLY_LEARNED = 0.75
LEAST_CORE_SHARE = 0.7  # of a core, for the thread that does nothing but train; alone it gets nearly all


@dataclass(frozen=True)
class TrainingRecord:
    """What is known of a training besides its log; None where it is not.

    Attributes
    ----------
    chance_median_rad : float, optional
        Median error of guessing: of the validation orientations that were found, dealt out to other
        particles. So symmetry and preferred views count.
    images_per_second : float, optional
        How many images were shown.
    core_share : float, optional
        Processor time of the training thread over the time that passed, on a CPU in one process.
    """

    chance_median_rad: float | None = None
    images_per_second: float | None = None
    core_share: float | None = None


def has_learned(validation_median_rad: float, record: TrainingRecord) -> bool:
    """Whether the network is clearly better than a guess; true where chance is not known."""
    chance = record.chance_median_rad
    return chance is None or validation_median_rad < HARDLY_LEARNED * chance


def doubts(validation_median_rad: float, record: TrainingRecord) -> list[str]:
    """What a user has to know of the network before it is used, in sentences; empty where all is well."""
    found = []
    if not has_learned(validation_median_rad, record) and record.chance_median_rad is not None:
        found.append(
            f"the network has learned next to nothing: median validation error "
            f"{_degrees(validation_median_rad)}, guessing gives {_degrees(record.chance_median_rad)}; train "
            "longer or on more particles, and see with 'cryoforum check' whether the poses fit the images"
        )
    share = record.core_share
    if share is not None and share < LEAST_CORE_SHARE:
        speed = "" if record.images_per_second is None else f", {record.images_per_second:.0f} images/s"
        found.append(
            f"the training had its core for {100 * share:.0f} % of the time{speed}: another program was "
            "using the cores; end it and train again for more images in the same time"
        )
    return found


def _degrees(radians: float) -> str:
    return f"{math.degrees(radians):.1f}°"
