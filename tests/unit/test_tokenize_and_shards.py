"""The tokenizer, the shards and the manifest that local preparation leaves."""

import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.corpus import digits, images
from support.training import job, store_of
from trainingjob_trainer.checkpoint.attempt import Attempt
from trainingjob_trainer.checkpoint.commits import Commit, encoding_of
from trainingjob_trainer.checkpoint.commits import publish as publish_commit
from trainingjob_trainer.checkpoint.state import Progress
from trainingjob_trainer.config import JobConfig
from trainingjob_trainer.data.manifest import HELD_OUT, Manifest, read_tokenizer
from trainingjob_trainer.data.reader import Reader
from trainingjob_trainer.errors import DataError, UserError
from trainingjob_trainer.evaluation.report import report_data
from trainingjob_trainer.prepare import tokenizer as bpe
from trainingjob_trainer.prepare.check import check
from trainingjob_trainer.prepare.encoders import TokenEncoder
from trainingjob_trainer.prepare.examples import Example, arrange, raw_objects, read_examples
from trainingjob_trainer.prepare.local import prepare_data
from trainingjob_trainer.prepare.shards import ENCODED_AT_ONCE, manifest_of, publish, write_shards
from trainingjob_trainer.storage import LocalStore, NotFound, Store

WORDS = ["alpha", "beta", "gamma", "delta", "<|endoftext|>", "naïve", "東京"]


def corpus(directory: Path, documents: int = 200, **changes: Any) -> JobConfig:
    """Random documents, some of them twice or thrice, and three that are too short."""
    random = np.random.default_rng(0)
    lines = [" ".join(random.choice(WORDS, size=30)) for _ in range(documents)]
    lines += [lines[0], lines[0], lines[1], f"{lines[2]}\r\n", "", " ", "\n"]
    directory.mkdir(exist_ok=True)
    (directory / "raw.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    data = {
        "train": {"uri": f"{directory}/raw.jsonl"},
        "validation": {"fraction": 0.2},
        "test": {"fraction": 0.2},
        "prepare": {"tokenizer": {"vocabSize": 300}},
    }
    return job(directory, data=data, **changes)


def decoded(store: Store, manifest: Manifest, split: Any) -> list[str]:
    data = b"".join(store.get(shard.key) for shard in manifest.splits[split].shards)
    tokenizer = bpe.load(store.get("data/tokenizer.json"))
    ids = np.frombuffer(data, dtype="<u2")
    ends = np.flatnonzero(ids == manifest.eos_id)
    starts = [0, *(int(end) + 1 for end in ends[:-1])]
    return [tokenizer.decode(ids[a:b].tolist()) for a, b in zip(starts, ends, strict=True)]


def test_the_stream_of_a_split_decodes_to_its_documents(tmp_path: Path) -> None:
    config = corpus(tmp_path)
    store = store_of(config)
    manifest = prepare_data(config, store)
    assert Manifest.model_validate_json(store.get("data/manifest.json")) == manifest
    examples = arrange((e for s, raw in raw_objects(config) for e in read_examples(config, s, raw)), config)
    for split, data in manifest.splits.items():
        expected = [e.payload.decode() for e in examples if e.split == split and not e.dropped]
        assert decoded(store, manifest, split) == expected
        assert data.documents == len(expected) > 10
        assert data.bytes == sum(len(text.encode()) for text in expected)
    assert manifest.vocab_size is not None
    assert manifest.vocab_size <= 300


def test_what_is_left_out_of_the_raw_data_is_counted_and_told(tmp_path: Path) -> None:
    config = corpus(tmp_path)
    store = store_of(config)
    manifest = prepare_data(config, store)
    assert (manifest.dropped, manifest.duplicates) == (3, 4)
    assert sum(data.documents for data in manifest.splits.values()) == 200
    told = report_data(config, manifest, Progress(), 1, {}, Attempt(1, store))["data"]
    assert (told["dropped"], told["duplicates"]) == (3, 4)
    for split, data in manifest.splits.items():
        reader = Reader(store, manifest, split, 16)
        seen = int(reader.read([len(reader) - 1]).inputs.numel()) * len(reader) + 1  # the last target is no input
        assert told["splits"][split]["unused"] == data.count - seen
        assert 0 <= data.count - seen < 16
    samples, tail = manifest.num_samples("train", 16), manifest.tail("train", 16)
    left_out = f"left out: 3 documents dropped, 4 duplicates, {tail:,} tokens at the end"
    validation, test = (manifest.num_samples(split, 16) for split in HELD_OUT)
    counts = f"{samples:,} training, {validation:,} validation and {test:,} test samples"
    counts += f" in a vocabulary of {manifest.vocab_size}"
    assert check(config, store).message == f"The data is ready: {counts} ({left_out})."
    assert manifest.tail("train", 10**6) == manifest.splits["train"].count


