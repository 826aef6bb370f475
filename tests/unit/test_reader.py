"""Reading samples: the right tokens and pixels, verified, ahead of their use, and clear errors."""

import hashlib
import threading
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from trainingjob_trainer.config import Storage
from trainingjob_trainer.data.manifest import SPLITS, Manifest, Shard, SplitData
from trainingjob_trainer.data.reader import Reader, prefetch
from trainingjob_trainer.errors import DataError
from trainingjob_trainer.storage import LocalStore

LENGTH = 7


def shard(store: LocalStore, key: str, data: bytes, item_bytes: int) -> Shard:
    store.put(key, data)
    sha256 = hashlib.sha256(data).hexdigest()
    return Shard(key=key, size=len(data), sha256=sha256, count=len(data) // item_bytes, writer="w")


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(str(tmp_path), Storage())


@pytest.fixture
def tokens(store: LocalStore) -> Manifest:
    """100 tokens 0..99 in shards whose borders no sample respects."""
    cuts = [0, 10, 13, 14, 77, 100]
    shards = [
        shard(store, f"data/{i}.bin", np.arange(a, b, dtype="<u2").tobytes(), 2)
        for i, (a, b) in enumerate(pairwise(cuts))
    ]
    split = SplitData(shards=shards, documents=1, bytes=300)
    return Manifest(
        kind="tokens", dtype="uint16", splits=dict.fromkeys(SPLITS, split), vocab_size=100,
        tokenizer_digest="d", eos_id=0,
    )  # fmt: skip


@pytest.mark.parametrize("cache_bytes", [10**6, 0], ids=["cached", "ranged"])
def test_samples_are_windows_at_stride_sequence_length(store: LocalStore, tokens: Manifest, cache_bytes: int) -> None:
    reader = Reader(store, tokens, "train", LENGTH, cache_bytes)
    assert len(reader) == 99 // LENGTH
    batch = reader.read([3, 0, len(reader) - 1])
    starts = torch.tensor([3 * LENGTH, 0, 13 * LENGTH])[:, None]
    assert torch.equal(batch.inputs, starts + torch.arange(LENGTH))
    assert torch.equal(batch.targets, batch.inputs + 1)
    assert batch.inputs.dtype == batch.targets.dtype == torch.int64
    with pytest.raises(IndexError):
        reader.read([len(reader)])


def test_images_are_scaled_to_one_and_keep_their_label(store: LocalStore) -> None:
    pixels = np.arange(3 * 2 * 4, dtype=np.uint8).reshape(3, 2, 4)
    rows = b"".join((pixels + 100 * i).astype(np.uint8).tobytes() + np.int32(i).tobytes() for i in range(2))
    split = SplitData(shards=[shard(store, "data/i.bin", rows, 28)], documents=2, bytes=48)
    manifest = Manifest(
        kind="images", dtype="uint8", splits=dict.fromkeys(SPLITS, split), shape=(3, 2, 4), classes=["a", "b"]
    )
    batch = Reader(store, manifest, "test", LENGTH).read([1, 0])
    assert batch.targets.tolist() == [1, 0]
    assert batch.inputs.shape == (2, 3, 2, 4)
    assert torch.allclose(batch.inputs[1], torch.from_numpy(pixels) / 127.5 - 1)


@pytest.mark.parametrize("cache_bytes", [10**6, 0], ids=["cached", "ranged"])
def test_a_missing_shard_is_named(store: LocalStore, tokens: Manifest, cache_bytes: int) -> None:
    store.delete(["data/3.bin"])
    reader = Reader(store, tokens, "train", LENGTH, cache_bytes)
    assert reader.read([0]).inputs[0, 0] == 0
    with pytest.raises(DataError, match=r"data/3\.bin is missing"):
        reader.read([5])


def test_a_flipped_bit_is_found(store: LocalStore, tokens: Manifest) -> None:
    data = bytearray(store.get("data/3.bin"))
    data[17] ^= 1
    store.put("data/3.bin", bytes(data))
    with pytest.raises(DataError, match=r"data/3\.bin is corrupt"):
        Reader(store, tokens, "train", LENGTH).read([5])


def test_a_short_shard_is_found_without_reading_it_whole(store: LocalStore, tokens: Manifest) -> None:
    store.put("data/3.bin", store.get("data/3.bin")[:20])
    with pytest.raises(DataError, match=r"data/3\.bin is shorter"):
        Reader(store, tokens, "train", LENGTH, cache_bytes=0).read([9])


def test_a_token_outside_of_the_vocabulary_is_found(store: LocalStore, tokens: Manifest) -> None:
    small = tokens.model_copy(update={"vocab_size": 50})
    with pytest.raises(DataError, match="vocabulary ends at 50"):
        Reader(store, small, "train", LENGTH).read([10])


def test_prefetch_gives_the_batches_in_order_and_is_bounded(store: LocalStore, tokens: Manifest) -> None:
    reader = Reader(store, tokens, "train", LENGTH)
    asked: list[int] = []

    def batches() -> Iterator[list[int]]:
        for i in range(10):
            asked.append(i)
            yield [i]

    with prefetch(reader, batches(), depth=2) as read:
        first = next(read)
        assert first.inputs[0, 0] == 0
        assert len(asked) <= 1 + 2 + 2  # taken, waiting, being read and asked for
        assert [int(batch.inputs[0, 0]) for batch in read] == [i * LENGTH for i in range(1, 10)]


def test_prefetch_raises_where_the_error_belongs_and_ends_its_thread(store: LocalStore, tokens: Manifest) -> None:
    store.delete(["data/3.bin"])
    with prefetch(Reader(store, tokens, "train", LENGTH), [[0], [5], [0]]) as read:
        next(read)
        with pytest.raises(DataError, match="missing"):
            next(read)
    with prefetch(Reader(store, tokens, "train", LENGTH), ([0] for _ in range(10**9))) as read:
        next(read)
    assert "prefetch" not in {thread.name for thread in threading.enumerate()}
