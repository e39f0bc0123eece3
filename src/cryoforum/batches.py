"""Batches to learn from: real images, changed at random, simulated ones, and which of them form pairs."""

from dataclasses import dataclass

import torch
from torch import Tensor

from cryoforum.config import Config
from cryoforum.course import Course
from cryoforum.ctf import Optics
from cryoforum.imitation import Imitation
from cryoforum.pairs import all_pairs, random_pairs, stratified_pairs
from cryoforum.preprocessing import augment
from cryoforum.symmetry import in_fundamental_domain, symmetry_group


def simulated_count(config: Config) -> int:
    """How many images of a batch are simulated; even, as they may have to form pairs."""
    half = config.training.batch_size / 2
    return 2 * min(round(config.augmentation.simulated_share * half), int(half))


@dataclass(frozen=True)
class Batch:
    """images (b, m, m), their orientations (b, 4) and pairs (2, p) of rows of both."""

    images: Tensor
    orientations: Tensor
    pairs: Tensor


@dataclass(frozen=True)
class BatchSource:
    """Makes batches of the network inputs (n, m, m) of a training set, as ``config`` wants them.

    orientations: (n, 4). optics, pixel_size_angstrom: of the inputs, for errors in defocus. imitation:
    where a share of the images is simulated. Where pairs are drawn, simulated images form pairs at random.
    """

    images: Tensor
    orientations: Tensor
    optics: Optics | None
    pixel_size_angstrom: float
    config: Config
    imitation: Imitation | None
    generator: torch.Generator

    def next(self, course: Course) -> Batch:
        """The batch that comes after those that ``course`` has seen."""
        training = self.config.training
        simulated = simulated_count(self.config)
        real = training.batch_size - simulated
        drawn = training.loss == "pairs" and training.pairs != "all"
        if drawn:  # a batch holds its pairs only: first their first images, then their second ones
            pairs = self._drawn_pairs(real // 2)
            rows = pairs.flatten()
        else:
            rows = course.next_rows(len(self.images), real, self.generator)
        optics = None if self.optics is None else self.optics[rows]
        images, orientations = augment(
            self.images[rows],
            self.orientations[rows],
            self.config.augmentation,
            self.generator,
            optics,
            self.pixel_size_angstrom,
            turned_alike=2 if drawn else 1,
        )
        if self.imitation is not None and simulated:
            more_images, more_orientations = self.imitation.draw(simulated, self.generator)
            images = torch.cat([images, more_images])
            orientations = torch.cat([orientations, more_orientations])
        if self.config.symmetry_handling == "domain":
            orientations = in_fundamental_domain(orientations, symmetry_group(self.config.symmetry))
        if not drawn:
            return Batch(images, orientations, all_pairs(len(images)))
        parts = torch.arange(len(images)).tensor_split([len(rows)])  # real, simulated
        return Batch(images, orientations, torch.cat([part.view(2, -1) for part in parts], dim=1))

    def _drawn_pairs(self, count: int) -> Tensor:
        if self.config.training.pairs == "random":
            return random_pairs(len(self.images), count, self.generator)
        group = symmetry_group(self.config.learned_symmetry)
        return stratified_pairs(self.orientations, group, count, self.generator)
