"""What processes send each other: values come back as they were, and nothing but values does."""

import math
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cryoforum.runtime.messages import decoded, encoded


@dataclass(frozen=True)
class Spectrum:
    groups: tuple[int, ...]
    power: Tensor


@dataclass(frozen=True)
class Map:
    spectrum: Spectrum | None
    parts: list[Tensor]
    reach: float | None


def sent(value: object, *types: type) -> object:
    text, tensors = encoded(value)
    coming = iter(tensors)
    return decoded(text, lambda tensor: tensor.copy_(next(coming)), types)


@pytest.mark.parametrize("value", [None, True, 3, 0.1 + 0.2, math.inf, "Å", [1, (2, "3")], (), []])
def test_plain_values_come_back(value: object) -> None:
    found = sent(value)
    assert found == value and type(found) is type(value)


def test_dataclasses_and_tensors_come_back() -> None:
    power = torch.randn(2, 3).T
    before = Map(Spectrum((1, 2), power), [torch.arange(4), torch.tensor([True, False])], None)
    after = sent(before, Map, Spectrum)
    assert isinstance(after, Map) and after.spectrum is not None and after.reach is None
    assert after.spectrum.groups == (1, 2) and torch.equal(after.spectrum.power, power)
    assert [part.dtype for part in after.parts] == [torch.int64, torch.bool]
    assert all(map(torch.equal, after.parts, before.parts))


def test_only_what_was_agreed_on_is_made() -> None:
    with pytest.raises(TypeError, match="cannot be sent"):
        encoded(Path("somewhere"))
    with pytest.raises(TypeError, match="cannot be sent"):
        encoded(print)
    text, _ = encoded(Spectrum((), torch.zeros(0)))
    with pytest.raises(KeyError, match="Spectrum"):
        decoded(text, lambda tensor: None, [Map])
    for foreign in (b"cos\nsystem\n(S'true'\ntR.", b"\x80\x04."):
        with pytest.raises(ValueError):
            decoded(foreign, lambda tensor: None, [Map])
