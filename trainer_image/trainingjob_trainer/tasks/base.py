"""What every task offers to the loop and to the evaluation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from trainingjob_trainer.data.manifest import SplitName
from trainingjob_trainer.data.reader import IGNORE, weightless

__all__ = [
    "IGNORE",
    "EvaluationMetrics",
    "Task",
    "TaskMetrics",
    "all_reduce",
    "cross_entropy_sum",
    "precise",
    "weightless",
]

TaskMetrics = dict[str, Any]  # name -> number; or a list, for what is not one number (per class, confusion matrix)


class EvaluationMetrics(Protocol):
    """Metrics of one split, gathered batch by batch. Sums are float64, so that the dealing to ranks doesn't show."""

    def update(self, logits: Tensor, targets: Tensor) -> None:
        """Take in one batch of this rank; `weightless` targets don't count."""

    def reduce(self, group: torch.distributed.ProcessGroup | None = None) -> None:
        """Sum over all ranks, in one all-reduce; nothing to do without a process group."""

    def compute(self) -> TaskMetrics:
        """The metrics of everything taken in."""


Model = Callable[..., Tensor]


class Task(ABC):
    """The loss of a batch and the metrics of a split."""

    def loss_sum(self, model: Model, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Summed loss (cross-entropy in nats; float32) and the count of targets that weigh (int64): device scalars."""
        return self.loss_of(model(inputs), targets)

    @abstractmethod
    def loss_of(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The same of what the model made of the inputs."""

    def predict(self, model: Model, inputs: Tensor, targets: Tensor, take: Callable[[Tensor, Tensor], None]) -> None:
        """Have `take` called with logits and targets, of the whole batch or of one part after another."""
        take(model(inputs), targets)

    @abstractmethod
    def metrics(self, split: SplitName, device: torch.device) -> EvaluationMetrics:
        """Fresh metrics for a split."""


def cross_entropy_sum(logits: Tensor, targets: Tensor, smoothing: float = 0.0) -> tuple[Tensor, Tensor]:
    """Cross-entropy of `[..., classes]` logits, summed over the targets that are not IGNORE, and their count.

    smoothing: share of a target's weight that is spread over all classes (Szegedy et al. 2016).
    """
    flat = targets.flatten()
    loss = cross_entropy(
        precise(logits).flatten(0, -2), flat, ignore_index=IGNORE, reduction="sum", label_smoothing=smoothing
    )
    return loss, (flat != IGNORE).sum()


def precise(logits: Tensor) -> Tensor:
    """Logits in float32 at least: half precision is for matrix products, not for sums of exponentials."""
    return logits if logits.dtype == torch.float64 else logits.float()


def all_reduce(sums: Tensor, group: torch.distributed.ProcessGroup | None) -> None:
    """Sum in place over the ranks of a group, if there are any."""
    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(sums, group=group)
