"""Next-token prediction: loss, perplexity, bits per byte, top-1 accuracy."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from trainingjob_trainer.data.manifest import Manifest, SplitData, SplitName
from trainingjob_trainer.tasks.base import IGNORE, TaskMetrics, all_reduce, cross_entropy_sum, precise


class LanguageModeling:
    """Logits `[rows, sequence_length, vocabulary]`, targets `[rows, sequence_length]`."""

    def __init__(self, manifest: Manifest, label_smoothing: float = 0.0, packing: bool = False) -> None:
        self._manifest = manifest
        self._packing = packing
        self._smoothing = label_smoothing

    def loss_sum(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        return cross_entropy_sum(logits, targets, self._smoothing)

    def metrics(self, split: SplitName, device: torch.device) -> LanguageModelingMetrics:
        return LanguageModelingMetrics(self._manifest.splits[split], device, self._packing)


class LanguageModelingMetrics:
    """`bitsPerByte` is the loss in bits a token times the split's predicted tokens (EOS included; with packing all but
    the first of each document) a byte of text: what makes models with different tokenizers comparable."""

    def __init__(self, split: SplitData, device: torch.device, packing: bool = False) -> None:
        predicted = split.count - split.documents if packing else split.count
        self._tokens_per_byte = predicted / max(split.bytes, 1)
        self._sums = torch.zeros(3, dtype=torch.float64, device=device)  # loss, correct, count

    def update(self, logits: Tensor, targets: Tensor) -> None:
        flat, logits = targets.flatten(), precise(logits).flatten(0, -2)
        losses = cross_entropy(logits, flat, ignore_index=IGNORE, reduction="none")
        correct = logits.argmax(-1) == flat
        self._sums += torch.stack([losses.double().sum(), correct.double().sum(), (flat != IGNORE).double().sum()])

    def reduce(self, group: torch.distributed.ProcessGroup | None = None) -> None:
        all_reduce(self._sums, group)

    def compute(self) -> TaskMetrics:
        total, correct, count = self._sums.tolist()
        loss = total / count
        return {
            "loss": loss,
            "perplexity": math.exp(min(loss, 700.0)),  # beyond lies no float64
            "bitsPerByte": loss / math.log(2) * self._tokens_per_byte,
            "accuracy": correct / count,
        }
