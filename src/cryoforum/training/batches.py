"""Batches of training images: real ones, changed at random, simulated ones, and which of them form pairs."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cryoforum.choices import PAIRINGS
from cryoforum.config import Config
from cryoforum.dataset.ctf_parameters import CtfParameters
from cryoforum.geometry.point_groups import in_fundamental_domain, symmetry_group
from cryoforum.network.augmentation import changed_images, changed_orientations, draw_changes
from cryoforum.runtime.devices import CPU
from cryoforum.runtime.distributed import own_share
from cryoforum.training.pairs import all_pairs
from cryoforum.training.simulated_images import ImageSimulator


def image_count(config: Config, particle_count: int) -> int:
    """How many images, real and simulated, a batch of so many training particles has."""
    simulated = simulated_count(config)
    real = config.training.batch_size - simulated
    if draws_pairs(config):
        return real // 2 * 2 + simulated
    return min(real, particle_count) + simulated


def draws_pairs(config: Config) -> bool:
    """Whether a batch holds pairs that were drawn, instead of images that all form pairs."""
    return config.training.loss == "pairs" and PAIRINGS.chosen(config.training.pairs) is not None


def simulated_count(config: Config) -> int:
    """How many images of a batch are simulated; even, as they may have to form pairs."""
    half = config.training.batch_size / 2
    return 2 * min(round(config.augmentation.simulated_share * half), int(half))


@dataclass(frozen=True)
class Batch:
    """The images of one step.

    Attributes
    ----------
    images : Tensor
        (b, m, m); where several processes share the batch, those of `distributed.own_share` alone.
    orientations : Tensor
        (b, 4), of all images.
    pairs : Tensor
        Rows (2, p) of the images that form pairs.
    """

    images: Tensor
    orientations: Tensor
    pairs: Tensor


@dataclass(frozen=True)
class TrainingImages:
    """The particles to learn from as the network sees them.

    Attributes
    ----------
    images : Tensor
        Network inputs (n, m, m).
    orientations : Tensor
        (n, 4).
    ctf : CtfParameters, optional
    pixel_size_angstrom : float
        Of the inputs; with ``ctf`` for errors in defocus.
    """

    images: Tensor
    orientations: Tensor
    ctf: CtfParameters | None
    pixel_size_angstrom: float


class ShuffledRows:
    """Walks through all of ``count`` rows in random order, then again in another."""

    def __init__(self, count: int, generator: torch.Generator) -> None:
        self.count, self.generator = count, generator
        self.order, self.position = torch.empty(0, dtype=torch.long), 0

    def next(self, batch_size: int) -> Tensor:
        """The next rows, (b,): ``batch_size``, or all where there are fewer."""
        size = min(batch_size, self.count)
        if self.position + size > len(self.order):
            self.order = torch.randperm(self.count, generator=self.generator)
            self.position = 0
        self.position += size
        return self.order[self.position - size : self.position]


class BatchSource:
    """Makes batches from training images as a configuration wants them.

    Every process draws all that is random about a batch from its equal ``generator``, so that any number of
    them makes the same batch, and makes its own share of the images on ``device``.

    Parameters
    ----------
    particles : TrainingImages
    config : Config
    simulator : ImageSimulator, optional
        Where a share of the images is simulated. Where pairs are drawn, these form pairs at random.
    generator : torch.Generator
    device : torch.device
        Where images are made.
    """

    def __init__(
        self,
        particles: TrainingImages,
        config: Config,
        simulator: ImageSimulator | None,
        generator: torch.Generator,
        device: torch.device = CPU,
    ) -> None:
        self.particles, self.config, self.simulator = particles, config, simulator
        self.generator, self.device = generator, device
        self.rows = ShuffledRows(len(particles.images), generator)

    def next(self) -> Batch:
        """The next batch."""
        simulated = simulated_count(self.config)
        rows = self._next_rows(self.config.training.batch_size - simulated)
        own = torch.arange(len(rows) + simulated)[own_share()]
        images, orientations = self._changed(rows, own[own < len(rows)])
        if self.simulator is not None and simulated:
            others = own[own >= len(rows)] - len(rows)
            more_images, more_orientations = self.simulator.draw(simulated, self.generator, others)
            images = torch.cat([images, more_images])
            orientations = torch.cat([orientations, more_orientations])
        if self.config.symmetry_handling == "domain":
            orientations = in_fundamental_domain(orientations, symmetry_group(self.config.symmetry))
        if not draws_pairs(self.config):
            return Batch(images, orientations, all_pairs(len(orientations)))
        parts = torch.arange(len(orientations)).tensor_split([len(rows)])  # real, simulated
        return Batch(images, orientations, torch.cat([part.view(2, -1) for part in parts], dim=1))

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs to go on."""
        rows = self.rows
        return {"generator": self.generator.get_state(), "order": rows.order, "position": rows.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where another source of the same particles was."""
        self.generator.set_state(state["generator"])
        self.rows.order, self.rows.position = state["order"], state["position"]

    def _next_rows(self, count: int) -> Tensor:
        """Rows of real images: of drawn pairs first the first image of each, then the second ones."""
        if not draws_pairs(self.config):
            return self.rows.next(count)
        draw = PAIRINGS.chosen(self.config.training.pairs)
        group = symmetry_group(self.config.learned_symmetry)
        return draw(self.particles.orientations, group, count // 2, self.generator).flatten()

    def _changed(self, rows: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """Images of the ``chosen`` of ``rows``, changed at random, and the orientations of all rows."""
        particles, augmentation = self.particles, self.config.augmentation
        changes = draw_changes(
            len(rows),
            particles.images.shape[-1],
            augmentation,
            self.generator,
            turned_alike=2 if draws_pairs(self.config) else 1,
            has_ctf=particles.ctf is not None,
        )
        ctf = None if particles.ctf is None else particles.ctf[rows[chosen]]
        images = changed_images(
            particles.images[rows[chosen]].to(self.device),
            changes[chosen],
            augmentation,
            ctf,
            particles.pixel_size_angstrom,
        )
        return images, changed_orientations(particles.orientations[rows], changes)
