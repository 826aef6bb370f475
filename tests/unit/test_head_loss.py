"""The loss of a language model's head: that of the whole logits, without them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from support.peaks import peak_of_a_step
from support.ranks import run_ranks
from support.training import job
from torch import Tensor
from trainingjob_trainer.models import build_model, init_weights
from trainingjob_trainer.tasks import IGNORE, head
from trainingjob_trainer.tasks.base import cross_entropy_sum
from trainingjob_trainer.tasks.head import head_cross_entropy, pieces

TOKENS, VOCABULARY, DIM = 37, 50, 8


def example(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(1, TOKENS, DIM, dtype=dtype, generator=generator).requires_grad_()
    weight = torch.randn(VOCABULARY, DIM, dtype=dtype, generator=generator).requires_grad_()
    targets = torch.randint(VOCABULARY, (1, TOKENS), generator=generator)
    targets[0, 3:9] = IGNORE
    return features, weight, targets


def loss_and_gradients(total: Tensor, *tensors: Tensor) -> list[Tensor]:
    return [total.detach(), *torch.autograd.grad(3 * total, tensors)]


@pytest.mark.parametrize("multiple", [1, 16])
@pytest.mark.parametrize("at_once", [VOCABULARY, 5 * VOCABULARY, 10**6])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_loss_and_gradients_are_those_of_the_whole_logits(
    monkeypatch: pytest.MonkeyPatch, multiple: int, at_once: int, smoothing: float, dtype: torch.dtype, tolerance: float
) -> None:
    """With a vocabulary that is filled up for the products, as on CUDA, and without."""
    monkeypatch.setattr(head, "LOGITS_AT_ONCE", at_once)
    monkeypatch.setitem(head.MULTIPLE, "cpu", multiple)
    features, weight, targets = example(dtype)
    found = loss_and_gradients(head_cross_entropy(features, weight, targets, smoothing), features, weight)
    whole, _ = cross_entropy_sum(features @ weight.T, targets, smoothing)
    for ours, expected in zip(found, loss_and_gradients(whole, features, weight), strict=True):
        assert ours.shape == expected.shape
        assert torch.allclose(ours, expected, rtol=tolerance, atol=tolerance)


def test_in_half_precision_it_is_as_near_as_the_whole_logits_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "LOGITS_AT_ONCE", 5 * VOCABULARY)
    features, weight, targets = example(torch.float32)
    exact = loss_and_gradients(cross_entropy_sum(features @ weight.T, targets)[0], features, weight)
    with torch.autocast("cpu", torch.bfloat16):
        ours = head_cross_entropy(features, weight, targets)
        whole = cross_entropy_sum(features @ weight.T, targets)[0]
    assert ours.dtype == torch.float32
    for found, theirs, expected in zip(
        loss_and_gradients(ours, features, weight), loss_and_gradients(whole, features, weight), exact, strict=True
    ):
        assert found.dtype == torch.float32
        assert float((found - expected).norm()) <= 1.5 * float((theirs - expected).norm()) + 1e-3


@pytest.mark.parametrize("multiple", [1, 16])
def test_pieces_are_all_the_logits_once(monkeypatch: pytest.MonkeyPatch, multiple: int) -> None:
    monkeypatch.setattr(head, "LOGITS_AT_ONCE", 5 * 64)
    monkeypatch.setitem(head.MULTIPLE, "cpu", multiple)
    features, weight, targets = example(torch.float32)
    found = list(pieces(features, weight, targets))
    rows = 320 // (64 if multiple > 1 else VOCABULARY)
    assert [len(logits) for logits, _ in found] == [rows] * (TOKENS // rows) + [TOKENS % rows]
    torch.testing.assert_close(torch.cat([logits for logits, _ in found]), features[0] @ weight.T)
    assert torch.equal(torch.cat([wanted for _, wanted in found]), targets[0])


@pytest.mark.parametrize("model", [{"transformer": {"layers": 1, "dim": 16, "heads": 2}}, {"rnn": {"dim": 16}}])
@pytest.mark.parametrize("tied", [True, False])
def test_a_language_model_gives_its_reader_what_makes_its_logits(tmp_path: Path, model: Any, tied: bool) -> None:
    from support.training import put_tokens, store_of

    ((name, shape),) = model.items()
    config = job(tmp_path, model={name: {**shape, "tieEmbeddings": tied}})
    built = build_model(config, put_tokens(store_of(config))).eval()
    init_weights(built, 1)
    inputs = torch.randint(32, (2, 7))
    assert torch.equal(built(inputs, lambda features, weight: features @ weight.T), built(inputs))


def test_a_step_takes_no_memory_for_the_whole_logits(tmp_path: Path) -> None:
    """2,048 tokens by 32,768 entries are 268 MB of logits; the usual loss holds them three times over."""
    logits = 2048 * 32768 * 4
    config = job(tmp_path, model={"transformer": {"layers": 1, "dim": 16, "heads": 2}}, sequenceLength=256)
    ([usual, ours],) = run_ranks(1, peak_of_a_step, config, 32768, 8)
    assert usual > 2 * logits
    assert ours < 0.75 * logits
