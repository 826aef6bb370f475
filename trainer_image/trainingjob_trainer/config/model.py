"""The model."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from trainingjob_trainer.config.architectures import Cnn, HuggingFace, Mlp, Rnn, Timm
from trainingjob_trainer.config.base import Config, Uri

Family = Literal["gpt2", "llama", "qwen2", "qwen3"]


class RopeScaling(Config):
    """Rotary positions stretched to a longer context, as in Llama 3.1: the slow ones only."""

    factor: Annotated[float, Field(ge=1, le=1024)] = Field(description="By how much the slow ones are slowed.")
    low_freq_factor: Annotated[float, Field(gt=0, le=1024)] = Field(
        1.0, description="Slow is what turns less often within originalContext."
    )
    high_freq_factor: Annotated[float, Field(gt=0, le=1024)] = Field(
        4.0, description="Fast is what turns more often within originalContext; between the two it is blended."
    )
    original_context: Annotated[int, Field(ge=8, le=1_048_576)] = Field(
        8192, description="Tokens of the context that the model was trained for before."
    )

    @model_validator(mode="after")
    def _low_below_high(self) -> Self:
        if self.low_freq_factor >= self.high_freq_factor:
            low, high = f"lowFreqFactor ({self.low_freq_factor:.3f})", f"highFreqFactor ({self.high_freq_factor:.3f})"
            raise ValueError(f"{low} must be below {high}")
        return self


class Transformer(Config):
    """Shape of a Transformer. The defaults are Llama's: RMSNorm, rotary positions, SwiGLU, no biases."""

    layers: Annotated[int, Field(ge=1, le=256)] = Field(description="Blocks.")
    dim: Annotated[int, Field(ge=8, le=65536)] = Field(description="Width of the residual stream.")
    heads: Annotated[int, Field(ge=1, le=512)] = Field(description="Attention heads.")
    kv_heads: Annotated[int, Field(ge=1, le=512)] | None = Field(
        None, description="Key and value heads. Absent: heads."
    )
    head_dim: Annotated[int, Field(ge=2, le=1024, multiple_of=2)] | None = Field(
        None, description="Width of a head. Absent: dim / heads."
    )
    ffn: Literal["swiglu", "gelu"] = Field(
        "swiglu", description="Feed-forward: gated with SiLU, or two matrices with GELU (tanh) between them."
    )
    ffn_dim: Annotated[int, Field(ge=8, le=262144)] | None = Field(
        None, description="Hidden width of the feed-forward. Absent: 4 dim (gelu); 8/3 dim, up to a multiple of 64."
    )
    norm: Literal["rmsnorm", "layernorm"] = Field("rmsnorm", description="Norm before each branch and at the end.")
    norm_eps: Annotated[float, Field(gt=0, le=0.1)] = Field(1e-5, description="Added to the variance in norms.")
    positions: Literal["rotary", "learned"] = Field(
        "rotary", description="Rotary: queries and keys are turned. Learned: a table of vectors, added to the tokens'."
    )
    rope_theta: Annotated[float, Field(gt=0, le=1e9)] = Field(10_000.0, description="Base of the rotary positions.")
    rope_scaling: RopeScaling | None = Field(None, description="Rotary positions for a longer context. Absent: none.")
    context: Annotated[int, Field(ge=8, le=1_048_576)] | None = Field(
        None, description="Positions in the table (learned). Absent: training.sequenceLength."
    )
    bias: Literal["none", "qkv", "all"] = Field(
        "none", description="Biases: of queries, keys and values (qkv), or of all but the output head (all)."
    )
    qk_norm: bool = Field(False, description="RMSNorm over each head's queries and keys.")
    tie_embeddings: bool = Field(True, description="Output head shares the input embedding (language-modeling).")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(0.0, description="Dropout on the residual branches.")
    patch_size: Annotated[int, Field(ge=1, le=64)] = Field(2, description="Pixels a patch side (image-classification).")

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.head_dim is None and self.dim % self.heads:
            raise ValueError(f"dim ({self.dim}) must be a multiple of heads ({self.heads}), or headDim be set")
        if self.positions == "rotary" and self.head_width % 2:
            raise ValueError(f"dim / heads ({self.head_width}) must be even for rotary positions")
        if self.heads % self.num_kv_heads:
            raise ValueError(f"heads ({self.heads}) must be a multiple of kvHeads ({self.kv_heads})")
        return self

    @model_validator(mode="after")
    def _context_is_of_a_table(self) -> Self:
        if self.context is not None and self.positions != "learned":
            raise ValueError(f"context ({self.context}) is for positions learned: remove it")
        return self

    @model_validator(mode="after")
    def _scaling_is_of_rotary_positions(self) -> Self:
        if self.rope_scaling is not None and self.positions != "rotary":
            raise ValueError(f"ropeScaling is for positions rotary, not {self.positions}: remove it")
        return self

    @property
    def num_kv_heads(self) -> int:
        return self.kv_heads or self.heads

    @property
    def head_width(self) -> int:
        """Width of a head, after the default."""
        return self.head_dim or self.dim // self.heads

    @property
    def hidden_dim(self) -> int:
        """Hidden width of the feed-forward, after the default."""
        return self.ffn_dim or (4 * self.dim if self.ffn == "gelu" else -(-(8 * self.dim // 3) // 64) * 64)

    @property
    def family(self) -> Family | None:
        """The family of Hugging Face models that computes the same, if there is one."""
        parts = (self.norm, self.positions, self.ffn)
        if parts == ("rmsnorm", "rotary", "swiglu"):
            if self.qk_norm:
                return "qwen3" if self.bias == "none" else None
            return "qwen2" if self.bias == "qkv" else "llama"
        whole_heads = self.num_kv_heads == self.heads and self.head_width * self.heads == self.dim
        if parts == ("layernorm", "learned", "gelu") and self.bias == "all" and whole_heads and not self.qk_norm:
            return "gpt2"
        return None


def _gpt(layers: int, dim: int, heads: int) -> Transformer:
    """The shape of GPT-2 (Radford et al. 2019)."""
    return Transformer(
        layers=layers, dim=dim, heads=heads, ffn="gelu", norm="layernorm", positions="learned", bias="all"
    )


PRESETS: dict[str, Transformer] = {
    "gpt-nano": Transformer(layers=4, dim=128, heads=4),
    "gpt-3m": Transformer(layers=4, dim=192, heads=6),
    "gpt-124m": _gpt(12, 768, 12),
    "gpt-350m": _gpt(24, 1024, 16),
    "gpt-774m": _gpt(36, 1280, 20),
    "gpt-1.3b": _gpt(24, 2048, 16),
    "llama-1b": Transformer(layers=16, dim=2048, heads=32, kv_heads=8, ffn_dim=8192, rope_theta=500_000.0),
    "llama-8b": Transformer(
        layers=32, dim=4096, heads=32, kv_heads=8, ffn_dim=14336, rope_theta=500_000.0, tie_embeddings=False
    ),
}

Preset = Literal["gpt-nano", "gpt-3m", "gpt-124m", "gpt-350m", "gpt-774m", "gpt-1.3b", "llama-1b", "llama-8b"]


# The fields of `Model` of which one is set, and the tasks that each is for.
ARCHITECTURES = {
    "preset": ("language-modeling", "text-classification", "image-classification"),
    "transformer": ("language-modeling", "text-classification", "image-classification"),
    "cnn": ("image-classification",),
    "rnn": ("language-modeling",),
    "mlp": ("regression",),
    "huggingface": ("language-modeling", "text-classification"),
    "timm": ("image-classification",),
}


class InitFrom(Config):
    """A model to begin with."""

    uri: Uri = Field(
        description="A Hugging Face directory with safetensors (of GPT-2, Llama, Qwen2 or Qwen3, or of what "
        "model.huggingface or model.timm is), or the outputUri of a run: what it exported, else its newest checkpoint."
    )


class Model(Config):
    """The model: a preset, or its shape field by field, of an architecture that the task has."""

    preset: Preset | None = Field(None, description="A named shape.")
    transformer: Transformer | None = Field(None, description="A shape of your own.")
    cnn: Cnn | None = Field(None, description="A convolutional network (image-classification).")
    rnn: Rnn | None = Field(None, description="A recurrent network (language-modeling).")
    mlp: Mlp | None = Field(None, description="A multilayer perceptron (regression).")
    huggingface: HuggingFace | None = Field(
        None,
        description="Any causal model of transformers (language-modeling), or any that classifies texts "
        "(text-classification).",
    )
    timm: Timm | None = Field(None, description="Any model of timm (image-classification).")
    init_from: InitFrom | None = Field(
        None,
        description="Weights and tokenizer to begin with (language-modeling, huggingface, timm), instead of random "
        "ones and one that is trained; data.prepare.tokenizer is not read then. Optimizer and steps begin anew.",
    )
    export: Literal["huggingface", "none"] = Field(
        "huggingface",
        description="What is handed out at the end: a directory that loads without this project (a language model's in "
        "the layout of GPT-2, Llama or Qwen), or nothing. A shape that none of them can express needs none.",
    )

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if (given := sum(getattr(self, name) is not None for name in ARCHITECTURES)) != 1:
            raise ValueError(f"exactly one of {', '.join(ARCHITECTURES)} must be set, not {given}")
        return self

    @model_validator(mode="after")
    def _only_some_begin_with_another(self) -> Self:
        if self.init_from is not None and not isinstance(self.architecture, Transformer | HuggingFace | Timm):
            raise ValueError("initFrom is for preset, transformer, huggingface and timm: remove it")
        return self

    @model_validator(mode="after")
    def _settings_are_somewhere(self) -> Self:
        if self.huggingface is not None and self.huggingface.config is None and self.init_from is None:
            raise ValueError("huggingface.config is required without initFrom, whose config.json would stand for it")
        return self

    @property
    def architecture(self) -> Transformer | Cnn | Rnn | Mlp | HuggingFace | Timm:
        """The shape, whichever way it was named."""
        own = self.transformer or self.cnn or self.rnn or self.mlp
        return own or self.huggingface or self.timm or PRESETS[str(self.preset)]

    @property
    def size(self) -> Transformer:
        """The shape of a Transformer."""
        assert isinstance(self.architecture, Transformer)
        return self.architecture

    @property
    def context(self) -> int | None:
        """Positions in the table, if it has one of a given length."""
        return self.architecture.context if isinstance(self.architecture, Transformer) else None
