"""What is reckoned about a model is what is found when it is built."""

from typing import Any

import pytest
import torch
from trainingjob_trainer.accounting import decoder_shapes
from trainingjob_trainer.config import PRESETS, Transformer
from trainingjob_trainer.models import Decoder

SHAPES: dict[str, dict[str, Any]] = {
    "llama": {"kv_heads": 2},
    "biases": {"bias": "all"},
    "qkv biases, untied": {"bias": "qkv", "tie_embeddings": False},
    "gpt-2": {"norm": "layernorm", "positions": "learned", "ffn": "gelu", "bias": "all"},
    "layernorm without bias": {"norm": "layernorm"},
    "qk norm, wide heads": {"qk_norm": True, "head_dim": 24},
}
SIZES = {**{name: Transformer(layers=2, dim=32, heads=4, **shape) for name, shape in SHAPES.items()}, **PRESETS}


@pytest.mark.parametrize("size", SIZES.values(), ids=list(SIZES))
def test_parameters_are_those_of_the_model(size: Transformer) -> None:
    with torch.device("meta"):
        model = Decoder(size, 300, context=64)
    assert decoder_shapes(size, 300, 64) == {name: tuple(p.shape) for name, p in model.named_parameters()}
