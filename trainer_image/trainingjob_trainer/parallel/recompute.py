"""Activation checkpointing (Chen et al. 2016): what a backward pass needs is computed anew instead of kept."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

aten = torch.ops.aten
# Dear to compute for what they take: matrix products and attention. All else, norms and activations, is cheap.
KEPT = {
    aten.mm.default,
    aten.addmm.default,
    aten.bmm.default,
    aten._scaled_dot_product_flash_attention.default,
    aten._scaled_dot_product_flash_attention_for_cpu.default,
    aten._scaled_dot_product_efficient_attention.default,
    aten._scaled_dot_product_cudnn_attention.default,
}


def recompute(model: nn.Module, what: Literal["none", "selective", "full"]) -> None:
    """Of each of the model's blocks, keep everything, the results of dear operations, or nothing but its input.

    Dropout draws the same again, so no bit of a result changes. Names of parameters stay as they are.
    """
    if what == "none":
        return
    settings: dict[str, Any] = {"use_reentrant": False}
    if what == "selective":
        settings["context_fn"] = partial(create_selective_checkpoint_contexts, _policy)
    for block in model.get_submodule("blocks").children():
        block.forward = partial(checkpoint, block.forward, **settings)


def _policy(context: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operation in KEPT else CheckpointPolicy.PREFER_RECOMPUTE
