"""Documents that share a sample: with packing none sees another, without it they are one text."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.training import job, store_of
from torch.nn import functional as F  # noqa: N812
from trainingjob_trainer.config import Transformer
from trainingjob_trainer.data.manifest import SPLITS, Manifest, Shard, SplitData
from trainingjob_trainer.data.reader import IGNORE, Reader
from trainingjob_trainer.models import build_model, init_weights
from trainingjob_trainer.models.transformer import Decoder, within_documents
from trainingjob_trainer.tasks import build_task

EOS = 0
DOCUMENTS = [[5, 6, 7, EOS], [8, EOS], [EOS], [9, 3, 2, 4, 11, EOS], [12, 13, 14, 15, 1, 2, 3, 4, 5]]
ROW = [token for document in DOCUMENTS for token in document]


def decoder(separator: int | None, **size: Any) -> Decoder:
    model = Decoder(Transformer(layers=2, dim=16, heads=4, kv_heads=2, **size), 16, len(ROW), separator)
    init_weights(model, 1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(5)
    return model.double().eval()


def test_a_packed_document_has_the_logits_that_it_has_alone() -> None:
    model = decoder(EOS)
    with torch.no_grad():
        packed = model(torch.tensor([ROW]))[0]
        alone = torch.cat([model(torch.tensor([document]))[0] for document in DOCUMENTS])
    assert torch.allclose(packed, alone, atol=1e-5)  # rotary angles are float32


def test_without_packing_a_document_sees_those_before_it() -> None:
    model = decoder(None)
    with torch.no_grad():
        whole = model(torch.tensor([ROW]))[0]
        alone = torch.cat([model(torch.tensor([document]))[0] for document in DOCUMENTS])
    first = len(DOCUMENTS[0])
    assert torch.allclose(whole[:first], alone[:first], atol=1e-12)
    assert (whole[first:] - alone[first:]).abs().amax(dim=-1).min() > 1e-3


def test_no_position_looks_ahead_or_at_nothing() -> None:
    mask = within_documents(torch.tensor([ROW, ROW[::-1]]), EOS)
    assert mask.shape == (2, 1, len(ROW), len(ROW))
    assert not mask.triu(1).any()
    assert mask.diagonal(dim1=-2, dim2=-1).all()


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    data = np.asarray([*ROW, *ROW, EOS], dtype="<u2").tobytes()
    store_of(job(tmp_path)).put("data/0.bin", data)
    shard = Shard.of("data/0.bin", data, len(data) // 2, 11, "w")
    split = SplitData(shards=[shard], documents=11, bytes=100)
    return Manifest(
        kind="tokens", dtype="uint16", splits=dict.fromkeys(SPLITS, split), vocab_size=16,
        tokenizer_digest="d", eos_id=EOS,
    )  # fmt: skip


@pytest.mark.parametrize("packing", [True, False])
def test_the_first_token_of_a_document_is_predicted_only_without_packing(
    tmp_path: Path, manifest: Manifest, packing: bool
) -> None:
    batch = Reader(store_of(job(tmp_path)), manifest, "train", len(ROW), packing).read([0]).to(torch.device("cpu"))
    following = torch.tensor([*ROW[1:], ROW[0]])
    expected = following.where(torch.tensor(ROW) != EOS, IGNORE) if packing else following
    assert batch.targets[0].tolist() == expected.tolist()


def test_the_loss_of_packed_documents_is_the_sum_of_their_own(tmp_path: Path, manifest: Manifest) -> None:
    """From the configuration to the loss, and its bits a byte."""
    packed = job(tmp_path, data={"train": {"uri": "/x"}, "packing": True}, sequenceLength=len(ROW))
    model = build_model(packed, manifest).double()
    init_weights(model, 1)
    model.eval()
    batch = Reader(store_of(packed), manifest, "train", len(ROW), packed.data.packing).read([0]).to(torch.device("cpu"))
    task = build_task(packed, manifest)
    loss, count = task.loss_sum(model, batch.inputs, batch.targets)
    texts = [*DOCUMENTS[:-1], [*DOCUMENTS[-1], ROW[0]]]  # the sample's last target is the next one's first token
    losses = [
        F.cross_entropy(model(torch.tensor([text[:-1]]))[0], torch.tensor(text[1:]), reduction="sum")
        for text in texts
        if len(text) > 1
    ]
    assert loss.item() == pytest.approx(sum(losses).item(), rel=1e-12)  # type: ignore[union-attr]
    assert count == sum(len(text) - 1 for text in texts)
    metrics = task.metrics("train", torch.device("cpu"))
    metrics.update(model(batch.inputs), batch.targets)
    found = metrics.compute()
    predicted = manifest.splits["train"].count - manifest.splits["train"].documents
    assert found["bitsPerByte"] == pytest.approx(found["loss"] / np.log(2) * predicted / 100)
