"""One label for each text or image: loss, accuracy, precision, recall and F1 (macro, micro, per class), confusion
matrix."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from trainingjob_trainer.data.manifest import Manifest, SplitName
from trainingjob_trainer.tasks.base import IGNORE, Task, TaskMetrics, all_reduce, cross_entropy_sum, precise


class Classification(Task):
    """Logits `[rows, classes]`, targets `[rows]`."""

    def __init__(self, manifest: Manifest, label_smoothing: float = 0.0) -> None:
        self._classes = manifest.classes or []
        self._smoothing = label_smoothing

    def loss_of(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        return cross_entropy_sum(logits, targets, self._smoothing)

    def metrics(self, split: SplitName, device: torch.device) -> ClassificationMetrics:
        return ClassificationMetrics(self._classes, device)


class ClassificationMetrics:
    """Macro means go over the classes that occur, as a label or as a prediction; a ratio without a case is 0 (as in
    scikit-learn). Where each sample has one label, micro means all equal the accuracy."""

    def __init__(self, classes: list[str], device: torch.device) -> None:
        self._classes = classes
        # One flat tensor, so that the ranks' sums are one all-reduce: the loss, then the confusion matrix.
        self._sums = torch.zeros(1 + len(classes) ** 2, dtype=torch.float64, device=device)

    def update(self, logits: Tensor, targets: Tensor) -> None:
        counts = targets != IGNORE
        losses = cross_entropy(precise(logits), targets, ignore_index=IGNORE, reduction="none")
        # No `bincount`, for whose size the host would wait; what has no weight adds nothing to the first sum.
        cells = torch.where(counts, 1 + targets * len(self._classes) + logits.argmax(-1), 0)
        self._sums[0] += losses.double().sum()
        self._sums.index_add_(0, cells, counts.double())

    def reduce(self, group: torch.distributed.ProcessGroup | None = None) -> None:
        all_reduce(self._sums, group)

    def compute(self) -> TaskMetrics:
        size = len(self._classes)
        sums = self._sums.cpu()
        matrix = sums[1:].reshape(size, size)  # rows: labels, columns: predictions
        labels, predictions, count = matrix.sum(1), matrix.sum(0), float(matrix.sum())
        occurs = (labels + predictions) > 0
        return {
            "loss": float(sums[0]) / count,
            "accuracy": float(matrix.diag().sum()) / count,
            **hits_and_misses(self._classes, matrix.diag(), labels, predictions, occurs),
            "confusionMatrix": matrix.long().tolist(),
        }


def hits_and_misses(
    classes: list[str], hits: Tensor, labels: Tensor, predictions: Tensor, averaged: Tensor
) -> TaskMetrics:
    """Precision, recall and F1 from what was counted of each class: cases met, cases there, cases predicted.

    averaged: the classes that macro means go over.
    """
    each = _ratios(hits, labels, predictions)
    macro = {name: float(values[averaged].mean()) for name, values in each.items()}
    micro = _ratios(hits.sum(), labels.sum(), predictions.sum())
    per_class = [
        {"class": name, **{key: float(values[i]) for key, values in each.items()}, "support": int(labels[i])}
        for i, name in enumerate(classes)
    ]
    return {**macro, **{f"{name}Micro": float(value) for name, value in micro.items()}, "perClass": per_class}


def _ratios(hits: Tensor, labels: Tensor, predictions: Tensor) -> dict[str, Tensor]:
    return {
        "precision": _ratio(hits, predictions),
        "recall": _ratio(hits, labels),
        "f1": _ratio(2 * hits, labels + predictions),
    }


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    return torch.where(denominator > 0, numerator / denominator.clamp(min=1), 0.0)
