"""Initial weights: a pure function of (seed, parameter's name), so that they are the same at every world size."""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

INIT_STD = 0.02
RESIDUAL_OUTPUTS = ("attention.out.weight", "ffn.down.weight")


@torch.no_grad()
def init_weights(model: nn.Module, seed: int) -> None:
    """Initialise every parameter in place: norms one, biases zero, matrices normal with standard deviation 0.02.

    Matrices that write to the residual stream are scaled by 1/sqrt(2 * layers) (Radford et al. 2019). A rank holds at
    most one whole parameter at a time, on the CPU, and keeps its shard.
    """
    layers = len(model.get_submodule("blocks")._modules)
    for name, parameter in model.named_parameters():
        initial = _initial(name, parameter.shape, seed, layers)
        if isinstance(parameter, DTensor):
            shard = distribute_tensor(
                initial.to(parameter.device), parameter.device_mesh, parameter.placements, src_data_rank=None
            )
            parameter.to_local().copy_(shard.to_local())
        else:
            parameter.copy_(initial)


def _initial(name: str, shape: torch.Size, seed: int, layers: int) -> Tensor:
    if len(shape) == 1:
        return torch.zeros(shape) if name.endswith("bias") else torch.ones(shape)
    std = INIT_STD / math.sqrt(2 * layers) if name.endswith(RESIDUAL_OUTPUTS) else INIT_STD
    key = int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:7])
    return torch.empty(shape).normal_(std=std, generator=torch.Generator().manual_seed(key))
