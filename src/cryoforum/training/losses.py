"""What training minimises; `choices.LOSSES` holds the names."""

from collections.abc import Callable

import torch
from torch import Tensor

from cryoforum.choices import AUXILIARIES
from cryoforum.config import Config
from cryoforum.geometry.point_groups import symmetric_distance, symmetry_group
from cryoforum.network.heads import head_of
from cryoforum.runtime.devices import Compute
from cryoforum.runtime.distributed import gathered, own_share

# Loss of (numbers (b, k), true orientations (b, 4), pairs (2, p) of them, progress in [0, 1], step).
# Of several processes each gives the numbers of its own share of the images, and all else of the whole batch;
# the mean of their losses is that of the batch.
Loss = Callable[[Tensor, Tensor, Tensor, float, int], Tensor]
# What makes one takes the configuration, a generator for what is drawn once, such as turned grids, and where
# the numbers will be and in which format large tables may be.


def likelihood_loss(config: Config, generator: torch.Generator, compute: Compute) -> Loss:
    """Minus the mean log likelihood of the head's own density, 0 for the uniform one."""
    head = head_of(config.network, config.learned_symmetry)
    log_likelihood = head.likelihood(config.training, generator, compute)

    def likelihood(numbers: Tensor, truth: Tensor, pairs: Tensor, progress: float, step: int) -> Tensor:
        return -log_likelihood(numbers, truth[own_share()], step)

    return likelihood


def regression_loss(config: Config, generator: torch.Generator, compute: Compute) -> Loss:
    """The mean orientation error of single images in radians (one branch)."""
    head, group = head_of(config.network, config.learned_symmetry), symmetry_group(config.learned_symmetry)

    def regression(numbers: Tensor, truth: Tensor, pairs: Tensor, progress: float, step: int) -> Tensor:
        return symmetric_distance(head.orientation(numbers), truth[own_share()], group).mean()

    return regression


def siamese_loss(config: Config, generator: torch.Generator, compute: Compute) -> Loss:
    """Cryo-forum, eq. 4, over pairs of images (two branches): `pair_loss` with the weight of the progress."""
    head, group = head_of(config.network, config.learned_symmetry), symmetry_group(config.learned_symmetry)
    settings = config.training
    weight_at = AUXILIARIES.chosen(settings.auxiliary)

    def siamese(numbers: Tensor, truth: Tensor, pairs: Tensor, progress: float, step: int) -> Tensor:
        weight = weight_at(progress, settings.curriculum_exponent)
        return pair_loss(gathered(head.orientation(numbers)), truth, pairs, weight, group)

    return siamese


def curriculum(progress: float, exponent: float) -> float:
    """Weight of the orientation error, from 0 to 1 as (i/l)^½ where the exponent is ½ (Cryo-forum, eq. 4)."""
    return progress**exponent


def constant_weight(progress: float, exponent: float) -> float:
    """½ throughout."""
    return 0.5


def no_pairs(progress: float, exponent: float) -> float:
    """1 throughout: the distances of pairs do not count."""
    return 1.0


def pair_loss(predicted: Tensor, true: Tensor, pairs: Tensor, weight: float, group: Tensor) -> Tensor:
    """Cryo-forum, eq. 4: orientation error of both images of a pair, plus the error of their distance.

    Parameters
    ----------
    predicted, true : Tensor
        Unit quaternions (b, 4).
    pairs : Tensor
        Rows of them, (2, p).
    weight : float
        Of the orientation error, averaged over both images; 1 - ``weight`` is that of the absolute error of
        the distance between the two.
    group : Tensor
        Elements (g, 4) of the point group: all distances are to the nearest equivalent.

    Returns
    -------
    Tensor
        Mean over the pairs, in radians.
    """
    first, second = pairs.to(true.device)
    error = symmetric_distance(predicted, true, group)
    loss = weight * (error[first] + error[second]).mean() / 2
    if weight == 1:
        return loss
    true_distance = symmetric_distance(true[first], true[second], group)
    distance = symmetric_distance(predicted[first], predicted[second], group)
    return loss + (1 - weight) * (distance - true_distance).abs().mean()


def l2_penalty(weights: list[Tensor]) -> Tensor:
    """Sum of squares of all weights, as Keras' L2 regulariser counts it."""
    return torch.stack([weight.square().sum() for weight in weights]).sum()
