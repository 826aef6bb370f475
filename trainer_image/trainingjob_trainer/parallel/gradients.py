"""From summed gradients to those of the step's mean loss, clipped: one reduction over ranks, no wait for the device."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from trainingjob_trainer.parallel.world import World, is_first_holder, local_part


class StepSums(NamedTuple):
    """A step over all ranks, float64 scalars on the device."""

    loss: Tensor  # mean over the targets that weigh, nats; NaN where none does
    grad_norm: Tensor  # before clipping
    targets: Tensor  # targets that weigh


@torch.no_grad()
def scale_and_clip(
    parameters: Iterable[torch.nn.Parameter], loss_sum: Tensor, count: Tensor, clip_norm: float, world: World
) -> StepSums:
    """Divide gradients of the summed loss by the global count of targets, then clip them by their global norm.

    `loss_sum` and `count` are this rank's, float64; a `clip_norm` of 0 clips nothing. Gradients are summed over ranks
    already; each rank holds a shard of them, of which there may be copies.
    """
    whole = [p.grad for p in parameters if p.grad is not None]
    gradients = [local_part(gradient) for gradient in whole]
    counted = [local_part(gradient) for gradient in whole if is_first_holder(gradient)]
    squares = loss_sum.new_zeros(())
    if counted:
        squares = torch.stack(torch._foreach_norm(counted)).double().square().sum()
    totals = torch.stack([squares, world.once(loss_sum), world.once(count)])
    world.sum(totals)
    squares, loss_sum, count = totals.unbind()
    divisor = count.clamp(min=1)
    grad_norm = squares.sqrt() / divisor
    factor = divisor.reciprocal()
    if clip_norm:  # 0: not clipped
        factor = (clip_norm / (grad_norm + 1e-6)).clamp(max=1) / divisor
    torch._foreach_mul_(gradients, factor.to(gradients[0].dtype))
    return StepSums(loss_sum / count, grad_norm, count)
