"""A small residual network over images (He et al. 2016, pre-activation), with GroupNorm (Wu & He 2018).

GroupNorm looks at one image at a time: no statistics of the batch, which would depend on the number of ranks.
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from trainingjob_trainer.config import Cnn as Size

GROUPS = 8


class Block(nn.Module):
    """Two 3x3 convolutions on a residual branch; with `stride` 2 or more channels, a 1x1 convolution beside it."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(GROUPS, channels)
        self.conv1 = nn.Conv2d(channels, out, 3, stride, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(GROUPS, out)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        same = stride == 1 and channels == out
        self.shortcut = None if same else nn.Conv2d(channels, out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.norm1(x))
        beside: Tensor = x if self.shortcut is None else self.shortcut(active)
        out: Tensor = beside + self.conv2(F.relu(self.norm2(self.conv1(active))))
        return out


class Cnn(nn.Module):
    """An image classifier for images of any size."""

    def __init__(self, size: Size, in_channels: int, num_classes: int) -> None:
        super().__init__()
        first, last = size.channels[0], size.channels[-1]
        self.stem = nn.Conv2d(in_channels, first, 3, padding=1, bias=False)
        blocks = [Block(first, first, 1) for _ in range(size.blocks)]
        for before, after in pairwise(size.channels):
            blocks += [Block(before, after, 2), *(Block(after, after, 1) for _ in range(size.blocks - 1))]
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.GroupNorm(GROUPS, last)
        self.dropout = nn.Dropout(size.dropout)
        self.head = nn.Linear(last, num_classes)

    def forward(self, inputs: Tensor) -> Tensor:
        """Images `[batch, channels, height, width]` -> logits `[batch, classes]`."""
        x = self.stem(inputs)
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.dropout(F.relu(self.norm(x)).mean(dim=(2, 3))))
        return logits
