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
    sums over elements, so each rank's shard gets exactly its own part.
    """
    chosen = [p for p in matrices(parameters) if p.grad is not None]
    weights, gradients = [local_part(p) for p in chosen], [local_part(p.grad) for p in chosen if p.grad is not None]
    scale = count.to(weights[0].dtype)
    if config.l2:
        torch._foreach_add_(gradients, torch._foreach_mul(weights, config.l2 * scale))
    if config.l1:
        torch._foreach_add_(gradients, torch._foreach_mul(torch._foreach_sign(weights), config.l1 * scale))
