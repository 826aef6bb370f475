"""The Transformer computes what its formulas say, and starts from the same weights wherever it is built."""

import itertools
import math
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor
from trainingjob_trainer.config import PRESETS, Transformer
from trainingjob_trainer.config.model import Preset
from trainingjob_trainer.models import Classifier, Decoder, init_weights, transformer
from trainingjob_trainer.models.transformer import plain_attention, rotate, rotation

DOCUMENTATION = (Path(__file__).parents[2] / "docs" / "models.md").read_text()

SIZE = Transformer(layers=2, dim=32, heads=4, kv_heads=2, ffn_dim=48)


# Each option of a decoder, alone and as GPT-2 and Qwen put them together.
SHAPES: dict[str, dict[str, Any]] = {
    "llama": {},
    "all heads": {"kv_heads": None},
    "wide heads": {"head_dim": 16},
    "layernorm": {"norm": "layernorm"},
    "stretched": {"rope_scaling": {"factor": 8.0, "original_context": 16}},
    "learned": {"positions": "learned"},
    "gelu": {"ffn": "gelu"},
    "biases": {"bias": "all"},
    "qkv biases": {"bias": "qkv"},
    "qk norm": {"qk_norm": True},
    "untied": {"tie_embeddings": False},
    "gpt-2": {"kv_heads": None, "norm": "layernorm", "positions": "learned", "ffn": "gelu", "bias": "all"},
}


def size_of(**changes: Any) -> Transformer:
    return Transformer(**{**SIZE.model_dump(), **changes})


def decoder(size: Transformer = SIZE, vocabulary: int = 50) -> Decoder:
    """A small decoder, its biases not zero as at first: an option that goes unused must not go unnoticed."""
    with torch.device("meta"):
        model = Decoder(size, vocabulary, context=16)
    model.to_empty(device="cpu")
    init_weights(model, seed=1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(len(name)))
    return model


def head_by_head(query: Tensor, key: Tensor, value: Tensor, causal: bool) -> Tensor:
    """The formula in words: each query's mean of the values before it, weighted by the softmax of its scores."""
    out = torch.empty_like(query)
    for batch, head, place in itertools.product(*map(range, query.shape[:3])):
        shared = head // (query.shape[1] // key.shape[1])
        seen = slice(0, place + 1 if causal else None)
        scores = key[batch, shared, seen] @ query[batch, head, place] / math.sqrt(query.shape[-1])
        out[batch, head, place] = torch.softmax(scores, 0) @ value[batch, shared, seen]
    return out


@pytest.mark.parametrize("causal", [True, False])
def test_the_plain_formula_is_the_formula(causal: bool) -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(2, 4, 9, 8), torch.randn(2, 2, 9, 8), torch.randn(2, 2, 9, 8)
    torch.testing.assert_close(plain_attention(query, key, value, causal), head_by_head(query, key, value, causal))


