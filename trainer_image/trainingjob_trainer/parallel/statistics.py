"""BatchNorm (Ioffe & Szegedy 2015) on several ranks: each sees its own rows, and the first one's statistics count.

That is what DDP does. So a result depends on the number of ranks and on the rows of a pass, as it does nowhere else.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from trainingjob_trainer.config import Parallelism
from trainingjob_trainer.errors import UserError


def batch_norms(model: nn.Module) -> list[nn.Module]:
    """The layers of a model that keep statistics of what they have seen."""
    return [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._NormBase)]


def check_batch_norm(model: nn.Module, wanted: Parallelism) -> None:
    """Raises `UserError` if a model with BatchNorm is to be sharded or recomputed."""
    if not batch_norms(model):
        return
    if wanted.fsdp == "full":
        raise UserError(
            "spec.training.parallelism.fsdp is full, and the model has BatchNorm layers, which are not sharded.",
            "Set it to none or auto, or choose a model with another norm.",
        )
    if wanted.activation_checkpointing != "none":
        raise UserError(
            f"spec.training.parallelism.activationCheckpointing is {wanted.activation_checkpointing}, and the model "
            "has BatchNorm layers, which would count each row twice.",
            "Set it to none, or choose a model with another norm.",
        )


def statistics(model: nn.Module) -> list[Tensor]:
    """The buffers that training changes and checkpoints hold."""
    stored = model.state_dict().keys()
    return [buffer for name, buffer in model.named_buffers() if name in stored]


@torch.no_grad()
def keep_where(finite: Tensor, buffers: Sequence[Tensor], before: Sequence[Tensor]) -> None:
    """Take back what a step has done to them, where the device scalar `finite` is False."""
    for buffer, earlier in zip(buffers, before, strict=True):
        torch.where(finite, buffer, earlier, out=buffer)
