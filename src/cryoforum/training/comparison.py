"""Configurations of one's own beside each other: a study of a few trainings as one table."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pandas as pd

from cryoforum.config import Config
from cryoforum.dataset.particles import Particles
from cryoforum.dataset.pose_errors import orientation_errors, summarise_errors
from cryoforum.dataset.split import Split
from cryoforum.errors import InputError, require
from cryoforum.network.predict import predict
from cryoforum.runtime.reporter import SILENT, Reporter
from cryoforum.training.loop import train
from cryoforum.training.options import TrainingOptions


def compare(
    configs: Mapping[str, Config],
    particles: Particles,
    split: Split,
    image_passes: int,
    seeds: Sequence[int] = (0, 1, 2),
    *,
    reporter: Reporter = SILENT,
) -> pd.DataFrame:
    """Train every configuration once a seed and measure it on particles that took no part.

    Parameters
    ----------
    configs
        By the name that the table gives them.
    particles
        With poses.
    split
        Of them; the test part is measured on.
    image_passes
        Images that each training is shown, whatever its configuration says.
    seeds
        Of the trainings.
    reporter
        Shows each training.

    Returns
    -------
    pandas.DataFrame
        A row a training: name, seed, count, median, mean and quartiles of the errors in radians, the share
        above 0.3 rad, and seconds.

    Raises
    ------
    InputError
        Without a test part, poses or configurations, or where a training fails.
    """
    require(len(split.test) > 0, "a split with a test part to measure on", "none")
    require(len(configs) > 0 and len(seeds) > 0, "a configuration and a seed or more", "none")
    if particles.poses is None:
        raise InputError("expected particles with poses to measure errors by, found none")
    test, truth = particles.select(split.test), particles.poses.quaternions[split.test]
    rows = []
    for name, config in configs.items():
        config = replace(config, training=replace(config.training, image_passes=image_passes))
        for seed in seeds:
            began = time.monotonic()
            model = train(particles, config, split, TrainingOptions(seed=seed), reporter=reporter)
            seconds = time.monotonic() - began
            found = predict(model, test).posterior.mode
            errors = summarise_errors(orientation_errors(found, truth, config.symmetry))
            rows.append({"name": name, "seed": seed, **vars(errors), "seconds": seconds})
    return pd.DataFrame(rows)