@pytest.mark.parametrize("shape", SHAPES.values(), ids=list(SHAPES))
def test_the_fast_path_equals_the_plain_formula(shape: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """In float64, weights and gradients: logits of a decoder with either attention."""
    model = decoder(size_of(**shape)).double()
    tokens = torch.randint(50, (2, 12), generator=torch.Generator().manual_seed(0))

    def logits_and_gradients() -> list[Tensor]:
        model.zero_grad()
        logits = model(tokens)
        logits.logsumexp(-1).sum().backward()
        return [logits.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]

    fast, calls = logits_and_gradients(), []

    def plain(query: Tensor, key: Tensor, value: Tensor, attn_mask: None, is_causal: bool, enable_gqa: bool) -> Tensor:
        calls.append(enable_gqa)
        return plain_attention(query, key, value, is_causal)

    monkeypatch.setattr(transformer.F, "scaled_dot_product_attention", plain)
    for quick, slow in zip(fast, logits_and_gradients(), strict=True):
        torch.testing.assert_close(quick, slow, rtol=1e-10, atol=1e-12)
    assert calls == [model.size.num_kv_heads != model.size.heads] * model.size.layers


@pytest.mark.parametrize("shape", SHAPES.values(), ids=list(SHAPES))
def test_every_option_changes_what_is_computed(shape: dict[str, Any]) -> None:
    """Each parameter gets a gradient, and none of the shapes computes what another one does."""
    model = decoder(size_of(**shape))
    tokens = torch.arange(12)[None]
    model(tokens).logsumexp(-1).sum().backward()
    for name, parameter in model.named_parameters():
        gradient = parameter.grad
        assert gradient is not None, name
        if not name.endswith("key.bias"):  # the softmax does not see what all keys have in common
            assert gradient.abs().max() > 0, name
    for other in SHAPES.values():
        if other != shape:
            assert not torch.allclose(decoder(size_of(**other))(tokens), model(tokens), atol=1e-4)


def test_learned_positions_are_added_to_the_tokens() -> None:
    model = decoder(size_of(positions="learned"))
    tokens = torch.zeros(1, 12, dtype=torch.long)
    with torch.no_grad():
        assert model.positions is not None
        model.positions.weight.copy_(model.positions.weight[:1].expand(16, -1))
        same_everywhere = model(tokens)
    torch.testing.assert_close(same_everywhere, same_everywhere[:, :1].expand(-1, 12, -1))


def test_attention_scores_depend_on_distance_only() -> None:
    torch.manual_seed(0)
    query, key = torch.randn(8), torch.randn(8)
    rotary = rotation(12, Transformer(layers=1, dim=8, heads=1), query)
    queries, keys = rotate(query.expand(12, 8), rotary), rotate(key.expand(12, 8), rotary)
    torch.testing.assert_close(queries[7] @ keys[4], queries[11] @ keys[8])


def test_a_decoder_does_not_see_the_future() -> None:
    model = decoder()
    tokens = torch.randint(50, (1, 12), generator=torch.Generator().manual_seed(0))
    changed = tokens.clone()
    changed[0, 8:] = (changed[0, 8:] + 1) % 50
    before, after = model(tokens), model(changed)
    torch.testing.assert_close(before[:, :8], after[:, :8])
    assert not torch.allclose(before[:, 8:], after[:, 8:])


def test_a_classifier_sees_every_patch() -> None:
    with torch.device("meta"):
        model = Classifier(SIZE, (1, 8, 8), 10)
    model.to_empty(device="cpu")
    init_weights(model, seed=1)
    image = torch.zeros(1, 1, 8, 8)
    for row, column in ((0, 0), (7, 7)):
        changed = image.clone()
        changed[0, 0, row, column] = 1.0
        assert model(image).shape == (1, 10)
        assert not torch.allclose(model(image), model(changed))


def test_initial_weights_are_a_function_of_seed_and_name() -> None:
    first, again = decoder(), decoder()
    deeper = decoder(SIZE.model_copy(update={"layers": 3}))
    for name, weight in first.named_parameters():
        assert torch.equal(weight, again.get_parameter(name))
    assert torch.equal(first.embed.weight, deeper.embed.weight)
    assert first.blocks.get_parameter("0.ffn.up.weight").std() > 0.018
    assert first.blocks.get_parameter("0.ffn.down.weight").std() < 0.012
    assert not torch.equal(first.blocks.get_parameter("0.ffn.up.weight"), first.blocks.get_parameter("1.ffn.up.weight"))


@pytest.mark.parametrize(
    ("preset", "vocabulary", "expected"),
    [
        ("gpt-nano", 2048, 1_115_264),
        ("gpt-3m", 2048, 2_164_416),
        ("gpt-124m", 50_257, 124_439_808),
        ("gpt-350m", 50_257, 354_823_168),
        ("gpt-774m", 50_257, 774_030_080),
        ("gpt-1.3b", 50_257, 1_313_626_112),
        ("llama-1b", 128_256, 1_235_814_400),
        ("llama-8b", 128_256, 8_030_261_248),
    ],
)
def test_presets_have_the_parameters_that_the_documentation_names(preset: str, vocabulary: int, expected: int) -> None:
    with torch.device("meta"):
        model = Decoder(PRESETS[preset], vocabulary, context=1024)
    assert sum(p.numel() for p in model.parameters()) == expected
    assert f"| `{preset}` |" in DOCUMENTATION
    assert f"{expected:,}" in DOCUMENTATION


def test_every_preset_is_a_choice() -> None:
    assert list(get_args(Preset)) == list(PRESETS)
