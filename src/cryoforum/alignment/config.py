"""How poses are looked for."""

import math
from dataclasses import dataclass
from typing import Literal

from cryoforum.alignment.global_search import SearchConfig
from cryoforum.alignment.local_refinement import LocalRefinementConfig
from cryoforum.choices import CandidateSource, Precision, check_choice
from cryoforum.errors import require
from cryoforum.network.predict import TTA_COPIES
from cryoforum.runtime.devices import Compute, compute_for


@dataclass(frozen=True)
class AlignmentConfig:
    """What `align` does; "auto" lets it choose by the particles at hand.

    Parameters
    ----------
    source
        Where candidate orientations come from; None: network and search, or the search alone where there is
        no model.
    max_shift_pixel
        Largest shift along x and y that is looked for; None: that of an explicit ``search``, or as far as
        the reference's own particles were off, at least 3.
    refine_defocus, refine_scale
        Find each particle's own defocus; refine each particle at its own signal scale.
    tta
        Copies of each image, turned and mirrored, that the network reads where its orientations are final:
        1, 4 or 8; None: as many as it learned from.
    device, precision
        Where the network runs, as in `runtime.devices.compute_for`; maps are compared on the CPU.
    search, local_refinement
        Settings that are obeyed as they are; with "auto" faint particles get a finer search.
    """

    source: CandidateSource | None = None
    max_shift_pixel: float | None = None
    refine_defocus: bool = False
    refine_scale: bool = False
    tta: int | None = None
    device: str = "auto"
    precision: Precision = "auto"
    search: SearchConfig | Literal["auto"] = "auto"
    local_refinement: LocalRefinementConfig | Literal["auto"] = "auto"

    def __post_init__(self) -> None:
        check_choice("candidates", self.source, CandidateSource)
        check_choice("precision", self.precision, Precision)
        copies = ", ".join(map(str, TTA_COPIES))
        require(self.tta in (None, *TTA_COPIES), f"test-time augmentation of {copies} copies", self.tta)
        for name, kind in (("search", SearchConfig), ("local_refinement", LocalRefinementConfig)):
            value = getattr(self, name)
            is_known = value == "auto" or isinstance(value, kind)
            require(is_known, f"a {kind.__name__} or 'auto' for {name}", repr(value))
        largest = self.max_shift_pixel or 0
        require(0 <= largest < math.inf, "a largest shift of 0 or more pixels", largest)

    @property
    def compute(self) -> Compute:
        """Device and precision of the network; InputError for what this machine does not have."""
        return compute_for(self.device, self.precision)
