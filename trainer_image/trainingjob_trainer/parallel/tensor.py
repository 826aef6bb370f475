"""Tensor parallelism for the decoder (Shoeybi et al. 2019), its norms over parts of the sequence (Korthikanti et al.
2022), its loss over parts of the vocabulary.

A matrix that reads the residual stream is split by outputs, so that each rank has whole heads; one that writes to it is
split by inputs. Between them the stream is split by positions, and so is its dropout: splitting changes no result. Each
rank ends with its part of the logits.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    SequenceParallel,
    loss_parallel,
    parallelize_module,
)
from torch.distributed.tensor.parallel.style import ParallelStyle

from trainingjob_trainer.parallel.sharding import project_apart
from trainingjob_trainer.parallel.world import World

BY_POSITION, BY_HEAD, BY_ENTRY = Shard(1), Shard(1), Shard(-1)  # of [batch, length, dim]; [batch, heads, ...]; logits


def split_matrices(model: nn.Module, mesh: DeviceMesh) -> None:
    """Split a decoder's parameters in place over the ranks of `mesh`, and have its parts exchange what they need."""
    table = RowwiseParallel(input_layouts=Replicate(), output_layouts=Replicate())
    head = ColwiseParallel(input_layouts=Replicate(), output_layouts=BY_ENTRY, use_local_output=False)
    _apply(model, mesh, {"embed": table, "positions": table, "norm": SequenceParallel(), "head": head})
    model.get_submodule("norm").register_forward_hook(lambda module, inputs, output: _whole(output))
    model.register_forward_hook(lambda module, inputs, logits: logits if module.training else _whole(logits).to_local())
    project_apart(model)
    blocks = list(model.get_submodule("blocks").children())
    for block in blocks:
        _split_block(block, mesh)
    blocks[0].register_forward_pre_hook(_takes_part_of(mesh))


class _DropoutOfPart(nn.Dropout):
    """Dropout of a rank's positions, as it would be in the whole sequence: each rank draws for all of them."""

    def __init__(self, p: float, mesh: DeviceMesh) -> None:
        super().__init__(p)
        self._parts, self._part = mesh.size(), mesh.get_local_rank()

    def forward(self, x: Tensor) -> Tensor:
        """A part of the residual stream, `[batch, positions, dim]` -> the same."""
        if not self.training or not self.p:
            return x
        batch, positions, dim = x.shape
        kept = super().forward(x.new_ones(batch, self._parts * positions, dim))
        return x * kept.narrow(1, self._part * positions, positions).clone()  # so that the rest is let go


def _split_block(block: nn.Module, mesh: DeviceMesh) -> None:
    dropout = block.get_submodule("dropout")
    assert isinstance(dropout, nn.Dropout)
    block.dropout = _DropoutOfPart(dropout.p, mesh)
    reads, writes = ColwiseParallel(), RowwiseParallel(output_layouts=BY_POSITION)
    heads = SequenceParallel(sequence_dim=1, use_local_output=True)
    plan: dict[str, ParallelStyle] = {
        "attention_norm": SequenceParallel(),
        "attention.query": reads,
        "attention.key": reads,
        "attention.value": reads,
        "attention.query_norm": heads,
        "attention.key_norm": heads,
        "attention.out": writes,
        "ffn_norm": SequenceParallel(),
        "ffn.gate": reads,
        "ffn.up": reads,
        "ffn.down": writes,
    }
    _apply(block, mesh, plan)
    for name in ("attention", "ffn"):
        block.get_submodule(name).register_forward_pre_hook(lambda module, inputs: (_whole(inputs[0]), *inputs[1:]))


def _apply(module: nn.Module, mesh: DeviceMesh, plan: dict[str, ParallelStyle]) -> None:
    """The part of a plan whose modules there are, with parameters."""
    there = {name for name, found in module.named_modules() if next(found.parameters(), None) is not None}
    parallelize_module(module, mesh, {name: style for name, style in plan.items() if name in there})


def _whole(tensor: DTensor) -> DTensor:
    """A part of the sequence or of the logits, gathered from all ranks. Backwards, gradients are summed and split."""
    return tensor.redistribute(placements=[Replicate()])


def _takes_part_of(mesh: DeviceMesh) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
    """A hook on the first block: of the embedded tokens, which each rank has all of, it takes the rank's positions."""

    def hook(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        everywhere: list[Placement] = [Replicate()]
        embedded = DTensor.from_local(inputs[0], mesh, everywhere, run_check=False)
        return embedded.redistribute(placements=[BY_POSITION]).to_local(), *inputs[1:]

    return hook


def loss_over_parts(world: World) -> AbstractContextManager[None]:
    """The context of a loss and its backward pass, where each rank has a part of the logits."""
    return loss_parallel() if world.tensor > 1 else nullcontext()
