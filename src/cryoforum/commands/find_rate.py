"""Suggest a learning rate for particles in files."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryoforum.choices import Precision
from cryoforum.commands.train import reference_and_config
from cryoforum.config import Config
from cryoforum.dataset.repeats import WITH_SYMMETRY, refuse_repeats
from cryoforum.dataset.split import chosen_split
from cryoforum.errors import require
from cryoforum.io.particle_files import checked_poses, load_particle_set
from cryoforum.runtime.distributed import is_first, wait_for_all
from cryoforum.runtime.reporter import SILENT, Reporter
from cryoforum.storage.csv_tables import write_csv
from cryoforum.storage.files import check_output
from cryoforum.training.lr_finder import FEWEST_RATES, RangeTestOptions, learning_rate_range, suggested_rate


@dataclass(frozen=True)
class FindRateRequest:
    """What `cryoforum find-rate` is asked for: as in `TrainRequest`, and what follows.

    Parameters
    ----------
    steps
        Batches; the rate grows a little in each.
    out
        CSV file for rates and losses; None for none.
    """

    particles: Sequence[Path]
    config: Config
    root: Path | None = None
    split: str | None = None
    steps: int = 200
    seed: int = 0
    out: Path | None = None
    overwrite: bool = False
    device: str = "auto"
    precision: Precision = "auto"
    keep_ramp: bool = False

    def __post_init__(self) -> None:
        require(self.steps >= FEWEST_RATES, f"--steps of {FEWEST_RATES} or more", self.steps)


def find_rate(request: FindRateRequest, reporter: Reporter = SILENT) -> float:
    """The largest learning rate that a range test on the particles suggests."""
    check_output(request.out, request.overwrite)
    wait_for_all()
    particle_set = load_particle_set(request.particles, request.root, keep_ramp=request.keep_ramp)
    refuse_repeats(particle_set, "to learn from", WITH_SYMMETRY)
    checked_poses(particle_set, "to learn from")
    particles, config, reference = particle_set.particles, request.config, None
    split = chosen_split(particles, request.split, request.seed)
    if config.augmentation.simulated_share:
        reference, config = reference_and_config(particles, split, config, reporter)
    options = RangeTestOptions(
        request.steps, seed=request.seed, device=request.device, precision=request.precision
    )
    found = learning_rate_range(particles, config, split, options, reference=reference, reporter=reporter)
    if request.out is not None and is_first():
        write_csv(request.out, [{"learning_rate": rate, "loss": loss} for rate, loss in found])
    return suggested_rate(found)
