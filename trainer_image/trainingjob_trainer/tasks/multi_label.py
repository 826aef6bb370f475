"""Any number of labels for each text or image, each class decided for itself: loss, subset accuracy, precision, recall,
F1 (macro, micro, per class)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from trainingjob_trainer.data.manifest import Manifest, SplitName
from trainingjob_trainer.tasks.base import IGNORE, Task, TaskMetrics, all_reduce, precise
from trainingjob_trainer.tasks.classification import hits_and_misses


class MultiLabel(Task):
    """Logits and targets (0 or 1) `[rows, classes]`; a row's targets are all IGNORE or none."""

    def __init__(self, manifest: Manifest, label_smoothing: float = 0.0) -> None:
        self._classes = manifest.classes or []
        self._smoothing = label_smoothing

    def loss_of(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        counts = targets != IGNORE
        smoothed = targets.to(logits.dtype) * (1 - self._smoothing) + self._smoothing / 2
        losses = binary_cross_entropies(logits, smoothed)
        return torch.where(counts, losses, 0.0).sum(), counts.sum()

    def metrics(self, split: SplitName, device: torch.device) -> MultiLabelMetrics:
        return MultiLabelMetrics(self._classes, device)


class MultiLabelMetrics:
    """A label is predicted where its chance is above a half. `accuracy` is the share of rows with all labels right.

    Macro means go over all classes (as in scikit-learn, for which each is a question of its own): what never occurs and
    is never predicted counts 0.
    """

    def __init__(self, classes: list[str], device: torch.device) -> None:
        self._classes = classes
        # rows, rows that are right, loss; then of each class: hits, labels, predictions
        self._sums = torch.zeros(3 + 3 * len(classes), dtype=torch.float64, device=device)

    def update(self, logits: Tensor, targets: Tensor) -> None:
        weighs = targets[:, :1] != IGNORE
        labels, predicted = targets == 1, (logits > 0) & weighs
        right = ((labels == predicted) & weighs).all(1)
        losses = torch.where(weighs, binary_cross_entropies(logits, labels), 0.0).double()
        counted = torch.stack([labels & predicted, labels, predicted]).sum(1).double()
        whole = torch.stack([weighs.sum(), right.sum(), losses.sum()]).double()
        self._sums += torch.cat([whole, counted.flatten()])

    def reduce(self, group: torch.distributed.ProcessGroup | None = None) -> None:
        all_reduce(self._sums, group)

    def compute(self) -> TaskMetrics:
        sums = self._sums.cpu()
        rows, right, loss = sums[:3].tolist()
        hits, labels, predictions = sums[3:].reshape(3, -1)
        return {
            "loss": loss / (rows * len(self._classes)),
            "accuracy": right / rows,
            **hits_and_misses(self._classes, hits, labels, predictions, torch.ones_like(hits, dtype=torch.bool)),
        }


def binary_cross_entropies(logits: Tensor, targets: Tensor) -> Tensor:
    """Of each row and class, in nats."""
    logits = precise(logits)
    return binary_cross_entropy_with_logits(logits, targets.to(logits.dtype), reduction="none")
