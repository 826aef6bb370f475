"""Which ranks hold what: how many copies of the model there are, and over how many ranks each is sharded."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from trainingjob_trainer.accounting import bytes_per_parameter, gigabytes
from trainingjob_trainer.config import JobConfig, Parallelism
from trainingjob_trainer.errors import UserError

# Of a rank's memory, for the state; the rest is for activations, gathered weights and what the process itself takes.
STATE_SHARE = 0.5


@dataclass(frozen=True)
class Layout:
    """`copies` x `shards` data-parallel ranks: each copy of the model is sharded over `shards` ranks."""

    copies: int = 1
    shards: int = 1
    why: str = "there is one rank"

    def __str__(self) -> str:
        if self.copies == self.shards == 1:
            how = "a single process"
        elif self.shards == 1:
            how = f"DDP: {self.copies} copies of the model"
        elif self.copies == 1:
            how = f"FSDP2: the model is sharded over {self.shards} ranks"
        else:
            how = f"HSDP: {self.copies} copies of the model, each sharded over {self.shards} ranks"
        return f"{how} ({self.why})"


def layout_of(config: JobConfig, model: nn.Module, ranks: int, device: torch.device) -> Layout:
    """The layout that a configuration asks for, or the best one for `model` where it says `auto`.

    Raises `UserError` if the ranks do not divide into the groups that it asks for.
    """
    state = sum(p.numel() for p in model.parameters()) * bytes_per_parameter(config.training)
    return pick(config.training.parallelism, ranks, config.ranks_per_pod, state, memory(device, config.ranks_per_pod))


def pick(wanted: Parallelism, ranks: int, ranks_per_pod: int, state: int, memory: int) -> Layout:
    """The layout for a training state of `state` bytes on ranks with `memory` bytes each.

    The least communication that leaves room: copies on all ranks, then shards within a pod, then over all ranks.
    """
    if ranks % wanted.group:
        raise UserError(
            f"{ranks} ranks do not divide into groups of {wanted.group} (spec.training.parallelism.fsdpRanks).",
            f"Ask for a multiple of {wanted.group} ranks, or make the groups smaller.",
        )
    if ranks == 1:
        return Layout()
    if wanted.fsdp == "none":
        return Layout(ranks, 1, "as configured")
    if wanted.fsdp == "full":
        shards = wanted.fsdp_ranks or ranks
        return Layout(ranks // shards, shards, "as configured")
    room = round(STATE_SHARE * memory)
    figures = f"its training state of {gigabytes(state)}, of {gigabytes(memory)} a rank"
    if state <= room:
        return Layout(ranks, 1, f"each rank has room for {figures}")
    if 1 < ranks_per_pod < ranks and ranks % ranks_per_pod == 0 and state <= room * ranks_per_pod:
        return Layout(
            ranks // ranks_per_pod, ranks_per_pod, f"the {ranks_per_pod} ranks of a pod have room for {figures}"
        )
    return Layout(1, ranks, f"fewer ranks have no room for {figures}")


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
