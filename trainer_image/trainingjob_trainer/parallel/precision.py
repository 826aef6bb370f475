"""The dtype in which passes through a model compute. Weights, moments and reductions are float32 in any case."""

from __future__ import annotations

import warnings
from contextlib import AbstractContextManager, nullcontext

import torch

from trainingjob_trainer.parallel.world import World


def pass_dtype(precision: str, device: torch.device) -> torch.dtype:
    """What `training.precision` means on a device.

    auto: bfloat16 on CUDA, and on a CPU that has instructions for its products; on others they take longer.
    """
    if precision == "auto":
        able = torch.cpu.get_capabilities()
        fast = device.type == "cuda" or able.get("avx512_bf16", False) or able.get("amx_bf16", False)
        return torch.bfloat16 if fast else torch.float32
    return torch.bfloat16 if precision == "bfloat16" else torch.float32


def pass_precision(world: World, dtype: torch.dtype) -> AbstractContextManager[None]:
    """The context of a pass: autocast for a whole model; a sharded one casts by itself."""
    if world.mesh is not None or dtype != torch.bfloat16:
        return nullcontext()
    return torch.autocast(world.device.type, dtype)


def expect_autocast() -> None:
    """Have nothing said of norms whose input has another dtype than their weight: under autocast all are so.

    Set for the process and once, because each new filter makes Python forget which warnings it has shown.
    """
    warnings.filterwarnings("ignore", "Mismatch dtype between input and weight", UserWarning)
