"""One label for each image: loss, accuracy, macro and per-class precision, recall and F1, confusion matrix."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from trainingjob_trainer.data.manifest import Manifest, SplitName
from trainingjob_trainer.tasks.base import IGNORE, TaskMetrics, all_reduce, cross_entropy_sum, precise


class ImageClassification:
    """Logits `[rows, classes]`, targets `[rows]`."""

    def __init__(self, manifest: Manifest, label_smoothing: float = 0.0) -> None:
        self._classes = manifest.classes or []
        self._smoothing = label_smoothing

    def loss_sum(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        return cross_entropy_sum(logits, targets, self._smoothing)

    def metrics(self, split: SplitName, device: torch.device) -> ClassificationMetrics:
        return ClassificationMetrics(self._classes, device)


class ClassificationMetrics:
    """Macro means go over the classes that occur, as a label or as a prediction; a ratio without a case is 0 (as in
    scikit-learn)."""

    def __init__(self, classes: list[str], device: torch.device) -> None:
        self._classes = classes
        # One flat tensor, so that the ranks' sums are one all-reduce: the loss, then the confusion matrix.
        self._sums = torch.zeros(1 + len(classes) ** 2, dtype=torch.float64, device=device)

    def update(self, logits: Tensor, targets: Tensor) -> None:
        from torchmetrics.functional.classification import multiclass_confusion_matrix

        losses = cross_entropy(precise(logits), targets, ignore_index=IGNORE, reduction="none")
        matrix = multiclass_confusion_matrix(
            logits.argmax(-1), targets, num_classes=len(self._classes), ignore_index=IGNORE, validate_args=False
        )
        self._sums += torch.cat([losses.double().sum().reshape(1), matrix.double().flatten()])

    def reduce(self, group: torch.distributed.ProcessGroup | None = None) -> None:
        all_reduce(self._sums, group)

    def compute(self) -> TaskMetrics:
        size = len(self._classes)
        sums = self._sums.cpu()
        matrix = sums[1:].reshape(size, size)  # rows: labels, columns: predictions
        hits, labels, predictions = matrix.diag(), matrix.sum(1), matrix.sum(0)
        precision, recall = _ratio(hits, predictions), _ratio(hits, labels)
        f1 = _ratio(2 * hits, labels + predictions)
        occurs = (labels + predictions) > 0
        count = float(matrix.sum())
        return {
            "loss": float(sums[0]) / count,
            "accuracy": float(hits.sum()) / count,
            "precision": float(precision[occurs].mean()),
            "recall": float(recall[occurs].mean()),
            "f1": float(f1[occurs].mean()),
            "perClass": [
                {
                    "class": name,
                    "precision": float(precision[i]),
                    "recall": float(recall[i]),
                    "f1": float(f1[i]),
                    "support": int(labels[i]),
                }
                for i, name in enumerate(self._classes)
            ],
            "confusionMatrix": matrix.long().tolist(),
        }


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    return torch.where(denominator > 0, numerator / denominator.clamp(min=1), 0.0)
