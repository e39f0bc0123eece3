"""Heads: what a network's numbers say about the orientation.

Here is what every head can do; `matrix_heads` and `density_heads` hold those there are, and `choices.HEADS`
their names.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from cryoforum.choices import HEADS
from cryoforum.config import NetworkConfig, TrainingConfig
from cryoforum.distributions.bingham import OrientationPosterior
from cryoforum.geometry.point_groups import nearest_equivalent, symmetry_group
from cryoforum.geometry.rotations import compose, inverse, left_matrix, right_matrix
from cryoforum.runtime.devices import Compute

# log likelihood (mean over a batch, 0 for the uniform density) of (numbers, true rotations, step)
Likelihood = Callable[[Tensor, Tensor, int], Tensor]


class Head(Protocol):
    """Reads the numbers (n, ``size``) of n images."""

    @property
    def starts_small(self) -> bool:
        """Whether a new network's numbers have to be near 0, where the density is uniform.

        Large coefficients of a log density would be confidently wrong.
        """
        ...

    @property
    def size(self) -> int:
        """How many numbers it reads of an image."""
        ...

    def posterior(self, numbers: Tensor) -> OrientationPosterior:
        """What the numbers say, as one Bingham distribution an image."""
        ...

    def posterior_of_copies(self, numbers: Sequence[Tensor], turns: Tensor) -> OrientationPosterior:
        """The mean log density of several copies of each image, as one Bingham distribution an image.

        Copies share the noise of one image, so their densities are averaged and not multiplied.

        Parameters
        ----------
        numbers : sequence of Tensor
            Of each copy, (n, size).
        turns : Tensor
            r of each copy, (copies, 4): its orientation is q∘r instead of q.
        """
        ...

    def expected_error(
        self, numbers: Sequence[Tensor], turns: Tensor, posterior: OrientationPosterior, sharpness: float
    ) -> Tensor:
        """Root mean square angle in radians, (n,), to the mode of ``posterior`` under all that numbers say.

        Parameters
        ----------
        numbers, turns
            As of `posterior_of_copies`.
        posterior
            Of these copies, sharpened.
        sharpness
            By which all log densities are multiplied.
        """
        ...

    def orientation(self, numbers: Tensor) -> Tensor:
        """Most probable orientation, unit quaternions (n, 4), differentiable."""
        ...

    def features(self, rotations: Tensor) -> Tensor:
        """What `log_density` needs of ``rotations`` (g, 4); (g, …)."""
        ...

    def log_density(self, numbers: Tensor, features: Tensor) -> Tensor:
        """What the numbers say of each rotation of `features`, (n, g); not normalised."""
        ...

    def normalised_log_density(self, numbers: Tensor, rotations: Tensor) -> Tensor:
        """log density relative to the uniform one, (n, e), at e rotations of each image, (n, e, 4).

        Normalised exactly, or as exactly as `log_z_adaptive` can; no grid of training is in it.
        """
        ...

    def likelihood(self, config: TrainingConfig, generator: torch.Generator, compute: Compute) -> Likelihood:
        """The function that training by likelihood maximises.

        Parameters
        ----------
        config : TrainingConfig
            A density without a closed normalising constant takes it far from the truth over ``grid_count``
            turned copies, in turn, of the grid of ``grid_nside``; see `distributions.log_z_training`.
        generator : torch.Generator
            Draws the turns.
        compute : Compute
            Where the numbers will be, and the format of large tables.
        """
        ...


def head_of(config: NetworkConfig, symmetry: str = "C1") -> Head:
    """The head that a configuration names, for a molecule of a point group."""
    return HEADS.chosen(config.head)(config, symmetry)


def mean_posterior(
    posteriors: Sequence[OrientationPosterior], turns: Tensor, symmetry: str
) -> OrientationPosterior:
    """The mean of posteriors of turned copies of n images, as one posterior an image.

    Parameters
    ----------
    posteriors : sequence of OrientationPosterior
        Of each copy, about q∘r.
    turns : Tensor
        r of each copy, (copies, 4).
    symmetry : str
        Point group: each posterior is moved to the equivalent nearest to the mode of the first.
    """
    group = symmetry_group(symmetry)
    back = []
    for posterior, turn in zip(posteriors, turns, strict=True):
        matrix = right_matrix(turn)
        back.append(OrientationPosterior(matrix.mT @ posterior.concentration @ matrix))
    first = back[0].mode
    aligned = []
    for posterior in back:
        mode = posterior.mode
        move = compose(nearest_equivalent(mode, first, group), inverse(mode))  # S, of each image its own
        matrix = left_matrix(move)
        aligned.append(matrix @ posterior.concentration @ matrix.mT)
    return OrientationPosterior(torch.stack(aligned).mean(0))
