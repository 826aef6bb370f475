"""The Transformer: a causal decoder over tokens, and the same blocks bidirectional over image patches.

Pre-norm, and by default the parts of Llama: RMSNorm (Zhang & Sennrich 2019), rotary positions (Su et al. 2021, the
first half of a head against the second), grouped-query attention (Ainslie et al. 2023), SwiGLU (Shazeer 2020), no
biases. Or those of GPT-2 (Radford et al. 2019): LayerNorm, learned positions, GELU, biases; or any mixture of them.

Names in the state dict (`huggingface.families` has the names elsewhere):

    embed.weight, positions.weight (learned)
    blocks.<n>.attention_norm                     blocks.<n>.attention.{query,key,value,out}
    blocks.<n>.ffn_norm                           blocks.<n>.attention.{query,key}_norm (qkNorm)
    norm                                          blocks.<n>.ffn.{gate (swiglu),up,down}
    head.weight (absent when tied)

The classifier has `patch.{weight,bias}` in place of `embed` and `head.{weight,bias}` over the classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from trainingjob_trainer.config import RopeScaling
from trainingjob_trainer.config import Transformer as Size

Rotation = tuple[Tensor, Tensor]
# What a language model's last features `[batch, length, dim]` and its head's weight `[vocab, dim]` become.
HeadReader = Callable[[Tensor, Tensor], Tensor]


def rotation(length: int, size: Size, like: Tensor) -> Rotation:
    """Cosines and sines `[length, head_width]` of the rotary positions 0..length-1, in the dtype of `like`."""
    exponents = torch.arange(0, size.head_width, 2, device=like.device, dtype=torch.float32) / size.head_width
    positions = torch.arange(length, device=like.device, dtype=torch.float32)
    frequencies = size.rope_theta**-exponents
    if size.rope_scaling is not None:
        frequencies = stretched(frequencies, size.rope_scaling)
    angles = torch.outer(positions, frequencies).repeat(1, 2)
    return angles.cos().to(like.dtype), angles.sin().to(like.dtype)


def stretched(frequencies: Tensor, scaling: RopeScaling) -> Tensor:
    """Frequencies for a longer context: what turns rarely within the original one is slowed (Llama 3.1)."""
    turns = frequencies * scaling.original_context / (2 * math.pi)
    fast = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    fast = fast.clamp(0, 1)
    return frequencies * (fast + (1 - fast) / scaling.factor)


def rotate(x: Tensor, rotary: Rotation) -> Tensor:
    """Rotate queries or keys `[..., length, head_dim]`, the first half of a head against the second."""
    cos, sin = rotary
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def plain_attention(query: Tensor, key: Tensor, value: Tensor, causal: bool) -> Tensor:
    """softmax(Q K^T / sqrt(d_k)) V: what `scaled_dot_product_attention` is held to.

    Queries `[batch, heads, length, head_dim]`; keys and values may have fewer heads, each shared by neighbours.
    """
    shared = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(shared, dim=1), value.repeat_interleave(shared, dim=1)
    scores = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])
    if causal:
        future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(future, float("-inf"))
    return scores.softmax(dim=-1) @ value


def within_documents(tokens: Tensor, separator: int) -> Tensor:
    """Which positions each one looks at, `[batch, 1, length, length]`: the earlier ones of its document, and itself.

    tokens: `[batch, length]`; a separator is its document's last token.
    """
    ends = (tokens == separator).long()
    document = ends.cumsum(dim=1) - ends
    return (document[:, None, :, None] == document[:, None, None, :]).tril()


def norm(size: Size) -> nn.Module:
    """The norm of a shape, over the residual stream."""
    if size.norm == "layernorm":
        return nn.LayerNorm(size.dim, eps=size.norm_eps, bias=size.bias == "all")
    return nn.RMSNorm(size.dim, eps=size.norm_eps)


class Attention(nn.Module):
    """Grouped-query attention, causal or over everything.

    joint: queries, keys and values are projected in one product. Its weights, side by side, are a copy that is there
    until the backward pass, so not where weights are gathered for a block's passes only, nor where they are split.
    """

    joint = True

    def __init__(self, size: Size, causal: bool) -> None:
        super().__init__()
        self.causal, self.width, self.grouped = causal, size.head_width, size.num_kv_heads != size.heads
        q_dim, kv_dim = size.heads * self.width, size.num_kv_heads * self.width
        self.query = nn.Linear(size.dim, q_dim, bias=size.bias != "none")
        self.key = nn.Linear(size.dim, kv_dim, bias=size.bias != "none")
        self.value = nn.Linear(size.dim, kv_dim, bias=size.bias != "none")
        self.out = nn.Linear(q_dim, size.dim, bias=size.bias == "all")
        self.query_norm = nn.RMSNorm(self.width, eps=size.norm_eps) if size.qk_norm else nn.Identity()
        self.key_norm = nn.RMSNorm(self.width, eps=size.norm_eps) if size.qk_norm else nn.Identity()

    def forward(self, x: Tensor, rotary: Rotation | None, mask: Tensor | None = None) -> Tensor:
        """`[batch, length, dim]` -> the same.

        mask: `[batch, 1, length or 1, length]`, whether a position is looked at; in place of `causal`.
        """
        query, key, value = (self._split(projected) for projected in self._project(x))
        query, key = self.query_norm(query), self.key_norm(key)
        if rotary is not None:
            query, key = rotate(query, rotary), rotate(key, rotary)
        mixed = F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=self.causal and mask is None, enable_gqa=self.grouped
        )
        joined: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return joined

    def _project(self, x: Tensor) -> Sequence[Tensor]:
        """Queries, keys and values `[batch, length, heads * head_width]`, in one product: three small ones keep a GPU
        less busy, and their gradients by `x` would have to be added up."""
        layers = (self.query, self.key, self.value)
        if not self.joint:
            return [layer(x) for layer in layers]
        weight = torch.cat([layer.weight for layer in layers])
        bias = None if self.query.bias is None else torch.cat([layer.bias for layer in layers])
        widths = [layer.out_features for layer in layers]
        return torch.split(F.linear(x, weight, bias), widths, dim=-1)

    def _split(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        return x.view(batch, length, -1, self.width).transpose(1, 2)


class FeedForward(nn.Module):
    """SwiGLU, or two matrices with GELU between them."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        bias = size.bias == "all"
        self.gate = nn.Linear(size.dim, size.hidden_dim, bias=bias) if size.ffn == "swiglu" else None
        self.up = nn.Linear(size.dim, size.hidden_dim, bias=bias)
        self.down = nn.Linear(size.hidden_dim, size.dim, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        up = self.up(x)
        hidden = F.gelu(up, approximate="tanh") if self.gate is None else F.silu(self.gate(x)) * up
        out: Tensor = self.down(hidden)
        return out


class Block(nn.Module):
    """Attention and feed-forward, each on a residual branch of its own."""

    def __init__(self, size: Size, causal: bool) -> None:
        super().__init__()
        self.attention_norm = norm(size)
        self.attention = Attention(size, causal)
        self.ffn_norm = norm(size)
        self.ffn = FeedForward(size)
        self.dropout = nn.Dropout(size.dropout)

    def forward(self, x: Tensor, rotary: Rotation | None, mask: Tensor | None = None) -> Tensor:
        x = x + self.dropout(self.attention(self.attention_norm(x), rotary, mask))
        out: Tensor = x + self.dropout(self.ffn(self.ffn_norm(x)))
        return out


class Trunk(nn.Module):
    """What all kinds have in common: positions, the blocks and the last norm."""

    def __init__(self, size: Size, causal: bool, context: int) -> None:
        super().__init__()
        self.size = size
        self.positions = nn.Embedding(context, size.dim) if size.positions == "learned" else None
        self.blocks = nn.ModuleList(Block(size, causal) for _ in range(size.layers))
        self.norm = norm(size)

    def features(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Embedded tokens or patches `[batch, length, dim]` -> what the blocks make of them, normalised."""
        length, rotary = x.shape[1], None
        if self.positions is not None:
            x = x + self.positions(torch.arange(length, device=x.device))
        else:
            rotary = rotation(length, self.size, x)
        if torch.is_autocast_enabled(x.device.type):  # the residual stream too, as in a sharded model
            x = x.to(torch.get_autocast_dtype(x.device.type))
        for block in self.blocks:
            x = block(x, rotary, mask)
        normed: Tensor = self.norm(x)
        return normed


class Decoder(Trunk):
    """A causal language model over sequences of at most `context` tokens (learned positions; else no bound).

    separator: the token that closes a document; if it is given, attention stays within documents.
    """

    def __init__(self, size: Size, vocab_size: int, context: int = 1024, separator: int | None = None) -> None:
        super().__init__(size, causal=True, context=context)
        self.separator = separator
        self.embed = nn.Embedding(vocab_size, size.dim)
        self.head = None if size.tie_embeddings else nn.Linear(size.dim, vocab_size, bias=False)

    def forward(self, inputs: Tensor, read: HeadReader = F.linear) -> Tensor:
        """Tokens `[batch, length]` -> logits `[batch, length, vocab]` of the token after each, or what `read` makes of
        features and head."""
        mask = None if self.separator is None else within_documents(inputs, self.separator)
        return read(self.features(self.embed(inputs), mask), (self.head or self.embed).weight)


class Classifier(Trunk):
    """An image classifier: patches in reading order, the blocks bidirectional, mean pooling."""

    def __init__(self, size: Size, shape: Sequence[int], num_classes: int) -> None:
        channels, height, width = shape
        if height % size.patch_size or width % size.patch_size:
            raise ValueError(f"images of {height}x{width} cannot be cut into patches of {size.patch_size}")
        super().__init__(size, causal=False, context=height * width // size.patch_size**2)
        self.patch = nn.Linear(channels * size.patch_size**2, size.dim)
        self.head = nn.Linear(size.dim, num_classes)

    def forward(self, inputs: Tensor) -> Tensor:
        """Images `[batch, channels, height, width]` -> logits `[batch, classes]`."""
        side = self.size.patch_size
        patches = F.unfold(inputs, kernel_size=side, stride=side).transpose(1, 2)
        logits: Tensor = self.head(self.features(self.patch(patches)).mean(dim=1))
        return logits
