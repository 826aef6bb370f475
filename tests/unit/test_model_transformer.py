"""The Transformer computes what its formulas say, and starts from the same weights wherever it is built."""

import math

import torch
from torch import Tensor
from trainingjob_trainer.config import PRESETS, Transformer
from trainingjob_trainer.models import Classifier, Decoder, init_weights
from trainingjob_trainer.models.transformer import Attention, rotate, rotation

SIZE = Transformer(layers=2, dim=32, heads=4, kv_heads=2, ffn_dim=48)


def decoder(size: Transformer = SIZE, vocabulary: int = 50) -> Decoder:
    with torch.device("meta"):
        model = Decoder(size, vocabulary)
    model.to_empty(device="cpu")
    init_weights(model, seed=1)
    return model


def plain_attention(attention: Attention, x: Tensor, theta: float) -> Tensor:
    """softmax(Q K^T / sqrt(d)) V, head by head, key and value heads shared by neighbours."""
    _, length, dim = x.shape
    width = dim // attention.heads
    query, key, value = attention.query(x), attention.key(x), attention.value(x)
    mask = torch.full((length, length), float("-inf")).triu(1) if attention.causal else torch.zeros(length, length)
    heads = []
    for head in range(attention.heads):
        shared = head // (attention.heads // attention.kv_heads)
        rotary = rotation(length, width, theta, x)
        q = rotate(query[..., head * width : (head + 1) * width], rotary)
        k = rotate(key[..., shared * width : (shared + 1) * width], rotary)
        v = value[..., shared * width : (shared + 1) * width]
        heads.append(torch.softmax(q @ k.transpose(1, 2) / math.sqrt(width) + mask, dim=-1) @ v)
    result: Tensor = attention.out(torch.cat(heads, dim=-1))
    return result


def test_attention_equals_the_plain_formula() -> None:
    for causal in (True, False):
        torch.manual_seed(0)
        attention = Attention(SIZE, causal)
        x = torch.randn(2, 9, SIZE.dim)
        rotary = rotation(9, SIZE.dim // SIZE.heads, SIZE.rope_theta, x)
        torch.testing.assert_close(attention(x, rotary), plain_attention(attention, x, SIZE.rope_theta))


def test_attention_scores_depend_on_distance_only() -> None:
    torch.manual_seed(0)
    query, key = torch.randn(8), torch.randn(8)
    rotary = rotation(12, 8, 10_000.0, query)
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


def test_presets_have_the_sizes_of_their_names() -> None:
    def millions(name: str, vocabulary: int) -> float:
        with torch.device("meta"):
            return sum(p.numel() for p in Decoder(PRESETS[name], vocabulary).parameters()) / 1e6

    assert round(millions("gpt-124m", 50_257)) == 124
    assert round(millions("llama-1b", 128_256)) == 1236
    assert round(millions("llama-8b", 128_256)) == 8030
