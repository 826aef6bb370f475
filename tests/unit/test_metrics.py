"""Losses and metrics of both tasks against scikit-learn and plain formulas, over any dealing to batches."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix, f1_score, log_loss, precision_score, recall_score
from trainingjob_trainer.data.manifest import SPLITS, Manifest, Shard, SplitData
from trainingjob_trainer.tasks import IGNORE
from trainingjob_trainer.tasks.image_classification import ImageClassification
from trainingjob_trainer.tasks.language_modeling import LanguageModeling

CPU = torch.device("cpu")


def split(count: int, size: int) -> dict[Any, SplitData]:
    shard = Shard.of("k", bytes(2 * count), count, 1, "w")
    return dict.fromkeys(SPLITS, SplitData(shards=[shard], documents=1, bytes=size))


TOKENS = Manifest(
    kind="tokens", dtype="uint16", splits=split(1000, 4000), vocab_size=11, tokenizer_digest="d", eos_id=0
)
IMAGES = Manifest(kind="images", dtype="uint8", splits=split(100, 100), shape=(1, 2, 2), classes=list("abcdef"))


def test_the_loss_is_a_sum_over_the_targets_that_weigh() -> None:
    torch.manual_seed(0)
    logits, targets = torch.randn(3, 5, 11), torch.randint(11, (3, 5))
    targets[1, 2:] = IGNORE
    total, count = LanguageModeling(TOKENS).loss_sum(logits, targets)
    weighs = [(i, j) for i in range(3) for j in range(5) if i != 1 or j < 2]
    expected = sum(-float(logits[i, j].log_softmax(-1)[targets[i, j]]) for i, j in weighs)
    assert count.item() == 12
    assert total.item() == pytest.approx(expected, rel=1e-6)


def test_half_precision_logits_are_summed_in_float32() -> None:
    logits, targets = torch.randn(4, 8, 11).bfloat16(), torch.randint(11, (4, 8))
    total, _ = LanguageModeling(TOKENS).loss_sum(logits, targets)
    assert total.dtype == torch.float32
    assert total == LanguageModeling(TOKENS).loss_sum(logits.float(), targets)[0]


@pytest.mark.parametrize("batch", [1, 3, 7, 20])
def test_language_metrics_do_not_depend_on_the_batches(batch: int) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(20, 5, 11, generator=generator)
    targets = torch.randint(11, (20, 5), generator=generator)
    targets[7] = IGNORE
    metrics = LanguageModeling(TOKENS).metrics("test", CPU)
    for start in range(0, 20, batch):
        metrics.update(logits[start : start + batch], targets[start : start + batch])
    found = metrics.compute()
    weighs = targets != IGNORE
    loss = float(-logits.double().log_softmax(-1)[weighs, targets[weighs]].mean())
    assert found["loss"] == pytest.approx(loss, rel=1e-6)
    assert found["perplexity"] == pytest.approx(math.exp(loss), rel=1e-6)
    assert found["bitsPerByte"] == pytest.approx(loss / math.log(2) * 1000 / 4000, rel=1e-6)
    assert found["accuracy"] == float((logits.argmax(-1) == targets)[weighs].double().mean())


def test_classification_metrics_equal_scikit_learns() -> None:
    """Class e never occurs, class f is predicted only; one row is padding; the last batch doesn't divide."""
    random = np.random.default_rng(0)
    labels = random.integers(0, 4, size=101)
    logits = random.normal(size=(101, 6)) + 2 * np.eye(6)[labels]
    logits[:, 4] = -9
    predictions = logits.argmax(1)
    assert set(predictions) == {0, 1, 2, 3, 5}
    metrics = ImageClassification(IMAGES).metrics("test", CPU)
    for start in range(0, 101, 8):
        rows = torch.from_numpy(logits[start : start + 8])
        targets = torch.from_numpy(labels[start : start + 8])
        metrics.update(torch.cat([rows, rows[:1]]), torch.cat([targets, torch.tensor([IGNORE])]))
    found = metrics.compute()
    arguments: dict[str, Any] = {"average": "macro", "zero_division": 0}
    assert found["confusionMatrix"] == confusion_matrix(labels, predictions, labels=range(6)).tolist()
    assert found["accuracy"] == pytest.approx((labels == predictions).mean(), abs=1e-12)
    assert found["precision"] == pytest.approx(precision_score(labels, predictions, **arguments), abs=1e-12)
    assert found["recall"] == pytest.approx(recall_score(labels, predictions, **arguments), abs=1e-12)
    assert found["f1"] == pytest.approx(f1_score(labels, predictions, **arguments), abs=1e-12)
    each = precision_score(labels, predictions, average=None, zero_division=0, labels=range(6))
    assert [row["precision"] for row in found["perClass"]] == pytest.approx(each.tolist(), abs=1e-12)
    assert [row["support"] for row in found["perClass"]] == np.bincount(labels, minlength=6).tolist()
    shares = torch.from_numpy(logits).softmax(-1).numpy()
    assert found["loss"] == pytest.approx(log_loss(labels, shares, labels=range(6)), rel=1e-9)
