"""The model."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from trainingjob_trainer.config.base import Config


class Transformer(Config):
    """Size of a Transformer: RMSNorm, rotary positions, grouped-query attention, SwiGLU."""

    layers: Annotated[int, Field(ge=1, le=256)] = Field(description="Blocks.")
    dim: Annotated[int, Field(ge=8, le=65536)] = Field(description="Width of the residual stream.")
    heads: Annotated[int, Field(ge=1, le=512)] = Field(description="Attention heads.")
    kv_heads: Annotated[int, Field(ge=1, le=512)] | None = Field(
        None, description="Key and value heads. Absent: heads."
    )
    ffn_dim: Annotated[int, Field(ge=8, le=262144)] | None = Field(
        None, description="Hidden width of the SwiGLU. Absent: 8/3 of dim, rounded up to a multiple of 64."
    )
    rope_theta: Annotated[float, Field(gt=0, le=1e9)] = Field(10_000.0, description="Base of the rotary positions.")
    tie_embeddings: bool = Field(True, description="Output head shares the input embedding (language-modeling).")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(0.0, description="Dropout on the residual branches.")
    patch_size: Annotated[int, Field(ge=1, le=64)] = Field(2, description="Pixels a patch side (image-classification).")

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.dim % self.heads:
            raise ValueError(f"dim ({self.dim}) must be a multiple of heads ({self.heads})")
        if (self.dim // self.heads) % 2:
            raise ValueError(f"dim / heads ({self.dim // self.heads}) must be even for rotary positions")
        if self.heads % (self.kv_heads or self.heads):
            raise ValueError(f"heads ({self.heads}) must be a multiple of kvHeads ({self.kv_heads})")
        return self

    @property
    def num_kv_heads(self) -> int:
        return self.kv_heads or self.heads

    @property
    def hidden_dim(self) -> int:
        """Hidden width of the feed-forward, after the default."""
        return self.ffn_dim or -(-(8 * self.dim // 3) // 64) * 64


PRESETS: dict[str, Transformer] = {
    "gpt-nano": Transformer(layers=4, dim=128, heads=4),
    "gpt-3m": Transformer(layers=4, dim=192, heads=6),
    "gpt-124m": Transformer(layers=12, dim=768, heads=12),
    "gpt-350m": Transformer(layers=24, dim=1024, heads=16),
    "llama-1b": Transformer(layers=16, dim=2048, heads=32, kv_heads=8, ffn_dim=8192, rope_theta=500_000.0),
    "llama-8b": Transformer(
        layers=32, dim=4096, heads=32, kv_heads=8, ffn_dim=14336, rope_theta=500_000.0, tie_embeddings=False
    ),
}


class Model(Config):
    """The model: a preset, or its size field by field."""

    preset: Literal["gpt-nano", "gpt-3m", "gpt-124m", "gpt-350m", "llama-1b", "llama-8b"] | None = Field(
        None, description="A named size."
    )
    transformer: Transformer | None = Field(None, description="A size of your own.")

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if (self.preset is None) == (self.transformer is None):
            how_many = "none" if self.preset is None else "both"
            raise ValueError(f"exactly one of preset and transformer must be set, not {how_many}")
        return self

    @property
    def size(self) -> Transformer:
        """The size, whichever way it was named."""
        return self.transformer or PRESETS[str(self.preset)]
