"""Batch normalisation that sees the whole batch, also where several processes share it."""

import torch
from torch import Tensor, nn

from cryoforum.processes import gathered, process_rank_and_count


class BatchNorm(nn.BatchNorm2d):
    """`torch.nn.BatchNorm2d` whose mean and variance are those of the batches of all processes together.

    PyTorch's own SyncBatchNorm refuses to run on a CPU; this one is the same on every device. All processes
    hold equally many values, so the whole variance is the mean of the variances plus that of the means.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    momentum: float

    def forward(self, features: Tensor) -> Tensor:
        _, count = process_rank_and_count()
        if count == 1 or not self.training:
            return super().forward(features)
        variances, means = torch.var_mean(features.float(), dim=(0, 2, 3), correction=0)
        moments = gathered(torch.stack([means, variances])[None])
        mean = moments[:, 0].mean(0)
        variance = moments[:, 1].mean(0) + moments[:, 0].var(0, correction=0)
        self._remember(mean.detach(), variance.detach(), count * features.numel() // features.shape[1])
        scale = self.weight * torch.rsqrt(variance + self.eps)
        shift = self.bias - mean * scale
        return (features * scale[:, None, None] + shift[:, None, None]).to(features.dtype)

    def _remember(self, mean: Tensor, variance: Tensor, value_count: int) -> None:
        """Move the running statistics, which hold the unbiased variance, towards those of a batch."""
        unbiased = variance * value_count / (value_count - 1)
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(unbiased, self.momentum)
        self.num_batches_tracked.add_(1)
