"""Initial weights: a pure function of (seed, parameter's name), so that they are the same at every world size."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from trainingjob_trainer.models.adapted import Adapted

INIT_STD = 0.02
RESIDUAL_OUTPUTS = ("attention.out.weight", "ffn.down.weight")


def init_weights(model: nn.Module, seed: int) -> None:
    """Initialise every parameter in place: norms one, biases zero, matrices normal with standard deviation 0.02.

    Matrices that write to the residual stream are scaled by 1/sqrt(2 * layers) (Radford et al. 2019). Convolutions and
    recurrent layers have rules of their own. Models of libraries are initialised as the library does it.
    """
    fill(model, model.initial(seed) if isinstance(model, Adapted) else _own(model, seed))


@torch.no_grad()
def fill(model: nn.Module, values: Iterable[tuple[str, Tensor]]) -> None:
    """Have parameters and buffers hold these values, by name. Of each whole one, on the CPU, a rank keeps its shard."""
    parameters = {**dict(model.named_buffers()), **dict(model.named_parameters())}
    for name, initial in values:
        parameter = parameters.get(name)  # none for a parameter that is tied to another one
        if isinstance(parameter, DTensor):
            shard = distribute_tensor(
                initial.to(parameter.device), parameter.device_mesh, parameter.placements, src_data_rank=None
            )
            parameter.to_local().copy_(shard.to_local())
        elif parameter is not None:
            parameter.copy_(initial)


def _own(model: nn.Module, seed: int) -> Iterator[tuple[str, Tensor]]:
    layers = len(model.get_submodule("blocks")._modules)
    for name, parameter in model.named_parameters():
        owner = model.get_submodule(name.rpartition(".")[0])
        yield name, _initial(name, parameter.shape, owner, seed, layers)


def _initial(name: str, shape: torch.Size, owner: nn.Module, seed: int, layers: int) -> Tensor:
    key = int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:7])
    generator = torch.Generator().manual_seed(key)
    if isinstance(owner, nn.RNNBase):
        return _recurrent(name, shape, owner, generator)
    if len(shape) == 1:
        return torch.zeros(shape) if name.endswith("bias") else torch.ones(shape)
    std = INIT_STD / math.sqrt(2 * layers) if name.endswith(RESIDUAL_OUTPUTS) else INIT_STD
    if isinstance(owner, nn.Conv2d):
        std = math.sqrt(2 / math.prod(shape[1:]))  # for ReLU (He et al. 2015)
    return torch.empty(shape).normal_(std=std, generator=generator)


def _recurrent(name: str, shape: torch.Size, owner: nn.RNNBase, generator: torch.Generator) -> Tensor:
    """A recurrent layer that remembers at first: each gate's recurrent matrix orthogonal (Saxe et al. 2014), and the
    bias of the gate that keeps the state one (Gers et al. 2000; Jozefowicz et al. 2015): the second one in both cells.
    """
    initial = torch.zeros(shape)
    gates = initial.chunk(shape[0] // owner.hidden_size)
    if "weight_hh" in name:
        for gate in gates:
            nn.init.orthogonal_(gate, generator=generator)
    elif "weight_ih" in name:
        initial.normal_(std=1 / math.sqrt(shape[1]), generator=generator)
    elif "bias_ih" in name:
        gates[1].fill_(1.0)
    return initial
