"""Suggest a learning rate for particles in files."""

import csv
from collections.abc import Callable, Sequence
from pathlib import Path

from cryoforum.commands.train import CallbackReporter, chosen_split, possible_config, reference_or_none
from cryoforum.commands.workflow import Bar, checked_particles, checked_poses, read_joined
from cryoforum.config import Config
from cryoforum.errors import InputError
from cryoforum.runtime.distributed import from_first, is_first, wait_for_all
from cryoforum.storage.files import refuse_to_overwrite, replacing, require_folder_of
from cryoforum.training.lr_finder import (
    FEWEST_RATES,
    RangeTestOptions,
    learning_rate_range,
    suggested_rate,
)


def find_rate_of_files(
    paths: Sequence[Path],
    root: Path | None,
    config: Config,
    split_choice: str | None,
    steps: int,
    seed: int,
    out: Path | None,
    overwrite: bool,
    bar: Bar,
    tell: Callable[[str], None],
) -> float:
    """The largest learning rate that a range test on the particles suggests; its curve goes to ``out``."""
    if out is not None:
        refuse_to_overwrite(out, overwrite)
        require_folder_of(out)
    wait_for_all()
    if steps < FEWEST_RATES:
        raise InputError(f"expected --steps of {FEWEST_RATES} or more, found {steps}")
    table = read_joined(paths, root, tell)
    particles = checked_particles(table, root, tell)
    poses = checked_poses(table, particles, "to learn from")
    split = chosen_split(particles, split_choice, seed)
    reference = None
    if config.augmentation.simulated_share:
        reference = from_first(lambda: reference_or_none(particles, poses, split, config.symmetry, bar, tell))
        config = possible_config(config, reference, tell)
    found = learning_rate_range(
        particles,
        config,
        split,
        RangeTestOptions(steps, seed=seed),
        reference=reference,
        reporter=CallbackReporter(bar),
    )
    if out is not None and is_first():
        with replacing(out) as temporary, open(temporary, "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("learning_rate", "loss"))
            writer.writerows(found)
    return suggested_rate(found)
