"""Recurrent language models: LSTM (Hochreiter & Schmidhuber 1997) or GRU (Cho et al. 2014) on residual branches."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from trainingjob_trainer.config import Rnn as Size
from trainingjob_trainer.models.transformer import HeadReader

NORM_EPS = 1e-5


class Block(nn.Module):
    """One recurrent layer over the normalised stream, on a residual branch. It begins each row with a state of zero."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(size.dim, eps=NORM_EPS)
        self.cell = (nn.LSTM if size.cell == "lstm" else nn.GRU)(size.dim, size.dim, batch_first=True)
        self.dropout = nn.Dropout(size.dropout)

    def forward(self, x: Tensor) -> Tensor:
        outputs, _ = self.cell(self.norm(x))
        out: Tensor = x + self.dropout(outputs)
        return out


class Recurrent(nn.Module):
    """A language model that reads from left to right in constant memory."""

    def __init__(self, size: Size, vocab_size: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocab_size, size.dim)
        self.blocks = nn.ModuleList(Block(size) for _ in range(size.layers))
        self.norm = nn.RMSNorm(size.dim, eps=NORM_EPS)
        self.head = None if size.tie_embeddings else nn.Linear(size.dim, vocab_size, bias=False)

    def forward(self, inputs: Tensor, read: HeadReader = F.linear) -> Tensor:
        """Tokens `[batch, length]` -> logits `[batch, length, vocab]` of the token after each, or what `read` makes of
        features and head."""
        x = self.embed(inputs)
        for block in self.blocks:
            x = block(x)
        return read(self.norm(x), (self.head or self.embed).weight)
