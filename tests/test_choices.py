"""Tables of names: every entry is there, and a wrong name is refused when a configuration is made."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from cryoforum import choices
from cryoforum.choices import Choices
from cryoforum.config import Config, NetworkConfig, PreprocessingConfig, TrainingConfig
from cryoforum.errors import InputError
from cryoforum.simulation.config import SimulationConfig

TABLES = {name: table for name, table in vars(choices).items() if isinstance(table, Choices)}


@pytest.mark.parametrize("name", list(TABLES))
def test_every_name_stands_for_something(name: str) -> None:
    for entry in TABLES[name]:
        found = TABLES[name].chosen(entry)
        assert callable(found) or (name, entry) == ("PAIRINGS", "all")


def test_an_unknown_name_is_refused_with_those_there_are() -> None:
    with pytest.raises(InputError, match="expected one of relu, prelu, found 'gelu'"):
        choices.ACTIVATIONS.chosen("gelu")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: TrainingConfig(loss="likelyhood"), "loss: expected one of likelihood, regression, pairs"),
        (lambda: replace(Config().training, loss="likelyhood"), "found 'likelyhood'"),
        (lambda: TrainingConfig(schedule="cosine"), "schedule: expected one of one_cycle, fixed"),
        (lambda: TrainingConfig(auxiliary="no"), "auxiliary: expected one of curriculum, constant, none"),
        (lambda: NetworkConfig(activation="gelu"), "activation: expected one of relu, prelu, found 'gelu'"),
        (lambda: replace(NetworkConfig(), blur="box"), "blur: expected one of none, gaussian, low_pass"),
        (lambda: PreprocessingConfig(standardise="none"), "standardise: expected one of image, set"),
        (lambda: SimulationConfig(orientations="all"), "orientations: expected one of random, grid"),
        (lambda: Config(symmetry_handling="both"), "symmetry_handling: expected one of group, domain"),
    ],
)
def test_a_configuration_with_a_wrong_name_is_not_made(make: Callable[[], object], words: str) -> None:
    with pytest.raises(InputError) as refusal:
        make()
    assert words in str(refusal.value)
