"""Optimizers with a gate, over shards: where `found_inf` is 1, a step changes no bit.

That is how torch's fused kernels take their verdict: a number on the device, for which the host never waits. The
arithmetic is torch's, of each optimizer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adagrad import adagrad
from torch.optim.sgd import sgd

from trainingjob_trainer.config import Optimizer
from trainingjob_trainer.parallel import keep_where, local_part

Tensors = list[Tensor]
Group = dict[str, Any]  # parameters, and what is set for them: of all torch's optimizers the learning rate `lr`


class Elementwise(torch.optim.Optimizer):
    """An optimizer that takes a rank's shards for plain tensors, because the update of an element needs no other.

    Of torch's fused kernels `DTensor` knows Adam's only. Moments are there from the beginning.
    """

    def __init__(
        self, parameters: Sequence[nn.Parameter] | list[Group], config: Optimizer, moments: Sequence[str]
    ) -> None:
        super().__init__(parameters, {"lr": config.lr})
        self.found_inf = torch.zeros(())
        self._config, self._moments = config, moments
        for parameter in (p for group in self.param_groups for p in group["params"]):
            self.state[parameter] = {
                name: torch.zeros((), device=parameter.device) if name == "step" else torch.zeros_like(parameter)
                for name in moments
            }

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Move the parameters that have a gradient."""
        for group in self.param_groups:
            moved = [(p, p.grad, self.state[p]) for p in group["params"] if p.grad is not None]
            if not moved:
                continue
            moments = {name: [local_part(state[name]) for _, _, state in moved] for name in self._moments}
            self._update([local_part(p) for p, _, _ in moved], [local_part(g) for _, g, _ in moved], moments, group)

    def _update(self, weights: Tensors, gradients: Tensors, moments: dict[str, Tensors], group: Group) -> None:
        raise NotImplementedError


class AdamW(Elementwise):
    """Kingma & Ba 2015, with the decoupled decay of Loshchilov & Hutter 2019, a group's `weight_decay`.

    One tensor counts the steps, where torch has one for each parameter: a kernel each, and another one each to take a
    step back that was not finite. So a step counts for a parameter, too, that has no gradient in it and stays as it is:
    torch corrects the bias of its moments by the steps that moved it, this by those of the run, resumed or not.
    """

    def __init__(self, groups: list[Group], config: Optimizer) -> None:
        super().__init__(groups, config, ["exp_avg", "exp_avg_sq"])
        self._steps = torch.zeros((), device=next(iter(self.state)).device)
        for state in self.state.values():
            state["step"] = self._steps

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Move the parameters."""
        self._steps += 1 - self.found_inf
        super().step()

    def _update(self, weights: Tensors, gradients: Tensors, moments: dict[str, Tensors], group: Group) -> None:
        first, second = self._config.betas
        torch._fused_adamw_(
            weights,
            gradients,
            moments["exp_avg"],
            moments["exp_avg_sq"],
            [],
            [self._steps] * len(weights),
            lr=group["lr"],
            beta1=first,
            beta2=second,
            weight_decay=group["weight_decay"],
            eps=self._config.eps,
            amsgrad=False,
            maximize=False,
            found_inf=self.found_inf,
        )


class SGD(Elementwise):
    """With momentum, or Nesterov's."""

    def __init__(self, parameters: Sequence[nn.Parameter], config: Optimizer) -> None:
        super().__init__(parameters, config, ["momentum_buffer"] if config.inertia else [])

    def _update(self, weights: Tensors, gradients: Tensors, moments: dict[str, Tensors], group: Group) -> None:
        sgd(
            weights,
            gradients,
            [*moments.get("momentum_buffer", [])],
            lr=group["lr"],
            momentum=self._config.inertia,
            nesterov=self._config.nesterov,
            dampening=0.0,
            weight_decay=0.0,
            maximize=False,
            fused=True,
            found_inf=self.found_inf,
        )


class Adagrad(Elementwise):
    """Duchi et al. 2011."""

    def __init__(self, parameters: Sequence[nn.Parameter], config: Optimizer) -> None:
        super().__init__(parameters, config, ["sum", "step"])

    def _update(self, weights: Tensors, gradients: Tensors, moments: dict[str, Tensors], group: Group) -> None:
        adagrad(
            weights,
            gradients,
            moments["sum"],
            moments["step"],
            lr=group["lr"],
            eps=self._config.eps,
            lr_decay=0.0,
            weight_decay=0.0,
            maximize=False,
            fused=True,
            found_inf=self.found_inf,
        )


class RMSprop(Elementwise):
    """Tieleman & Hinton 2012, rounded as torch's, which has no fused one.

    Where a step is not finite, moments are multiplied by one, and what is added has no effect: a zero of the sign that
    does not turn -0 into 0.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], config: Optimizer) -> None:
        momentum = ["momentum_buffer"] if config.inertia else []
        super().__init__(parameters, config, ["square_avg", *momentum])

    def _update(self, weights: Tensors, gradients: Tensors, moments: dict[str, Tensors], group: Group) -> None:
        alpha, eps, bad = self._config.alpha, self._config.eps, self.found_inf != 0
        for weight, gradient, square, *momentum in zip(weights, gradients, *moments.values(), strict=True):
            gradient.masked_fill_(bad, -0.0 if momentum else 0.0)
            square.mul_(_unless(bad, alpha, square)).addcmul_(gradient, gradient, value=1 - alpha)
            root = square.sqrt().add_(eps)
            if momentum:
                [buffer] = momentum
                buffer.mul_(_unless(bad, self._config.inertia, buffer)).addcdiv_(gradient, root)
                weight.add_(root.copy_(buffer).masked_fill_(bad, 0.0), alpha=-group["lr"])
            else:
                weight.addcdiv_(gradient, root, value=-group["lr"])


class Muon(torch.optim.Muon):
    """torch's Muon of one matrix, whose step is taken back: of one at a time, so that no copy of all is held."""

    def __init__(self, matrix: nn.Parameter, config: Optimizer) -> None:
        super().__init__(
            [matrix],
            lr=config.lr,
            weight_decay=config.decay,
            momentum=config.inertia,
            adjust_lr_fn="match_rms_adamw",
        )
        self.found_inf = torch.zeros(())
        self.state[matrix] = {"momentum_buffer": torch.zeros_like(matrix)}

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Move the matrix."""
        [(matrix, state)] = self.state.items()
        changed = [local_part(matrix), local_part(state["momentum_buffer"])]
        before = [tensor.clone() for tensor in changed]
        super().step()  # type: ignore[no-untyped-call]
        keep_where(self.found_inf == 0, changed, before)


def _unless(bad: Tensor, factor: float, like: Tensor) -> Tensor:
    """`factor`, or 1 where `bad`."""
    return torch.where(bad, 1.0, like.new_full((), factor))
