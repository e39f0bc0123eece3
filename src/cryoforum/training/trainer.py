"""One step of training, and one validation."""

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from cryoforum.choices import LOSSES
from cryoforum.config import Config
from cryoforum.errors import InputError, require
from cryoforum.geometry.point_groups import symmetric_distance, symmetry_group
from cryoforum.network.heads import head_of
from cryoforum.network.model import OrientationNetwork
from cryoforum.runtime.devices import Compute
from cryoforum.runtime.distributed import (
    average_gradients,
    averaged,
    joined_shares,
    own_share,
    process_rank_and_count,
)
from cryoforum.runtime.random_streams import RandomStream
from cryoforum.training.batches import Batch, BatchSource
from cryoforum.training.data import TrainingData
from cryoforum.training.history import TrainingHistory
from cryoforum.training.losses import Loss, l2_penalty
from cryoforum.training.options import TrainingOptions

GRADIENT_NORM_LIMIT = 5.0
VALIDATION_BATCH_SIZE = 256
STATEFUL = ("network", "optimizer", "batches", "random_stream")  # parts of a trainer, besides its history


class Diverged(InputError):
    """The network's numbers are no longer finite."""


class Trainer:
    """A new network and all that changes while it is trained.

    Processes that share batches (see `runtime.distributed`) all take the same steps, those of whole batches.

    Parameters
    ----------
    config : Config
    data : TrainingData
    compute : Compute
        Where the network is trained and in which format.
    options : TrainingOptions
        Its seed is that of first weights, dropout, and all that is random about batches: the caller's random
        numbers are neither used nor changed. A loss, network or optimizer in it takes the place of those
        that the configuration names.

    Attributes
    ----------
    network : OrientationNetwork
    batches : BatchSource
        Training images, batch by batch.
    history : TrainingHistory
        What was done so far, and the best weights.
    """

    def __init__(
        self, config: Config, data: TrainingData, compute: Compute, options: TrainingOptions
    ) -> None:
        self.config, self.compute, self.data, self.seed = config, compute, data, options.seed
        generator = torch.Generator().manual_seed(self.seed)
        self.loss: Loss = options.loss or LOSSES.chosen(config.training.loss)(config, generator, compute)
        self.batches = BatchSource(data.particles, config, data.simulator, generator, compute.device)
        self.random_stream = RandomStream(self.seed, compute.device)
        with self.random_stream.drawn_from():
            network = options.network or OrientationNetwork(
                config.network, config.preprocessing.box, config.learned_symmetry
            )
        self.network: nn.Module = network.to(compute.device, memory_format=torch.channels_last)
        if options.network is not None:
            _refuse_other_numbers(self.network, config, compute)
        self.optimizer = (options.optimizer or partial(_adamw, config))(_groups(self.network, config))
        self.history = TrainingHistory()
        self._give_each_process_its_own_dropout()

    def step(self, batch: Batch, rate: float, momentum: float, progress: float) -> float:
        """Take one step of the optimizer.

        Parameters
        ----------
        batch : Batch
            Of `batches`.
        rate, momentum : float
            Learning rate, and the first β of AdamW.
        progress : float
            Through the training, 0 to 1, for losses that have a curriculum.

        Returns
        -------
        float
            The loss before the step.

        Raises
        ------
        Diverged
            Where the network's numbers are no longer finite.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = rate
            if "betas" in group:
                group["betas"] = momentum, group["betas"][1]
        device, steps = self.compute.device, self.history.steps
        with self.random_stream.drawn_from(), self.compute.autocast():
            numbers = self.network(batch.images.to(device)).float()
        if averaged(float(torch.isfinite(numbers).all())) < 1:
            raise Diverged(f"training diverged in step {steps}; lower max_learning_rate")
        loss = self.loss(numbers, batch.orientations.to(device), batch.pairs, progress, steps)
        if self.config.training.l2:
            kernels = self.optimizer.param_groups[0]["params"]
            loss = loss + self.config.training.l2 * l2_penalty(kernels)
        self.optimizer.zero_grad()
        loss.backward()
        average_gradients(self.network.parameters())
        nn.utils.clip_grad_norm_(self.network.parameters(), GRADIENT_NORM_LIMIT)
        self.optimizer.step()
        found = averaged(loss.item())
        self.history.add_step(found, len(batch.orientations), rate, momentum)
        return found

    def validate(self, progress: float) -> Tensor:
        """Take the validation errors at ``progress`` through the training; `history` keeps the best weights.

        Returns
        -------
        Tensor
            Orientation errors (v,) in radians, to the nearest equivalent; NaN where the network's numbers are
            not finite.
        """
        self.network.eval()
        found = joined_shares(self._own_validation_errors(), len(self.data.validation_truth))
        self.network.train()
        errors, chance = found.unbind(1)
        self.history.add_validation(progress, errors, chance, self.network)
        return errors

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values that `load_state_dict` needs to go on."""
        states = {name: getattr(self, name).state_dict() for name in STATEFUL}
        return {**states, "history": dict(vars(self.history))}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where another trainer of the same configuration and particles was."""
        for name in STATEFUL:
            getattr(self, name).load_state_dict(state[name])
        self.history = TrainingHistory(**state["history"])
        self._give_each_process_its_own_dropout()

    def _give_each_process_its_own_dropout(self) -> None:
        """As its images are others; the state is that of the first process."""
        rank, _ = process_rank_and_count()
        if rank > 0:
            self.random_stream.reseed(self.seed + 1_000_003 * rank + self.history.steps)

    def _own_validation_errors(self) -> Tensor:
        """(v, 2) of this process's share of the images: to their own truth, and to other particles'."""
        head = head_of(self.config.network, self.config.learned_symmetry)
        group = symmetry_group(self.config.symmetry)
        all_images, truth = self.data.validation_images, self.data.validation_truth
        all_truths = torch.stack([truth, truth.roll(max(1, len(truth) // 2), 0)], dim=1)[own_share()]
        errors = [torch.empty(0, 2)]
        for first in range(0, len(all_images), VALIDATION_BATCH_SIZE):
            rows = slice(first, first + VALIDATION_BATCH_SIZE)
            with torch.no_grad(), self.compute.autocast():
                numbers = self.network(all_images[rows].to(self.compute.device)).float().cpu()
            if torch.isfinite(numbers).all():
                mode = head.posterior(numbers).mode
                both = [symmetric_distance(mode, truths, group) for truths in all_truths[rows].unbind(1)]
                errors.append(torch.stack(both, dim=1))
            else:
                errors.append(torch.full((len(numbers), 2), math.nan))
        return torch.cat(errors)


def _refuse_other_numbers(network: nn.Module, config: Config, compute: Compute) -> None:
    """InputError where a caller's network does not give what the head reads."""
    box, head = config.preprocessing.box, head_of(config.network, config.learned_symmetry)
    with torch.no_grad():
        found = tuple(network(torch.zeros(2, box, box, device=compute.device)).shape)
    expected = f"a network from images (b, {box}, {box}) to numbers (b, {head.size}), which the head reads"
    require(found == (2, head.size), expected, f"{found} of 2 images")


def _groups(network: nn.Module, config: Config) -> list[dict[str, Any]]:
    """Weights of convolutions and dense layers; the others do not decay."""
    kernels = [weight for weight in network.parameters() if weight.ndim in (2, 4)]
    others = [weight for weight in network.parameters() if weight.ndim not in (2, 4)]
    return [
        {"params": kernels, "weight_decay": config.training.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]


def _adamw(config: Config, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(
        groups, lr=config.training.max_learning_rate, betas=(0.95, 0.99), eps=1e-7, fused=True
    )
