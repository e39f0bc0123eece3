"""Batch normalisation that sees the whole batch, also where several processes share it."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm

from cryoforum.runtime.distributed import add_up, gathered, process_rank_and_count


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
        # Of the ways to a mean and a biased variance the fastest; in float32, as bfloat16 would round both.
        own = torch.batch_norm_update_stats(features.detach().float(), None, None, 0.0)
        moments = gathered(torch.stack(own)[None])
        mean = moments[:, 0].mean(0)
        variance = moments[:, 1].mean(0) + moments[:, 0].var(0, correction=0)
        value_count = count * features.numel() // features.shape[1]
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance * value_count / (value_count - 1), self.momentum)
        self.num_batches_tracked.add_(1)
        return _Normalised.apply(features, self.weight, self.bias, mean, variance, self.eps)


class _Normalised(torch.autograd.Function):
    """Features over the deviation of the whole batch, less its mean, which both depend on them.

    With fixed statistics the gradient would be w/σ·g; that they follow takes w/σ·(Σg + x̂ Σg·x̂)/n off, with
    sums over the n values of all processes.
    """

    @staticmethod
    def forward(
        ctx: Any, features: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, eps: float
    ) -> Tensor:
        ctx.save_for_backward(features, weight, mean, variance)
        ctx.eps = eps
        return batch_norm(features, mean, variance, weight, bias, training=False, eps=eps)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        features, weight, mean, variance = ctx.saved_tensors
        fixed, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
            gradient, features, weight, mean, variance, None, None, False, ctx.eps, [True, True, True]
        )
        sums = torch.stack([of_weight, of_bias]).float()
        add_up(sums)
        _, count = process_rank_and_count()
        of_products, of_gradients = sums * features.shape[1] / (count * features.numel())
        inverse_deviation = torch.rsqrt(variance + ctx.eps)
        slope = weight * inverse_deviation.square() * of_products
        offset = weight * inverse_deviation * of_gradients - mean * slope
        followed = torch.addcmul(offset[:, None, None], features, slope[:, None, None])
        return (fixed - followed).to(features.dtype), of_weight, of_bias, None, None, None
