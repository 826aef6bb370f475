"""Texts with labels: their rows, their splits, and an encoder to which padding is nothing."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.training import job, store_of
from trainingjob_trainer.config import JobConfig, Transformer
from trainingjob_trainer.data.reader import Reader
from trainingjob_trainer.errors import DataError, UserError
from trainingjob_trainer.models import Encoder, init_weights
from trainingjob_trainer.prepare import tokenizer as bpe
from trainingjob_trainer.prepare.encoders import Labels
from trainingjob_trainer.prepare.local import prepare_data

LENGTH = 12


def labelled(directory: Path, *lines: dict[str, Any], clean: dict[str, Any] | None = None) -> JobConfig:
    (directory / "raw.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    half = {"fraction": 0.3}
    data = {
        "train": {"uri": f"{directory}/raw.jsonl", "field": "body", "labelField": "topic"},
        "validation": half,
        "test": half,
        "prepare": {"tokenizer": {"vocabSize": 257}, "clean": clean or {}},
    }
    return job(directory, task={"kind": "text-classification"}, data=data, sequenceLength=LENGTH)


def test_a_row_is_eos_the_text_as_far_as_it_fits_eos_and_the_label(tmp_path: Path) -> None:
    texts = {f"{word} {i}": topic for word, topic in (("ab", "x"), ("a longer text", "y")) for i in range(30)}
    config = labelled(tmp_path, *({"body": text, "topic": topic} for text, topic in texts.items()))
    store = store_of(config)
    manifest = prepare_data(config, store)
    assert manifest.classes == ["x", "y"]
    tokenizer = bpe.load(store.get("data/tokenizer.json"))
    seen = 0
    for split in manifest.splits:
        reader = Reader(store, manifest, split, LENGTH)
        batch = reader.read(range(len(reader)))
        assert batch.inputs.shape == (len(reader), LENGTH)
        seen += len(reader)
        for row, target in zip(batch.inputs.tolist(), batch.targets.tolist(), strict=True):
            text = tokenizer.decode([token for token in row if token != manifest.eos_id])
            assert row[0] == manifest.eos_id
            whole = [text] if text in texts else [known for known in texts if known.startswith(text)]
            assert {texts[known] for known in whole} == {(manifest.classes or [])[target]}
            assert (row[-1] == manifest.eos_id) == (len(text) < LENGTH - 1)
    assert seen == len(texts)


def test_equal_texts_are_in_one_split_whatever_their_labels(tmp_path: Path) -> None:
    lines = [{"body": f"text {i}", "topic": topic} for i in range(30) for topic in "ba"]
    config = labelled(tmp_path, *lines, clean={"deduplicate": False})
    manifest = prepare_data(config, store_of(config))
    for split in manifest.splits:
        reader = Reader(store_of(config), manifest, split, LENGTH)
        rows = reader.read(range(len(reader)))
        pairs = rows.inputs.reshape(-1, 2, LENGTH)
        assert torch.equal(pairs[:, 0], pairs[:, 1])
        assert rows.targets.tolist() == [0, 1] * (len(reader) // 2)


@pytest.mark.parametrize(
    ("line", "error", "message"),
    [
        ({"body": "b", "topic": [1]}, DataError, "has .1. in 'topic' where a label"),
        ({"body": "b"}, UserError, "has no field 'topic'; its fields are 'body'"),
    ],
)
def test_a_label_that_is_none_is_named(tmp_path: Path, line: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        prepare_data(labelled(tmp_path, {"body": "a", "topic": "x"}, line), store_of(job(tmp_path)))


def test_one_class_is_refused(tmp_path: Path) -> None:
    config = labelled(tmp_path, *({"body": f"text {i}", "topic": "x"} for i in range(60)))
    with pytest.raises(UserError, match=r"All texts have the same label \(x\)"):
        prepare_data(config, store_of(config))


def test_labels_of_which_hardly_any_occurs_twice_are_refused(tmp_path: Path) -> None:
    """The text itself, or a number of the row: each would be a class."""
    config = labelled(tmp_path, *({"body": f"text {i}", "topic": f"text {i}"} for i in range(200)))
    with pytest.raises(UserError, match=r"There are 200 classes for \d+ training texts: hardly any has a second case"):
        prepare_data(config, store_of(config))


def test_padding_does_not_change_what_an_encoder_says_of_a_text() -> None:
    model = Encoder(Transformer(layers=2, dim=32, heads=4, kv_heads=2), vocab_size=50, eos_id=0, num_classes=3).eval()
    init_weights(model, 1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(5)
        text = torch.randint(1, 50, (4, 9), generator=torch.Generator().manual_seed(1))
        text[:, 0] = 0
        padded = torch.cat([text, torch.zeros(4, 7, dtype=torch.int64)], dim=1)
        assert torch.allclose(model(padded), model(text), atol=1e-5)
        looks_both_ways = text.clone()
        looks_both_ways[:, -1] = 49
        assert not torch.allclose(model(looks_both_ways), model(text), atol=1e-2)


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (["10", "9", "-1"], ["-1", "9", "10"]),
        (["10", "9", "nine"], ["10", "9", "nine"]),
        (["01", "1", "001"], ["001", "01", "1"]),
        (["1", "--1"], ["--1", "1"]),
    ],
)
def test_classes_are_in_one_order_numbers_by_their_value(labels: list[str], classes: list[str]) -> None:
    assert Labels.of(labels, multi_label=False).classes == classes
