"""Batches to learn from: real images, changed at random, simulated ones, and which of them form pairs."""

from dataclasses import dataclass

import torch
from torch import Tensor

from cryoforum.config import Config
from cryoforum.dataset.ctf_parameters import CtfParameters
from cryoforum.geometry.point_groups import in_fundamental_domain, symmetry_group
from cryoforum.network.augmentation import changed_images, changed_orientations, draw_changes
from cryoforum.runtime.devices import CPU
from cryoforum.runtime.distributed import own_share
from cryoforum.training.pairs import all_pairs, random_pairs, stratified_pairs
from cryoforum.training.simulated_images import ImageSimulator
from cryoforum.training.state import Course


def image_count(config: Config, particle_count: int) -> int:
    """How many images, real and simulated, a batch of so many training particles has."""
    simulated = simulated_count(config)
    real = config.training.batch_size - simulated
    if draws_pairs(config):
        return real // 2 * 2 + simulated
    return min(real, particle_count) + simulated


def draws_pairs(config: Config) -> bool:
    """Whether a batch holds pairs that were drawn, instead of images that all form pairs."""
    return config.training.loss == "pairs" and config.training.pairs != "all"


def simulated_count(config: Config) -> int:
    """How many images of a batch are simulated; even, as they may have to form pairs."""
    half = config.training.batch_size / 2
    return 2 * min(round(config.augmentation.simulated_share * half), int(half))


@dataclass(frozen=True)
class Batch:
    """Orientations (b, 4) of the images of a batch, and pairs (2, p) of their rows.

    images: (b, m, m); where several processes share the batch, those of `processes.own_share` alone.
    """

    images: Tensor
    orientations: Tensor
    pairs: Tensor


@dataclass(frozen=True)
class BatchSource:
    """Makes batches of the network inputs (n, m, m) of a training set, as ``config`` wants them.

    orientations: (n, 4). optics, pixel_size_angstrom: of the inputs, for errors in defocus. simulator:
    where a share of the images is simulated. Where pairs are drawn, simulated images form pairs at random.

    Every process draws all that is random about a batch from its equal ``generator``, so that any number of
    them makes the same batch, and makes its own share of the images on ``device``.
    """

    images: Tensor
    orientations: Tensor
    ctf: CtfParameters | None
    pixel_size_angstrom: float
    config: Config
    simulator: ImageSimulator | None
    generator: torch.Generator
    device: torch.device = CPU

    def next(self, course: Course) -> Batch:
        """The batch that comes after those that ``course`` has seen."""
        augmentation = self.config.augmentation
        simulated = simulated_count(self.config)
        real = self.config.training.batch_size - simulated
        drawn = draws_pairs(self.config)
        if drawn:  # a batch holds its pairs only: first their first images, then their second ones
            rows = self._drawn_pairs(real // 2).flatten()
        else:
            rows = course.next_rows(len(self.images), real, self.generator)
        changes = draw_changes(
            len(rows),
            self.images.shape[-1],
            augmentation,
            self.generator,
            turned_alike=2 if drawn else 1,
            has_ctf=self.ctf is not None,
        )
        own = torch.arange(len(rows) + simulated)[own_share()]
        chosen = own[own < len(rows)]
        ctf = None if self.ctf is None else self.ctf[rows[chosen]]
        images = self.images[rows[chosen]].to(self.device)
        images = changed_images(images, changes[chosen], augmentation, ctf, self.pixel_size_angstrom)
        orientations = changed_orientations(self.orientations[rows], changes)
        if self.simulator is not None and simulated:
            others = own[own >= len(rows)] - len(rows)
            more_images, more_orientations = self.simulator.draw(simulated, self.generator, others)
            images = torch.cat([images, more_images])
            orientations = torch.cat([orientations, more_orientations])
        if self.config.symmetry_handling == "domain":
            orientations = in_fundamental_domain(orientations, symmetry_group(self.config.symmetry))
        if not drawn:
            return Batch(images, orientations, all_pairs(len(orientations)))
        parts = torch.arange(len(orientations)).tensor_split([len(rows)])  # real, simulated
        return Batch(images, orientations, torch.cat([part.view(2, -1) for part in parts], dim=1))

    def _drawn_pairs(self, count: int) -> Tensor:
        if self.config.training.pairs == "random":
            return random_pairs(len(self.images), count, self.generator)
        group = symmetry_group(self.config.learned_symmetry)
        return stratified_pairs(self.orientations, group, count, self.generator)
