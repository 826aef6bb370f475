"""FSDP2 over the groups of a layout: shards of a copy are gathered block by block (Zhao et al. 2023).

A group of one rank holds all of its copy: over such groups the same machinery is DDP, which sums gradients only.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from trainingjob_trainer.parallel.statistics import batch_norms
from trainingjob_trainer.parallel.world import World

Model = TypeVar("Model", bound=nn.Module)


def shard(model: Model, mesh: DeviceMesh, dtype: torch.dtype, reshard_after_forward: bool = True) -> Model:
    """Shard `model` (with its `blocks`) in place, a group for each block.

    Gradients are summed over ranks, not averaged: the loss is a sum, divided once by the step's global count. While a
    block computes, the weights of the next one are gathered. reshard_after_forward: and not kept for its backward pass.
    """
    shards = mesh["shards"]
    if shards.size() > 1:
        project_apart(model)
    mesh = mesh["copies", "shards"] if mesh["copies"].size() > 1 else shards
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.promote_types(dtype, torch.float32))
    norms = batch_norms(model) if dtype == torch.bfloat16 else []
    if norms:  # their statistics are float32, and so must be their weights
        fully_shard(norms, mesh=mesh, mp_policy=MixedPrecisionPolicy(), reshard_after_forward=False)
    blocks = [
        fully_shard(
            block, mesh=mesh, mp_policy=policy, reshard_after_forward=reshard_after_forward and shards.size() > 1
        )
        for block in model.get_submodule("blocks").children()
    ]
    root = fully_shard(model, mesh=mesh, mp_policy=policy)
    for earlier, later in pairwise([root, *blocks]):
        earlier.set_modules_to_forward_prefetch([later])
    for module in (root, *blocks, *norms[:1]):
        assert isinstance(module, FSDPModule)
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)
    return model


def project_apart(model: nn.Module) -> None:
    """Have each projection of attention be a product of its own. Put together, gathered weights would be copies that
    outlive them; and split matrices have their hooks one by one."""
    for module in model.modules():
        if hasattr(module, "joint"):
            module.joint = False  # type: ignore[assignment]


def sync_gradients(model: nn.Module, wanted: bool) -> None:
    """Whether the next backward pass reduces gradients over ranks: only the last one of a step has to."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(wanted)


def reshard(model: nn.Module) -> None:
    """Let go of gathered weights. A forward pass leaves some behind for its backward pass; where none follows, the next
    one would compute with them, whatever the weights are by then."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def full_state(model: nn.Module, world: World) -> dict[str, Tensor]:
    """The whole state dict on rank 0's CPU, empty on the others. Collective, one parameter at a time."""
    state: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if world.rank == 0:
            state[name] = whole.detach().cpu()
    return state
