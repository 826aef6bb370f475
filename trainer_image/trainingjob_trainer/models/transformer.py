"""The Transformer: a causal decoder over tokens, and the same blocks bidirectional over image patches.

Pre-norm with RMSNorm (Zhang & Sennrich 2019), rotary positions (Su et al. 2021, halves rotated as Llama does),
grouped-query attention (Ainslie et al. 2023), SwiGLU (Shazeer 2020), no biases.

Names in the state dict, and what Llama's layout in Hugging Face calls them (an export is this renaming, nothing else):

    embed.weight                                  model.embed_tokens.weight
    blocks.<n>.attention_norm.weight              model.layers.<n>.input_layernorm.weight
    blocks.<n>.attention.{query,key,value,out}    model.layers.<n>.self_attn.{q,k,v,o}_proj
    blocks.<n>.ffn_norm.weight                    model.layers.<n>.post_attention_layernorm.weight
    blocks.<n>.ffn.{gate,up,down}                 model.layers.<n>.mlp.{gate,up,down}_proj
    norm.weight                                   model.norm.weight
    head.weight (absent when tied)                lm_head.weight

The classifier has `patch.{weight,bias}` in place of `embed` and `head.{weight,bias}` over the classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from trainingjob_trainer.config import Transformer as Size

NORM_EPS = 1e-5

Rotation = tuple[Tensor, Tensor]


def rotation(length: int, head_dim: int, theta: float, like: Tensor) -> Rotation:
    """Cosines and sines `[length, head_dim]` of the rotary positions 0..length-1, in the dtype of `like`."""
    exponents = torch.arange(0, head_dim, 2, device=like.device, dtype=torch.float32) / head_dim
    positions = torch.arange(length, device=like.device, dtype=torch.float32)
    angles = torch.outer(positions, theta**-exponents).repeat(1, 2)
    return angles.cos().to(like.dtype), angles.sin().to(like.dtype)


def rotate(x: Tensor, rotary: Rotation) -> Tensor:
    """Rotate queries or keys `[..., length, head_dim]`, the first half of a head against the second."""
    cos, sin = rotary
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


class Attention(nn.Module):
    """Grouped-query attention, causal or over everything."""

    def __init__(self, size: Size, causal: bool) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.causal = size.heads, size.num_kv_heads, causal
        kv_dim = size.dim // size.heads * size.num_kv_heads
        self.query = nn.Linear(size.dim, size.dim, bias=False)
        self.key = nn.Linear(size.dim, kv_dim, bias=False)
        self.value = nn.Linear(size.dim, kv_dim, bias=False)
        self.out = nn.Linear(size.dim, size.dim, bias=False)

    def forward(self, x: Tensor, rotary: Rotation, mask: Tensor | None = None) -> Tensor:
        """`[batch, length, dim]` -> the same. mask: `[batch, 1, 1, length]`, whether a position is looked at."""
        query = rotate(self._split(self.query(x), self.heads), rotary)
        key = rotate(self._split(self.key(x), self.kv_heads), rotary)
        value = self._split(self.value(x), self.kv_heads)
        mixed = F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=self.causal, enable_gqa=self.kv_heads != self.heads
        )
        joined: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return joined

    @staticmethod
    def _split(x: Tensor, heads: int) -> Tensor:
        batch, length, _ = x.shape
        return x.view(batch, length, heads, -1).transpose(1, 2)


class FeedForward(nn.Module):
    """SwiGLU."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.gate = nn.Linear(size.dim, size.hidden_dim, bias=False)
        self.up = nn.Linear(size.dim, size.hidden_dim, bias=False)
        self.down = nn.Linear(size.hidden_dim, size.dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down(F.silu(self.gate(x)) * self.up(x))
        return out


class Block(nn.Module):
    """Attention and feed-forward, each on a residual branch of its own."""

    def __init__(self, size: Size, causal: bool) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(size.dim, eps=NORM_EPS)
        self.attention = Attention(size, causal)
        self.ffn_norm = nn.RMSNorm(size.dim, eps=NORM_EPS)
        self.ffn = FeedForward(size)
        self.dropout = nn.Dropout(size.dropout)

    def forward(self, x: Tensor, rotary: Rotation, mask: Tensor | None = None) -> Tensor:
        x = x + self.dropout(self.attention(self.attention_norm(x), rotary, mask))
        out: Tensor = x + self.dropout(self.ffn(self.ffn_norm(x)))
        return out


class Decoder(nn.Module):
    """A causal language model."""

    def __init__(self, size: Size, vocab_size: int) -> None:
        super().__init__()
        self.size = size
        self.embed = nn.Embedding(vocab_size, size.dim)
        self.blocks = nn.ModuleList(Block(size, causal=True) for _ in range(size.layers))
        self.norm = nn.RMSNorm(size.dim, eps=NORM_EPS)
        self.head = None if size.tie_embeddings else nn.Linear(size.dim, vocab_size, bias=False)

    def forward(self, inputs: Tensor) -> Tensor:
        """Tokens `[batch, length]` -> logits `[batch, length, vocab]` of the token after each."""
        x = self.embed(inputs)
        rotary = rotation(inputs.shape[1], self.size.dim // self.size.heads, self.size.rope_theta, x)
        for block in self.blocks:
            x = block(x, rotary)
        x = self.norm(x)
        logits: Tensor = F.linear(x, self.embed.weight) if self.head is None else self.head(x)
        return logits


class Classifier(nn.Module):
    """An image classifier: patches in reading order, the blocks bidirectional, mean pooling."""

    def __init__(self, size: Size, shape: Sequence[int], num_classes: int) -> None:
        super().__init__()
        channels, height, width = shape
        if height % size.patch_size or width % size.patch_size:
            raise ValueError(f"images of {height}x{width} cannot be cut into patches of {size.patch_size}")
        self.size = size
        self.patch = nn.Linear(channels * size.patch_size**2, size.dim)
        self.blocks = nn.ModuleList(Block(size, causal=False) for _ in range(size.layers))
        self.norm = nn.RMSNorm(size.dim, eps=NORM_EPS)
        self.head = nn.Linear(size.dim, num_classes)

    def forward(self, inputs: Tensor) -> Tensor:
        """Images `[batch, channels, height, width]` -> logits `[batch, classes]`."""
        side = self.size.patch_size
        patches = F.unfold(inputs, kernel_size=side, stride=side).transpose(1, 2)
        x = self.patch(patches)
        rotary = rotation(x.shape[1], self.size.dim // self.size.heads, self.size.rope_theta, x)
        for block in self.blocks:
            x = block(x, rotary)
        logits: Tensor = self.head(self.norm(x).mean(dim=1))
        return logits
