"""Which ranks hold what: copies of the model, their shards, and the parts of split matrices."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from trainingjob_trainer.accounting import bytes_per_parameter, checkpointed_bytes_per_parameter, gigabytes
from trainingjob_trainer.config import JobConfig, Parallelism
from trainingjob_trainer.errors import OutOfMemory
from trainingjob_trainer.parallel.statistics import batch_norms, check_batch_norm

# Of a rank's memory, for the state; the rest is for activations, gathered weights and what the process itself takes.
STATE_SHARE = 0.5


@dataclass(frozen=True)
class Layout:
    """`copies` x `shards` x `tensor` ranks: matrices are split over `tensor` ranks, the parts sharded over `shards`."""

    copies: int = 1
    shards: int = 1
    tensor: int = 1
    why: str = "there is one rank"

    def __str__(self) -> str:
        if self.copies == self.shards == 1:
            how = "a single process" if self.tensor == 1 else "one copy of the model"
        elif self.shards == 1:
            how = f"DDP: {self.copies} copies of the model"
        elif self.copies == 1:
            how = f"FSDP2: the model is sharded over {self.shards} ranks"
        else:
            how = f"HSDP: {self.copies} copies of the model, each sharded over {self.shards} ranks"
        split = f", its matrices split over {self.tensor}" if self.tensor > 1 else ""
        return f"{how}{split} ({self.why})"


def layout_of(config: JobConfig, model: nn.Module, ranks: int, device: torch.device) -> Layout:
    """The layout that a configuration asks for, or the best one for `model` where it says `auto`.

    Raises `UserError` if the model cannot be sharded, `OutOfMemory` if a rank cannot hold its part. (That ranks divide
    into groups is known since the Check stage.)
    """
    wanted = config.training.parallelism
    check_batch_norm(model, wanted)
    each = bytes_per_parameter(config.training)
    if device.type == "cpu":  # where the copy that is uploaded lies beside it
        each += checkpointed_bytes_per_parameter(config.training)
    state = sum(p.numel() for p in model.parameters()) * each
    there = memory(device, config.ranks_per_pod)
    if ranks > 1 and batch_norms(model):
        layout = Layout(ranks, why="its BatchNorm layers are not sharded")
    else:
        layout = pick(wanted, ranks, config.ranks_per_pod, state, there)
    part = state // (layout.shards * layout.tensor)
    if part > there:  # before any of it is allocated: what ends a process without a word may end others first
        raise OutOfMemory(
            f"The training state of a rank takes {gigabytes(part)}, activations not counted, and it has "
            f"{gigabytes(there)}: {layout}.",
            "Take a smaller model, more memory, or more ranks and spec.training.parallelism.fsdp: full.",
        )
    return layout


def pick(wanted: Parallelism, ranks: int, ranks_per_pod: int, state: int, memory: int) -> Layout:
    """The layout for a training state of `state` bytes on ranks with `memory` bytes each.

    The least communication that leaves room: copies on all ranks, then shards within a pod, then over all ranks.
    """
    if ranks == 1:
        return Layout()
    tensor = wanted.tensor
    ranks, in_pod, state = ranks // tensor, ranks_per_pod // tensor, state // tensor
    if wanted.fsdp == "none":
        return Layout(ranks, 1, tensor, "as configured")
    if wanted.fsdp == "full":
        shards = wanted.fsdp_ranks or ranks
        return Layout(ranks // shards, shards, tensor, "as configured")
    room = round(STATE_SHARE * memory)
    figures = f"its training state of {gigabytes(state)}, of {gigabytes(memory)} a rank"
    if state <= room:
        return Layout(ranks, 1, tensor, f"each rank has room for {figures}")
    if 1 < in_pod < ranks and ranks % in_pod == 0 and state <= room * in_pod:
        return Layout(ranks // in_pod, in_pod, tensor, f"the ranks of a pod have room for {figures}")
    return Layout(1, ranks, tensor, f"fewer ranks have no room for {figures}")


def memory(device: torch.device, ranks_per_pod: int) -> int:
    """Bytes that a rank may use: those of its device, or its share of the pod's limit."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
    except (OSError, ValueError):  # "max"
        limit = machine
    return min(machine, limit) // ranks_per_pod
