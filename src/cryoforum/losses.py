"""What training minimises."""

import torch
from torch import Tensor

from cryoforum.symmetry import symmetric_distance, symmetry_group


def pair_loss(
    predicted: Tensor, true: Tensor, progress: float, exponent: float = 0.5, symmetry: str = "C1"
) -> Tensor:
    """Cryo-forum, eq. 4, over all pairs of a batch: orientation error plus error of pair distances.

    The curriculum weighs single errors by (i/l)^½ (½ for either image of a pair) and pair distances
    by 1 - (i/l)^½, with i/l = ``progress`` in [0, 1] through training. Unit quaternions, (b, 4) each. All
    distances are those to the nearest equivalent of the point group ``symmetry``.
    """
    group = symmetry_group(symmetry)
    weight = progress**exponent
    single = symmetric_distance(predicted, true, group).mean()
    first, second = torch.triu_indices(len(true), len(true), offset=1, device=true.device)
    true_distance = symmetric_distance(true[first], true[second], group)
    distance = symmetric_distance(predicted[first], predicted[second], group)
    return weight * single + (1 - weight) * (distance - true_distance).abs().mean()


def l2_penalty(weights: list[Tensor]) -> Tensor:
    """Sum of squares of all weights, as Keras' L2 regulariser counts it."""
    return torch.stack([weight.square().sum() for weight in weights]).sum()