def test_duplicates_are_kept_where_that_is_asked_for(tmp_path: Path) -> None:
    config = corpus(tmp_path)
    clean = {"prepare": {"tokenizer": {"vocabSize": 300}, "clean": {"deduplicate": False, "minChars": 2}}}
    manifest = prepare_data(job(tmp_path, data={**config.data.wire(), **clean}), store_of(config))
    assert (manifest.dropped, manifest.duplicates) == (3, 0)
    assert sum(data.documents for data in manifest.splits.values()) == 204


def test_the_tokenizer_sees_training_documents_only(tmp_path: Path) -> None:
    held_out = tmp_path / "held-out.jsonl"
    held_out.write_text(json.dumps({"text": "xylophone " * 20_000}) + "\n")
    config = corpus(tmp_path)
    data = {**config.data.wire(), "validation": {"uri": str(held_out)}, "test": {"uri": str(held_out)}}
    apart = job(tmp_path, data={**data, "test": {"fraction": 0.2}})
    prepare_data(apart, store_of(apart))
    vocabulary = bpe.load(store_of(apart).get("data/tokenizer.json")).get_vocab()
    assert any("alpha" in token for token in vocabulary)
    assert not any("xy" in token for token in vocabulary)


@given(st.text())
def test_every_text_survives_the_tokenizer(text: str) -> None:
    tokenizer = bpe.load(STORED)
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(ids) == text
    assert bpe.EOS_ID not in ids


STORED = bpe.to_json(bpe.train_bpe([b"some text to learn from " * 20], 280))


def test_the_stream_does_not_depend_on_how_many_wrote_it(tmp_path: Path) -> None:
    config = corpus(tmp_path / "one")
    store = store_of(config)
    one = prepare_data(config, store)
    examples = arrange((e for s, raw in raw_objects(config) for e in read_examples(config, s, raw)), config)
    encoder = TokenEncoder(store.get("data/tokenizer.json"), "uint16", bpe.EOS_ID)
    cuts = [0, 30, 31, 120, len(examples)]
    parts = [
        write_shards(store, examples[a:b], encoder, f"pod-{i % 2}", shard_bytes=400)
        for i, (a, b) in enumerate(pairwise(cuts))
    ]
    many = manifest_of(config, reversed(parts), encoder)
    assert (many.dropped, many.duplicates) == (one.dropped, one.duplicates) == (3, 4)
    keys = [shard.key for data in many.splits.values() for shard in data.shards]
    assert len(keys) == len(set(keys)) > 20
    for split in many.splits:
        assert decoded(store, many, split) == decoded(store, one, split)
        assert many.splits[split].count == one.splits[split].count


