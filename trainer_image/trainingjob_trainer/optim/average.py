"""Exponential moving average of the weights (Polyak & Juditsky 1992), which is what evaluation and export then use."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from trainingjob_trainer.parallel import local_part


class WeightAverage:
    """`average = decay * average + (1 - decay) * weight` after every step; sharded like the weights.

    The average begins at the weights of `restart`, so it needs no correction for its start. BatchNorm's statistics are
    averaged with them: those of the last weights are not those of averaged ones.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._decay = decay
        self._weights = averaged_tensors(model)
        self.tensors = {n: torch.empty_like(w, requires_grad=False) for n, w in self._weights.items()}
        self.statistics = [self.tensors[name] for name, _ in model.named_buffers() if name in self.tensors]

    @torch.no_grad()
    def restart(self) -> None:
        """Begin at the present weights."""
        for name, weight in self._weights.items():
            self.tensors[name].copy_(weight)

    @torch.no_grad()
    def update(self, finite: Tensor) -> None:
        """Take in the present weights; where the device scalar `finite` is False, nothing changes."""
        for name, weight in self._weights.items():
            average = local_part(self.tensors[name])
            torch.where(finite, average.lerp(local_part(weight), 1 - self._decay), average, out=average)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model has the average for its weights, until the end of the block."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, weight in self._weights.items():
            kept = weight.detach().clone()
            weight.copy_(self.tensors[name])
            self.tensors[name].copy_(kept)


def averaged_tensors(model: nn.Module) -> dict[str, Tensor]:
    """What of a model an average holds, by name: its parameters and, of its stored buffers, the real numbers."""
    stored = model.state_dict().keys()
    statistics = {n: b for n, b in model.named_buffers() if n in stored and b.is_floating_point()}
    return {**dict(model.named_parameters()), **statistics}
