"""What a model takes, by arithmetic: parameters, and nothing is built for it. No torch: the Check stage asks, too."""

from __future__ import annotations

from math import prod

from trainingjob_trainer.config import Transformer

Shapes = dict[str, tuple[int, ...]]


def decoder_shapes(size: Transformer, vocab_size: int, context: int) -> Shapes:
    """Every parameter of `models.Decoder`, by its name there."""
    shapes: Shapes = {"embed.weight": (vocab_size, size.dim)}
    if size.positions == "learned":
        shapes["positions.weight"] = (context, size.dim)
    for number in range(size.layers):
        shapes |= {f"blocks.{number}.{name}": shape for name, shape in block_shapes(size).items()}
    shapes |= _norm("norm", size)
    if not size.tie_embeddings:
        shapes["head.weight"] = (vocab_size, size.dim)
    return shapes


def block_shapes(size: Transformer) -> Shapes:
    """The parameters of one block."""
    q_dim, kv_dim = size.heads * size.head_width, size.num_kv_heads * size.head_width
    qkv, everywhere = size.bias != "none", size.bias == "all"
    shapes = _norm("attention_norm", size)
    shapes |= _linear("attention.query", size.dim, q_dim, qkv)
    shapes |= _linear("attention.key", size.dim, kv_dim, qkv)
    shapes |= _linear("attention.value", size.dim, kv_dim, qkv)
    shapes |= _linear("attention.out", q_dim, size.dim, everywhere)
    if size.qk_norm:
        shapes |= {f"attention.{which}_norm.weight": (size.head_width,) for which in ("query", "key")}
    shapes |= _norm("ffn_norm", size)
    if size.ffn == "swiglu":
        shapes |= _linear("ffn.gate", size.dim, size.hidden_dim, everywhere)
    shapes |= _linear("ffn.up", size.dim, size.hidden_dim, everywhere)
    return shapes | _linear("ffn.down", size.hidden_dim, size.dim, everywhere)


def parameters(shapes: Shapes) -> int:
    """Numbers in all of them."""
    return sum(prod(shape) for shape in shapes.values())


def _linear(name: str, inputs: int, outputs: int, bias: bool) -> Shapes:
    shapes: Shapes = {f"{name}.weight": (outputs, inputs)}
    return shapes | {f"{name}.bias": (outputs,)} if bias else shapes


def _norm(name: str, size: Transformer) -> Shapes:
    bias = size.norm == "layernorm" and size.bias == "all"
    shapes: Shapes = {f"{name}.weight": (size.dim,)}
    return shapes | {f"{name}.bias": (size.dim,)} if bias else shapes
