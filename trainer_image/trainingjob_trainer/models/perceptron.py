"""A multilayer perceptron over columns of numbers, with residuals (as in Gorishniy et al. 2021)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from trainingjob_trainer.config import Mlp as Size

NORM_EPS = 1e-5


class Block(nn.Module):
    """Two matrices with GELU between them, on a residual branch."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(size.dim, eps=NORM_EPS)
        self.up = nn.Linear(size.dim, 2 * size.dim)
        self.down = nn.Linear(2 * size.dim, size.dim)
        self.dropout = nn.Dropout(size.dropout)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.dropout(self.down(F.gelu(self.up(self.norm(x)))))
        return out


class Perceptron(nn.Module):
    """Predicts one number, in standard deviations of the target from its mean."""

    def __init__(self, size: Size, features: int) -> None:
        super().__init__()
        self.embed = nn.Linear(features, size.dim)
        self.blocks = nn.ModuleList(Block(size) for _ in range(size.layers))
        self.norm = nn.RMSNorm(size.dim, eps=NORM_EPS)
        self.head = nn.Linear(size.dim, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        """Scaled columns `[batch, features]` -> `[batch]`."""
        x = self.embed(inputs)
        for block in self.blocks:
            x = block(x)
        predicted: Tensor = self.head(self.norm(x)).sum(-1)  # of one: FSDP2 wants no view
        return predicted
