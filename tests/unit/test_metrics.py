"""Loss and metrics of language modeling against plain formulas, over any dealing to batches."""

import math
from typing import Any

import pytest
import torch
from trainingjob_trainer.config import METRICS
from trainingjob_trainer.data.manifest import SPLITS, Manifest, Shard, SplitData
from trainingjob_trainer.tasks import IGNORE
from trainingjob_trainer.tasks.language_modeling import LanguageModeling

CPU = torch.device("cpu")


def split(count: int, size: int) -> dict[Any, SplitData]:
    shard = Shard.of("k", bytes(2 * count), count, 1, "w")
    return dict.fromkeys(SPLITS, SplitData(shards=[shard], documents=1, bytes=size))


TOKENS = Manifest(
    kind="tokens", dtype="uint16", splits=split(1000, 4000), vocab_size=11, tokenizer_digest="d", eos_id=0
)


def test_the_loss_is_a_sum_over_the_targets_that_weigh() -> None:
    torch.manual_seed(0)
    logits, targets = torch.randn(3, 5, 11), torch.randint(11, (3, 5))
    targets[1, 2:] = IGNORE
    total, count = LanguageModeling(TOKENS).loss_of(logits, targets)
    weighs = [(i, j) for i in range(3) for j in range(5) if i != 1 or j < 2]
    expected = sum(-float(logits[i, j].log_softmax(-1)[targets[i, j]]) for i, j in weighs)
    assert count.item() == 12
    assert total.item() == pytest.approx(expected, rel=1e-6)


def test_half_precision_logits_are_summed_in_float32() -> None:
    logits, targets = torch.randn(4, 8, 11).bfloat16(), torch.randint(11, (4, 8))
    total, _ = LanguageModeling(TOKENS).loss_of(logits, targets)
    assert total.dtype == torch.float32
    assert total == LanguageModeling(TOKENS).loss_of(logits.float(), targets)[0]


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
    assert found.keys() == METRICS["language-modeling"].keys()
    weighs = targets != IGNORE
    loss = float(-logits.double().log_softmax(-1)[weighs, targets[weighs]].mean())
    assert found["loss"] == pytest.approx(loss, rel=1e-6)
    assert found["perplexity"] == pytest.approx(math.exp(loss), rel=1e-6)
    assert found["bitsPerByte"] == pytest.approx(loss / math.log(2) * 1000 / 4000, rel=1e-6)
    assert found["accuracy"] == float((logits.argmax(-1) == targets)[weighs].double().mean())
    among_five = (logits.sort(-1, descending=True).indices[..., :5] == targets[..., None]).any(-1)
    assert found["top5Accuracy"] == float(among_five[weighs].double().mean())
