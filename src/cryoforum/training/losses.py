"""What training minimises, chosen by name: `loss_function`."""

from collections.abc import Callable

import torch
from torch import Tensor

from cryoforum.config import Config
from cryoforum.geometry.point_groups import symmetric_distance, symmetry_group
from cryoforum.network.heads import head_of
from cryoforum.runtime.distributed import gathered, own_share

# Loss of (numbers (b, k), true orientations (b, 4), pairs (2, p) of them, progress in [0, 1], step).
# Of several processes each gives the numbers of its own share of the images, and all else of the whole batch;
# the mean of their losses is that of the batch.
Loss = Callable[[Tensor, Tensor, Tensor, float, int], Tensor]


def loss_function(config: Config, generator: torch.Generator, device: torch.device) -> Loss:
    """The loss that ``config.training.loss`` names.

    likelihood: that of the head's own density. regression: the orientation error of single images (one
    branch). pairs: Cryo-forum, eq. 4, over pairs of images (two branches).
    """
    settings = config.training
    head = head_of(config.network, config.learned_symmetry)
    group = symmetry_group(config.learned_symmetry)

    if settings.loss == "likelihood":
        log_likelihood = head.likelihood(settings.grid_nside, settings.grid_count, generator, device)

        def likelihood(numbers: Tensor, truth: Tensor, pairs: Tensor, progress: float, step: int) -> Tensor:
            return -log_likelihood(numbers, truth[own_share()], step)

        return likelihood

    def regression(numbers: Tensor, truth: Tensor, pairs: Tensor, progress: float, step: int) -> Tensor:
        return symmetric_distance(head.orientation(numbers), truth[own_share()], group).mean()

    def siamese(numbers: Tensor, truth: Tensor, pairs: Tensor, progress: float, step: int) -> Tensor:
        weight = single_weight(settings.auxiliary, settings.curriculum_exponent, progress)
        return pair_loss(gathered(head.orientation(numbers)), truth, pairs, weight, group)

    return regression if settings.loss == "regression" else siamese


def single_weight(auxiliary: str, exponent: float, progress: float) -> float:
    """Weight of the orientation error, 1 minus that of the pair distances' error.

    The curriculum goes from 0 to 1 as (i/l)^½ does, i/l being the ``progress`` through training (Cryo-forum,
    eq. 4); "constant" is ½, "none" is 1.
    """
    return {"curriculum": progress**exponent, "constant": 0.5, "none": 1.0}[auxiliary]


def pair_loss(predicted: Tensor, true: Tensor, pairs: Tensor, weight: float, group: Tensor) -> Tensor:
    """Cryo-forum, eq. 4: orientation error of both images of a pair, plus the error of their distance.

    Unit quaternions (b, 4) each; ``pairs`` (2, p) are rows of them. The orientation error, averaged over both
    images, has ``weight``, the absolute error of the distance between the two 1 - ``weight``. All distances
    are those to the nearest equivalent of the point ``group``.
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
