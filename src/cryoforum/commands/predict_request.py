"""What `cryoforum predict` is asked for."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cryoforum.alignment.config import AlignmentConfig
from cryoforum.choices import HalfMapsChoice, SplitPart, check_choice
from cryoforum.commands.pose_files import PoseOutput
from cryoforum.commands.reference_maps import ReferenceMap
from cryoforum.errors import InputError


@dataclass(frozen=True)
class PredictRequest:
    """What `cryoforum predict` is asked for.

    Parameters
    ----------
    model
        Model folder, of one model or of two half-set models.
    particles
        Particle files, joined where there are several; resampled to the model's box and pixel size.
    output
        Where poses go.
    root
        Folder that image names are looked for in first.
    part
        Only this part of the model's split.
    refine
        Local refinement against a reference; None: wherever there is one. False: the network's orientations.
    references
        A map to compare with instead of the model's own, or one of each class.
    mask
        A map of values from 0 to 1 that references are multiplied by.
    half_maps
        "own": each half set against the map of its own half; "all": every particle against the map of all;
        None: "own" where the particles have half sets and the reference has half maps.
    cross_fit
        Of two half-set models, the one that never saw a particle instead of its own half's.
    alignment
        How poses are looked for.
    keep_ramp
        Leave in each image the ramp that a gradient of the ice left; else it is removed first of all.
    """

    model: Path
    particles: Sequence[Path]
    output: PoseOutput
    root: Path | None = None
    part: SplitPart | None = None
    refine: bool | None = None
    references: Sequence[ReferenceMap] = ()
    mask: str | None = None
    half_maps: HalfMapsChoice | None = None
    cross_fit: bool = False
    alignment: AlignmentConfig = field(default_factory=AlignmentConfig)
    keep_ramp: bool = False

    def __post_init__(self) -> None:
        check_choice("part", self.part, SplitPart)
        check_choice("half maps", self.half_maps, HalfMapsChoice)
        alignment = self.alignment
        if self.refine is False and (alignment.refine_defocus or alignment.refine_scale):
            raise InputError(
                "expected --refine-defocus or --refine-scale with local refinement, found --no-refine"
            )
        if self.refine and alignment.tta is not None:
            raise InputError("expected --tta with --no-refine, found --refine: local refinement decides")

    @property
    def settings(self) -> str:
        """Text of everything but files and places that a result depends on."""
        chosen = (self.refine, list(self.references), self.mask, self.half_maps, self.cross_fit)
        compute = self.alignment.compute
        return f"{chosen} {self.alignment} {compute.device.type} {compute.precision}"
