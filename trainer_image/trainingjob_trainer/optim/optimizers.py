"""The optimizers of PyTorch over plain or sharded parameters, stepped as one and gated by one verdict on the device."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from trainingjob_trainer.config import Optimizer
from trainingjob_trainer.optim.gated import SGD, Adagrad, AdamW, Muon, RMSprop
from trainingjob_trainer.parallel import local_part

Parameters = list[nn.Parameter]


@dataclass(frozen=True)
class OptimizerGroup:
    """Optimizers over disjoint parameters. Moments have the dtype and the sharding of their parameters.

    decayed: parameters whose decoupled weight decay (Loshchilov & Hutter 2019) is done here, because their optimizer
    knows only the coupled kind. decay: its factor.
    """

    parts: Sequence[torch.optim.Optimizer]
    decayed: Sequence[nn.Parameter] = ()
    decay: float = 0.0

    @torch.no_grad()
    def step(self, rate: float, finite: Tensor) -> None:
        """Take a step of learning rate `rate`; where the device scalar `finite` is False, nothing at all changes."""
        if self.decayed:
            moves = finite.to(self.decayed[0].dtype)
            torch._foreach_mul_([local_part(p) for p in self.decayed], 1 - rate * self.decay * moves)
        found_inf = (~finite).float()
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = rate
            part.found_inf = found_inf  # type: ignore[attr-defined]
            part.step()

    def zero_grad(self) -> None:
        """Drop the gradients."""
        for part in self.parts:
            part.zero_grad(set_to_none=True)

    def state_of(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        """The moments of a parameter by name."""
        return next((part.state[parameter] for part in self.parts if parameter in part.state), {})


def build_optimizer(model: nn.Module, config: Optimizer) -> OptimizerGroup:
    """The configured optimizer. Weight decay is for matrices only: norms and biases are spared."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    part: torch.optim.Optimizer
    match config.name:
        case "muon":
            return _muon(model, parameters, config)
        case "adamw" | "adam":  # which differ in what they decay by if nothing is said
            return OptimizerGroup([AdamW(decay_groups(parameters, config.decay), config)])
        case "sgd":
            part = SGD(parameters, config)
        case "rmsprop":
            part = RMSprop(parameters, config)
        case "adagrad":
            part = Adagrad(parameters, config)
    return OptimizerGroup([part], matrices(parameters) if config.decay else (), config.decay)


def matrices(parameters: Iterable[nn.Parameter]) -> Parameters:
    """The parameters that decay and penalties are for: of two dimensions and more."""
    return [parameter for parameter in parameters if parameter.ndim >= 2]


def _muon(model: nn.Module, parameters: Parameters, config: Optimizer) -> OptimizerGroup:
    """Muon (Jordan 2024) for the matrices inside the blocks, AdamW for the rest.

    Updates are scaled to AdamW's root mean square (Liu et al. 2025), so that one learning rate serves both.
    """
    inside = {id(p) for p in model.get_submodule("blocks").parameters() if p.ndim == 2}
    hidden = [p for p in parameters if id(p) in inside]
    others = [p for p in parameters if id(p) not in inside]
    rest = [AdamW(decay_groups(others, config.decay), config)] if others else []
    return OptimizerGroup([*(Muon(matrix, config) for matrix in hidden), *rest])


def decay_groups(parameters: Parameters, decay: float) -> list[dict[str, Any]]:
    """Groups for an AdamW, of which the matrices decay."""
    return [
        {"params": matrices(parameters), "weight_decay": decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
