"""Reading samples: the right tokens and pixels, verified, and clear errors."""

from itertools import pairwise, permutations
from pathlib import Path

import numpy as np
import pytest
import torch
from trainingjob_trainer.config import Storage
from trainingjob_trainer.data import stream
from trainingjob_trainer.data.manifest import PIECE_BYTES, SPLITS, Manifest, Shard, SplitData, checksums
from trainingjob_trainer.data.reader import IGNORE, Memory, Reader
from trainingjob_trainer.errors import DataError
from trainingjob_trainer.storage import LocalStore

LENGTH = 7


def shard(store: LocalStore, key: str, data: bytes, item_bytes: int) -> Shard:
    store.put(key, data)
    return Shard.of(key, data, len(data) // item_bytes, 1, "w")


def rooms(reader: Reader) -> Memory:
    """Memory for all blocks."""
    return np.empty((reader.blocks.count, reader.block_bytes), np.uint8)


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


def test_samples_are_windows_at_stride_sequence_length(store: LocalStore, tokens: Manifest) -> None:
    reader = Reader(store, tokens, "train", LENGTH)
    assert len(reader) == 99 // LENGTH
    stored = reader.read([3, 0, len(reader) - 1])
    assert stored.inputs.dtype == torch.uint16
    batch = stored.to(torch.device("cpu"))
    starts = torch.tensor([3 * LENGTH, 0, 13 * LENGTH])[:, None]
    assert torch.equal(batch.inputs, starts + torch.arange(LENGTH))
    assert torch.equal(batch.targets, batch.inputs + 1)
    for outside in (len(reader), -1):
        with pytest.raises(IndexError):
            reader.read([outside])


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("block_bytes", [8, 36, 60, 1000])
def test_blocks_give_their_samples_whichever_is_read_first(
    store: LocalStore, tokens: Manifest, backwards: bool, block_bytes: int
) -> None:
    """Windows of 2, 9, 15 and 250 tokens: samples end in the next window, in the next shard, or span several."""
    reader = Reader(store, tokens, "train", LENGTH, block_bytes=block_bytes)
    for _ in range(2):
        memory = rooms(reader)
        loaded = {n: reader.load(n, memory, n) for n in sorted(range(len(memory)), reverse=backwards)}
        batch = reader.assemble(range(len(reader)), loaded, memory)
        assert torch.equal(batch.inputs.int(), torch.arange(len(reader))[:, None] * LENGTH + torch.arange(LENGTH))
        assert torch.equal(batch.targets.int(), batch.inputs.int() + 1)


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


def test_a_missing_shard_is_named_where_its_samples_are_read(store: LocalStore, tokens: Manifest) -> None:
    store.delete(["data/3.bin"])
    reader = Reader(store, tokens, "train", LENGTH)
    assert reader.read([0, 11]).inputs[:, 0].tolist() == [0, 77]
    with pytest.raises(DataError, match=r"data/3\.bin is missing"):
        reader.read([5])


def test_a_short_shard_is_found(store: LocalStore, tokens: Manifest) -> None:
    store.put("data/3.bin", store.get("data/3.bin")[:20])
    with pytest.raises(DataError, match=r"data/3\.bin is shorter"):
        Reader(store, tokens, "train", LENGTH).read([9])


def test_a_shard_that_is_replaced_while_it_is_read_is_found(store: LocalStore, tokens: Manifest) -> None:
    reader = Reader(store, tokens, "train", LENGTH)
    reader.read([5])
    store.put("data/3.bin", store.get("data/3.bin"))
    with pytest.raises(DataError, match=r"data/3\.bin was replaced while it was read"):
        reader.read([5])


def flip_a_bit(store: LocalStore, key: str, at: int) -> None:
    data = bytearray(store.get(key))
    data[at] ^= 1
    store.put(key, bytes(data))


@pytest.fixture
def pieces(store: LocalStore) -> Manifest:
    """One shard of three pieces and a half; samples of a piece and a bit."""
    data = np.arange(7 * PIECE_BYTES // 4, dtype="<u2").tobytes()
    split = SplitData(shards=[shard(store, "data/0.bin", data, 2)], documents=1, bytes=1)
    return Manifest(
        kind="tokens", dtype="uint16", splits=dict.fromkeys(SPLITS, split), vocab_size=2**16,
        tokenizer_digest="d", eos_id=0,
    )  # fmt: skip


def test_a_flipped_bit_is_found_in_its_own_piece_only(store: LocalStore, pieces: Manifest) -> None:
    flip_a_bit(store, "data/0.bin", 2 * PIECE_BYTES + 17)
    reader = Reader(store, pieces, "train", 1024)
    corrupt = 2 * PIECE_BYTES // 2048  # the sample that begins with the piece; the one before has its first token
    reader.read([0, corrupt - 2, corrupt + PIECE_BYTES // 2048])
    for sample in (corrupt - 1, corrupt, corrupt + PIECE_BYTES // 2048 - 1):
        with pytest.raises(DataError, match=r"data/0\.bin is corrupt"):
            reader.read([sample])


def test_what_went_wrong_on_the_way_is_read_again(store: LocalStore, pieces: Manifest) -> None:
    class Noisy(LocalStore):
        reads = 0

        def read_into(self, key: str, start: int, into: memoryview, *, if_match: str | None = None) -> tuple[int, str]:
            found = super().read_into(key, start, into, if_match=if_match)
            Noisy.reads += 1
            if Noisy.reads == 1:
                into[:] = bytes(len(into))
            return found

    expected = Reader(store, pieces, "train", 1024).read([3])
    noisy = Reader(Noisy(store.root, store.storage), pieces, "train", 1024)
    assert torch.equal(noisy.read([3]).inputs, expected.inputs)
    assert Noisy.reads == 2


def test_a_block_is_read_as_its_window_and_edges_of_its_neighbours_by_themselves_where_they_are_not_known(
    store: LocalStore, pieces: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Recording(LocalStore):
        def read_into(self, key: str, start: int, into: memoryview, *, if_match: str | None = None) -> tuple[int, str]:
            reads.append(start // PIECE_BYTES)
            return super().read_into(key, start, into, if_match=if_match)

    def reads_of(*blocks: int) -> list[int]:
        reads.clear()
        reader = Reader(Recording(store.root, store.storage), pieces, "train", 1024, block_bytes=2 * PIECE_BYTES)
        assert reader.blocks.offsets[:4].tolist() == [0, PIECE_BYTES, 2 * PIECE_BYTES, 3 * PIECE_BYTES]
        for block in blocks:
            reader.load(block, rooms(reader), block)
        return list(reads)

    reads: list[int] = []
    assert reads_of(3, 1, 0, 2) == [3, 1, 0, 2]
    assert reads_of(2, 0) == [2, 1, 3, 0, 1]
    assert reads_of(1, 2) == [1, 2, 3]
    monkeypatch.setattr("trainingjob_trainer.data.reader.EDGES", 1)  # there is room for none
    assert reads_of(1, 0) == [1, 0, 1]


def test_every_byte_is_checked_once(store: LocalStore, pieces: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[int] = []

    def counted(data: memoryview) -> str:
        checked.append(len(data))
        return checksums(data)

    monkeypatch.setattr(stream, "checksums", counted)
    Reader(store, pieces, "train", 1024).load_all([0])
    assert sum(checked) == pieces.splits["train"].shards[0].size


def test_corrupt_tokens_that_are_skipped_are_in_no_vocabulary(store: LocalStore, tokens: Manifest) -> None:
    data = bytearray(store.get("data/3.bin"))
    data[1] = 0xFF
    store.put("data/3.bin", bytes(data))
    batch = Reader(store, tokens, "train", LENGTH, skip_corrupt=True).read([0, 5])
    assert batch.skipped == 1
    assert int(batch.inputs[1].int().max()) < 100
    assert (batch.targets[1] == IGNORE).all()


def test_a_corrupt_window_spoils_the_samples_that_it_shares_with_its_neighbours(
    store: LocalStore, pieces: Manifest
) -> None:
    """Whichever of the three blocks is read first."""
    flip_a_bit(store, "data/0.bin", PIECE_BYTES)
    for order in permutations(range(3)):
        reader = Reader(store, pieces, "train", 1024, skip_corrupt=True, block_bytes=2 * PIECE_BYTES)
        memory = rooms(reader)
        blocks = {block: reader.load(block, memory, block) for block in order}
        of_window = PIECE_BYTES // 2048
        begin, end = of_window - 1, 2 * of_window - 1  # its samples, that which ends in it and that which begins in it
        batch = reader.assemble([begin - 1, begin, begin + 1, end, end + 1], blocks, memory)
        assert (batch.targets == IGNORE).all(dim=1).tolist() == [False, True, True, True, False]


def test_corrupt_samples_are_skipped_and_counted_where_that_is_asked_for(
    store: LocalStore, pieces: Manifest, caplog: pytest.LogCaptureFixture
) -> None:
    """What is wrong with a shard is logged once: a lost one has thousands of samples."""
    flip_a_bit(store, "data/0.bin", 17)
    reader = Reader(store, pieces, "train", 1024, skip_corrupt=True)
    batch = reader.read([0, 200, 1]).to(torch.device("cpu"))
    assert batch.skipped == 2
    assert (batch.targets == IGNORE).all(dim=1).tolist() == [True, False, True]
    assert torch.equal(batch.targets[1], torch.arange(200 * 1024 + 1, 201 * 1024 + 1) % 2**16)
    assert reader.read([2]).skipped == 1
    store.delete(["data/0.bin"])
    assert reader.read([200, 1]).skipped == 2
    corrupt, missing = caplog.messages
    assert corrupt.startswith("samples of split train are skipped, sample 0 first: The data shard")
    assert "0.bin is missing" in missing
