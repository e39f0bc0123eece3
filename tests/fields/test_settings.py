"""Settings are right where they are made, from Python as from a file."""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
from helpers.untyped import untyped

from cryoforum.alignment.config import AlignmentConfig
from cryoforum.choices import HEADS, LOSSES
from cryoforum.config import Config, NetworkConfig, TrainingConfig, updated
from cryoforum.errors import InputError
from cryoforum.reconstruction.inversion import ReconstructionConfig
from cryoforum.simulation.config import Imperfections, SimulationConfig

CONFIG = Config()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: replace(CONFIG.training, loss="likelyhood"),
            f"loss: expected one of {', '.join(LOSSES)}, found",
        ),
        (lambda: replace(CONFIG.network, head="svdd"), f"head: expected one of {', '.join(HEADS)}, found"),
        (lambda: NetworkConfig(head=untyped(None)), "head: expected one of .*, found 'None'"),
        (lambda: SimulationConfig(orientations="even"), "orientations: expected one of random, grid"),
        (
            lambda: replace(CONFIG, symmetry_handling="both"),
            "symmetry_handling: expected one of group, domain",
        ),
        (lambda: replace(CONFIG, symmetry=1), "expected a str for symmetry"),
        (lambda: replace(CONFIG, training="small"), "expected a TrainingConfig for training"),
        (lambda: TrainingConfig(batch_size="64"), "whole number for batch_size, such as 64, found '64'"),
        (lambda: TrainingConfig(batch_size=64.5), "whole number for batch_size"),
        (lambda: TrainingConfig(max_learning_rate=math.inf), "finite number for max_learning_rate"),
        (lambda: NetworkConfig(widths=32), r"a tuple for widths, such as \(32, 64, 128, 256\), found 32"),
        (lambda: Imperfections(junk_share="0.1"), "finite number for junk_share"),
        (lambda: ReconstructionConfig(symmetry=None), "expected a str for symmetry"),
        (lambda: AlignmentConfig(source="guesses"), "candidates from network, search, both"),
        (lambda: AlignmentConfig(search="fine"), "SearchConfig or 'auto' for search, found 'fine'"),
    ],
)
def test_a_wrong_setting_is_refused_where_it_is_made(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


def test_what_stands_for_the_same_is_converted_so_that_it_can_be_written_and_read() -> None:
    """A model that was trained with NumPy's numbers could not be saved, and one with 1e5 passes not loaded."""
    numbers = untyped(
        {"image_passes": 1e5, "batch_size": np.int64(32), "l2": np.float32(0.5), "weight_decay": 0}
    )
    training = TrainingConfig(**numbers)
    made = Config(network=NetworkConfig(widths=untyped([8, np.int64(16)])), training=training)
    assert (training.image_passes, training.batch_size, training.l2) == (100_000, 32, 0.5)
    assert made.network.widths == (8, 16) and type(training.image_passes) is int
    assert updated(Config(), json.loads(json.dumps(asdict(made))), "model.json") == made
