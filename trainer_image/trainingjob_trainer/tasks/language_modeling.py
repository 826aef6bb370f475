"""Next-token prediction: loss, perplexity, bits per byte, top-1 and top-5 accuracy."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn import functional as F  # noqa: N812
from torch.nn.functional import cross_entropy

from trainingjob_trainer.data.manifest import Manifest, SplitData, SplitName
from trainingjob_trainer.tasks.base import IGNORE, Model, Task, TaskMetrics, all_reduce, cross_entropy_sum, precise
from trainingjob_trainer.tasks.head import head_cross_entropy, pieces

TOP = 5


class LanguageModeling(Task):
    """Logits `[rows, sequence_length, vocabulary]`, targets `[rows, sequence_length]`; of our own models never all the
    logits at once."""

    def __init__(
        self, manifest: Manifest, label_smoothing: float = 0.0, packing: bool = False, compiled: bool = False
    ) -> None:
        self._manifest = manifest
        self._packing, self._compiled = packing, compiled
        self._smoothing = label_smoothing

    def loss_sum(self, model: Model, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        def read(features: Tensor, weight: Tensor | None) -> Tensor:
            if weight is None:  # a library's model, whose logits are there already
                return self.loss_of(features, targets)[0]
            if isinstance(weight, DTensor):  # split over tensor-parallel ranks, and so are the logits
                return self.loss_of(F.linear(features, weight), targets)[0]
            return head_cross_entropy(features, weight, targets, self._smoothing, self._compiled)

        return model(inputs, read), (targets != IGNORE).sum()

    def loss_of(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        return cross_entropy_sum(logits, targets, self._smoothing)

    def predict(self, model: Model, inputs: Tensor, targets: Tensor, take: Callable[[Tensor, Tensor], None]) -> None:
        def read(features: Tensor, weight: Tensor | None) -> Tensor:
            if weight is None:
                return features
            if isinstance(weight, DTensor):
                return F.linear(features, weight)
            for logits, wanted in pieces(features, weight, targets):
                take(logits, wanted)
            return features.new_empty(0)

        whole = model(inputs, read)
        if whole.numel():
            take(whole, targets)

    def metrics(self, split: SplitName, device: torch.device) -> LanguageModelingMetrics:
        return LanguageModelingMetrics(self._manifest.splits[split], device, self._packing)


class LanguageModelingMetrics:
    """`bitsPerByte` is the loss in bits a token times the split's predicted tokens (EOS included; with packing all but
    the first of each document) a byte of text: what makes models with different tokenizers comparable."""

    def __init__(self, split: SplitData, device: torch.device, packing: bool = False) -> None:
        predicted = split.count - split.documents if packing else split.count
        self._tokens_per_byte = predicted / max(split.bytes, 1)
        self._sums = torch.zeros(4, dtype=torch.float64, device=device)  # loss, correct, among the first five, count

    def update(self, logits: Tensor, targets: Tensor) -> None:
        flat, logits = targets.flatten(), precise(logits).flatten(0, -2)
        losses = cross_entropy(logits, flat, ignore_index=IGNORE, reduction="none")
        hits = logits.topk(min(TOP, logits.shape[-1]), dim=-1).indices == flat[:, None]
        sums = [losses.double().sum(), hits[:, 0].double().sum(), hits.double().sum(), (flat != IGNORE).double().sum()]
        self._sums += torch.stack(sums)

    def reduce(self, group: torch.distributed.ProcessGroup | None = None) -> None:
        all_reduce(self._sums, group)

    def compute(self) -> TaskMetrics:
        total, correct, among_five, count = self._sums.tolist()
        loss = total / count
        return {
            "loss": loss,
            "perplexity": math.exp(min(loss, 700.0)),  # beyond lies no float64
            "bitsPerByte": loss / math.log(2) * self._tokens_per_byte,
            "accuracy": correct / count,
            "top5Accuracy": among_five / count,
        }
