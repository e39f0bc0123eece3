"""Random numbers of layers that draw from torch's global generators, kept apart from those of the caller."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


class RandomStream:
    """A stream of its own for what draws from torch's global generators: new layers and dropout.

    Parameters
    ----------
    seed : int
        Gives the numbers that ``torch.manual_seed(seed)`` would give.
    device : torch.device
        Where besides the CPU numbers are drawn.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        self._generators = _global_generators(device)
        self.reseed(seed)

    def reseed(self, seed: int) -> None:
        """Begin anew with another seed."""
        self.states: list[Tensor] = [
            torch.Generator(generator.device).manual_seed(seed).get_state() for generator in self._generators
        ]

    @contextmanager
    def drawn_from(self) -> Iterator[None]:
        """Layers draw from this stream in here; after, the caller's generators are as they were before."""
        callers = [generator.get_state() for generator in self._generators]
        self._set(self.states)
        try:
            yield
        finally:
            self.states = [generator.get_state() for generator in self._generators]
            self._set(callers)

    def state_dict(self) -> dict[str, list[Tensor]]:
        """What `load_state_dict` needs to go on."""
        return {"states": self.states}

    def load_state_dict(self, state: dict[str, list[Tensor]]) -> None:
        """Go on where another stream was, as far as both have the same devices."""
        self.states = [*state["states"], *self.states[len(state["states"]) :]][: len(self._generators)]

    def _set(self, states: list[Tensor]) -> None:
        for generator, state in zip(self._generators, states, strict=True):
            generator.set_state(state)


def _global_generators(device: torch.device) -> list[torch.Generator]:
    """Those that layers on the CPU and on ``device`` draw from."""
    generators = [torch.default_generator]
    if device.type == "cuda":
        torch.cuda.init()
        generators.append(torch.cuda.default_generators[device.index or 0])
    elif device.type == "mps":
        generators.append(torch.mps._get_default_mps_generator())
    return generators
