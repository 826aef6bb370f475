"""The bidirectional encoder over texts, with a classification head: the decoder's blocks, looking both ways.

Names in the state dict are the decoder's; `head.{weight,bias}` is over the classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trainingjob_trainer.config import Transformer as Size
from trainingjob_trainer.models.transformer import Trunk


class Encoder(Trunk):
    """A text classifier. Rows begin with EOS, and are filled up with it: only the first one is looked at."""

    def __init__(self, size: Size, vocab_size: int, eos_id: int, num_classes: int, context: int = 1024) -> None:
        super().__init__(size, causal=False, context=context)
        self.eos_id = eos_id
        self.embed = nn.Embedding(vocab_size, size.dim)
        self.head = nn.Linear(size.dim, num_classes)

    def forward(self, inputs: Tensor) -> Tensor:
        """Tokens `[batch, length]` -> logits `[batch, classes]`."""
        text = inputs != self.eos_id
        text = torch.cat([torch.ones_like(text[:, :1]), text[:, 1:]], dim=1)
        features = self.features(self.embed(inputs), text[:, None, None, :])
        logits: Tensor = self.head(masked_mean(features, text))
        return logits


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """The mean of `[batch, length, dim]` over the positions where mask `[batch, length]` holds."""
    weights = mask.to(x.dtype)[:, :, None]
    return (x * weights).sum(dim=1) / weights.sum(dim=1)