@pytest.mark.parametrize("documents", [1, 9, 10, 14, 15, 24, 25, 40])
def test_a_writer_leaves_no_small_rest(tmp_path: Path, documents: int) -> None:
    """Ten documents of eight tokens fill a shard; a rest of less than half of one is in the shard before."""
    store = store_of(job(tmp_path))
    encoder = TokenEncoder(STORED, "uint16", bpe.EOS_ID)
    examples = [Example(f"{number:064}", "train", b"abcdefg") for number in range(documents)]
    [each] = {len(encoded) for encoded in encoder.encode(examples)}
    shards = write_shards(store, examples, encoder, "pod", shard_bytes=10 * each).splits["train"].shards
    full = max(1, (documents + 5) // 10)
    assert [shard.documents for shard in shards] == [10] * (full - 1) + [documents - 10 * (full - 1)]
    assert [shard.size for shard in shards] == [each * shard.documents for shard in shards]
    stored = b"".join(store.get(shard.key) for shard in shards)
    assert stored == b"".join(encoder.encode(examples))


def test_a_shard_holds_no_more_than_it_is_to_hold(tmp_path: Path) -> None:
    """Else its last document, of which no part fits, would be a small range of its own to read. One that is too large
    by itself is a shard; the last one has the small rest."""
    encoder = TokenEncoder(STORED, "uint16", bpe.EOS_ID)
    examples = [Example(f"{number:064}", "train", b"a" * (number % 41)) for number in range(200)]
    examples[100] = Example(examples[100].key, "train", b"a" * 2000)
    sizes = [len(encoded) for encoded in encoder.encode(examples)]
    shards = write_shards(store_of(job(tmp_path)), examples, encoder, "pod", shard_bytes=800).splits["train"].shards
    [large] = [place for place, shard in enumerate(shards) if shard.size == sizes[100]]
    for shard in [*shards[: large - 1], *shards[large + 1 : -1]]:
        assert 800 - max(sizes[:41]) < shard.size <= 800
    assert shards[large - 1].size <= 800
    assert shards[-1].size <= 1200


def test_a_writer_takes_documents_as_it_writes_them(tmp_path: Path) -> None:
    store, taken = store_of(job(tmp_path)), 0

    def examples() -> Iterator[Example]:
        nonlocal taken
        for number in range(10 * ENCODED_AT_ONCE):
            taken += 1
            yield Example(f"{number:064}", "train", b"abcdefg")

    class Watched(LocalStore):
        def put(self, key: str, data: bytes, **more: Any) -> str:
            written.append(taken)
            return super().put(key, data, **more)

    written: list[int] = []
    encoder = TokenEncoder(STORED, "uint16", bpe.EOS_ID)
    write_shards(Watched(store.root, store.storage), examples(), encoder, "pod", shard_bytes=1000)
    assert written[0] == ENCODED_AT_ONCE
    assert written[-1] == taken


def test_preparing_again_gives_the_same_data_and_the_first_manifest_stands(tmp_path: Path) -> None:
    config = corpus(tmp_path)
    store = store_of(config)
    first = prepare_data(config, store)
    assert prepare_data(config, store) == first
    moved = first.model_copy(update={"identity_hash": "another run"})
    store.put("data/manifest.json", moved.to_json())
    assert publish(config, store, first) == first
    assert Manifest.model_validate_json(store.get("data/manifest.json")) == first


def test_no_manifest_is_written_for_data_that_is_too_small(tmp_path: Path) -> None:
    config = corpus(tmp_path, globalBatchSize=5000)
    with pytest.raises(UserError, match=r"globalBatchSize is 5000, but the training split has only \d+ samples"):
        prepare_data(config, store_of(config))
    short = corpus(tmp_path, sequenceLength=4096)
    with pytest.raises(UserError, match="a sample takes 4097") as held_out:
        prepare_data(short, store_of(short))
    assert held_out.value.next_step.startswith("Raise spec.data.validation.fraction, give more data, or lower")
    shorter = corpus(tmp_path, sequenceLength=99_999)
    with pytest.raises(UserError, match="a sample takes 100000") as whole:
        prepare_data(shorter, store_of(shorter))
    assert whole.value.next_step == "Give more data, or lower spec.training.sequenceLength."
    with pytest.raises(NotFound):
        store_of(config).get("data/manifest.json")


def test_data_that_is_prepared_again_means_what_the_checkpoints_have_learnt(tmp_path: Path) -> None:
    """Other documents make another tokenizer of the same size: the model would go on without an error, and in vain."""
    config = corpus(tmp_path)
    store = store_of(config)
    manifest = prepare_data(config, store)
    attempt = Attempt.take(store, 0)
    learnt = Commit(step=5, attempt=1, world_size=1, identity_hash="", encoding=encoding_of(manifest), objects=[])
    publish_commit(learnt, attempt)
    store.delete(["data/manifest.json"])
    assert prepare_data(config, store) == manifest

    store.delete(["data/manifest.json"])
    raw = tmp_path / "raw.jsonl"
    raw.write_text(raw.read_text().replace("alpha", "omega"))
    with pytest.raises(UserError, match=r"checkpoint of step 5 in .* was trained on data with another tokenizer"):
        prepare_data(config, store)
    read_tokenizer(manifest, store)  # not overwritten


def test_an_empty_source_is_a_data_error(tmp_path: Path) -> None:
    config = corpus(tmp_path)
    (tmp_path / "raw.jsonl").write_text('{"text": " "}\n')
    with pytest.raises(DataError, match="Nothing is left"):
        prepare_data(config, store_of(config))


def test_images_become_rows_with_their_labels(tmp_path: Path) -> None:
    from sklearn.datasets import load_digits

    config = images(tmp_path, digits())
    manifest = prepare_data(config, store_of(config))
    assert manifest.shape == (1, 8, 8)
    assert manifest.classes == [str(digit) for digit in range(10)]
    bunch = load_digits()
    known = {
        (pixels * 15.9375).astype(np.uint8).tobytes(): label
        for pixels, label in zip(bunch.images, bunch.target, strict=True)
    }
    total = 0
    for split in manifest.splits:
        reader = Reader(store_of(config), manifest, split, 8)
        batch = reader.read(range(len(reader)))
        total += len(reader)
        for image, label in zip(batch.inputs.numpy(), batch.targets.tolist(), strict=True):
            assert known[((image + 1) * 127.5).round().astype(np.uint8).tobytes()] == label
    assert total == 1797


def test_images_of_two_shapes_are_refused(tmp_path: Path) -> None:
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image

    def png(side: int) -> bytes:
        out = io.BytesIO()
        Image.fromarray(np.zeros((side, 8), dtype=np.uint8)).save(out, "PNG")
        return out.getvalue()

    parquet = io.BytesIO()
    pq.write_table(pa.table({"image": [png(8), png(9)], "label": [0, 1]}), parquet)
    config = images(tmp_path, parquet.getvalue())
    with pytest.raises(DataError, match=r"must have one shape .* found 1x8x8 and 1x9x8"):
        prepare_data(config, store_of(config))
