"""L1 and L2: terms of the loss that depend on the weights alone, added as their gradients."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from trainingjob_trainer.config import Optimizer
from trainingjob_trainer.optim.optimizers import matrices
from trainingjob_trainer.parallel import local_part


@torch.no_grad()
def add_penalties(parameters: Iterable[nn.Parameter], config: Optimizer, count: Tensor) -> None:
    """Add to `.grad` the gradient of `count * (l1 * sum|w| + l2/2 * sum w^2)` over the matrices.

    Gradients are of a loss that is still to be divided by `count`, the step's targets over all ranks. The terms are
    sums over elements, so each rank's shard gets exactly its own part; one matrix at a time, because all are large.
    """
    for parameter in matrices(parameters):
        if parameter.grad is None:
            continue
        weight, gradient = local_part(parameter), local_part(parameter.grad)
        scale = count.to(weight.dtype)
        if config.l2:
            gradient.addcmul_(weight, config.l2 * scale)
        if config.l1:
            gradient.addcmul_(weight.sign(), config.l1 * scale)
