"""Batches ahead of their use: in order, within their memory, each block read once, errors where they belong."""

import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.runs import wait_until
from trainingjob_trainer.config import Storage
from trainingjob_trainer.data import prefetch as prefetch_module
from trainingjob_trainer.data.manifest import SPLITS, Manifest, Shard, SplitData
from trainingjob_trainer.data.order import Order
from trainingjob_trainer.data.prefetch import AHEAD, READY, TOGETHER, TRAY, TRAY_BYTES, prefetch
from trainingjob_trainer.data.reader import Batch, Bools, Loaded, Memory, Reader, Rows
from trainingjob_trainer.errors import DataError
from trainingjob_trainer.storage import LocalStore

LENGTH, SHARD = 32, 3000


class Counting(Reader):
    """Counts how often each block is loaded, and the rooms that blocks were loaded into."""

    loads: Counter[int]
    rooms = 0

    def load(self, block: int, memory: Memory, room: int) -> Loaded:
        self.loads[block] += 1
        self.rooms = max(self.rooms, len(memory))
        return super().load(block, memory, room)


@pytest.fixture
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Counting:
    """20 shards, 1874 samples in blocks of 512 bytes."""
    store = LocalStore(str(tmp_path), Storage())
    shards = []
    for i in range(20):
        data = np.arange(i * SHARD, (i + 1) * SHARD, dtype="<u2").tobytes()
        store.put(f"data/{i}.bin", data)
        shards.append(Shard.of(f"data/{i}.bin", data, SHARD, 1, "w"))
    split = SplitData(shards=shards, documents=20, bytes=1)
    manifest = Manifest(
        kind="tokens", dtype="uint16", splits=dict.fromkeys(SPLITS, split), vocab_size=2**16,
        tokenizer_digest="d", eos_id=0,
    )  # fmt: skip
    reader = Counting(store, manifest, "train", LENGTH, block_bytes=512)
    reader.loads = Counter()
    assert reader.blocks.groups > 3
    return reader


def firsts(samples: list[int]) -> list[int]:
    return [sample * LENGTH for sample in samples]


def test_the_batches_come_in_order_and_each_block_is_read_once_a_group(reader: Counting) -> None:
    shuffled = Order(reader.blocks, seed=1)
    everything = shuffled.indices(np.arange(len(reader)))
    batches = [sorted(everything[i : i + 16].tolist()) for i in range(0, len(reader), 16)]
    memory = 2 * reader.blocks.strata * reader.block_bytes
    assert 2 * reader.blocks.strata < reader.blocks.count / 2
    with prefetch(reader, batches, memory=memory) as read:
        for batch, samples in zip(read, batches, strict=True):
            assert batch.inputs[:, 0].tolist() == firsts(samples)
    assert set(reader.loads.values()) == {1}
    assert len(reader.loads) == reader.blocks.count


def test_reading_ahead_is_bounded_by_its_memory(reader: Counting) -> None:
    in_order = ([i] for i in range(len(reader)))
    with prefetch(reader, in_order, memory=4 * reader.block_bytes) as read:
        next(read)
        samples_a_block = len(reader) // reader.blocks.count
        for _ in range(10 * samples_a_block):
            next(read)
        ready = (READY + 1) * TRAY // samples_a_block
        assert max(reader.loads) <= 10 + ready + 4  # handed out, ready or being put together, read ahead
    assert reader.rooms == 4


def test_the_next_blocks_are_read_while_a_batch_is_used(reader: Counting) -> None:
    """Nobody asks for the second batch; its block is there all the same, and more than those of the batches ready."""
    of_each_block = [[reader.blocks.bounds(block)[0]] for block in range(reader.blocks.count)]
    with prefetch(reader, of_each_block, memory=8 * reader.block_bytes) as read:
        next(read)
        wait_until("blocks that are read ahead", lambda: len(reader.loads) > READY * TRAY + 1, every=0.01)


@pytest.mark.parametrize("at_once", [1, TRAY])
def test_batches_are_ready_by_the_tray_and_no_more_are_made_until_one_is_empty(
    reader: Counting, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    """Where a batch has as many bytes as a tray, by the batch."""
    monkeypatch.setattr(prefetch_module, "TRAY_BYTES", 1 if at_once == 1 else TRAY_BYTES)
    made, taken, too_early = 0, 0, list[tuple[int, int]]()

    def batch(rows: Rows, skipped: Bools) -> Batch:
        nonlocal made
        made += 1
        if made > (taken // at_once + READY) * at_once + 1:  # one is made before it is seen that there is no tray
            too_early.append((made, taken))
        return Counting.batch(reader, rows, skipped)

    monkeypatch.setattr(reader, "batch", batch)
    with prefetch(reader, [[i % 9] for i in range(1000)]) as read:
        wait_until("batches that are ready", lambda: made > READY * at_once, every=0.01)
        for number in range(1000):
            taken = number + 1
            next(read)
    assert not too_early


def test_of_a_batch_that_does_not_fit_in_as_much_is_read_as_there_is_room_for(
    reader: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefetch_module, "TRAY_BYTES", 1)
    groups = [[reader.blocks.bounds(block)[0] for block in range(first, first + 4)] for first in (0, 4)]
    batches = [groups[0]] * 8 + [groups[1]] * 8
    with prefetch(reader, batches, memory=6 * reader.block_bytes) as read:
        next(read)
        wait_until("blocks in all rooms", lambda: len(reader.loads) == 6, every=0.01)
        assert [batch.inputs[:, 0].tolist() for batch in read] == [firsts(batch) for batch in batches[1:]]
    assert set(reader.loads.values()) == {1}


def test_while_a_batch_is_being_read_blocks_are_asked_for_however_far_ahead(
    reader: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(block: int, memory: Memory, room: int) -> Loaded:
        if block == 0:
            wait_until("the other block to be asked for", lambda: 1 in reader.loads, every=0.01)
        return Counting.load(reader, block, memory, room)

    monkeypatch.setattr(reader, "load", load)
    batches = [[reader.blocks.bounds(block)[0]] for block in [0] * 3 * TOGETHER + [1]]
    with prefetch(reader, batches, memory=8 * reader.block_bytes) as read:
        assert len(list(read)) == len(batches)


def test_the_first_batch_does_not_wait_for_those_far_ahead(reader: Counting, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    loads: list[Future[Loaded]] = []

    class Pool(ThreadPoolExecutor):
        def submit(self, *args: Any, **more: Any) -> Any:
            loads.append(super().submit(*args, **more))
            return loads[-1]

    monkeypatch.setattr(prefetch_module, "ThreadPoolExecutor", Pool)

    def batches() -> Iterator[list[int]]:
        for i in range(10**9):
            asked.append(i)
            if i == 1:  # as long as the first one's block is being read, others are asked for
                wait_until("the block", lambda: loads[0].done(), every=0.01)
            yield [0]

    with prefetch(reader, batches()) as read:
        assert int(next(read).inputs[0, 0]) == 0
        assert len(asked) <= (READY + 8) * TOGETHER  # when all trays are full
        for _ in range(2000):
            next(read)
        assert len(asked) <= 2000 + (AHEAD + 2) * TOGETHER + (READY + 1) * TRAY
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("prefetch")]


def test_a_batch_larger_than_the_memory_is_read_all_the_same(reader: Counting) -> None:
    everything = list(range(len(reader)))
    with prefetch(reader, [[0], everything, everything[::-1]], memory=1) as read:
        assert next(read).inputs[:, 0].tolist() == [0]
        assert next(read).inputs[:, 0].tolist() == firsts(everything)
        assert next(read).inputs[:, 0].tolist() == firsts(everything[::-1])


@pytest.mark.parametrize("rooms", [1, 7])
def test_a_batch_for_whose_blocks_there_is_no_room_is_put_together_in_parts(reader: Counting, rooms: int) -> None:
    """As one that lies across two groups: the memory stays what it is, and of the others no batch is split."""
    random = np.random.default_rng(0)
    batches = [sorted(random.choice(len(reader), 40, replace=False).tolist()) for _ in range(3)] + [[5], [6, 7]]
    needed = min(len(reader.blocks_of(batch)) for batch in batches[:3])
    with prefetch(reader, batches, memory=rooms * reader.block_bytes) as read:
        assert [batch.inputs[:, 0].tolist() for batch in read] == [firsts(batch) for batch in batches]
    assert reader.rooms == rooms < needed


def test_a_batch_across_two_groups_takes_no_more_memory_than_there_is(reader: Counting) -> None:
    """For both groups at once there is not quite room, as with 576 MiB for some sizes of data."""
    everything = Order(reader.blocks, seed=1).indices(np.arange(len(reader)))
    batches = [np.sort(everything[i : i + 200]) for i in range(0, len(reader), 200)]
    rooms = max(len(reader.blocks_of(batch)) for batch in batches) - 3
    assert reader.blocks.strata < rooms
    with prefetch(reader, batches, memory=rooms * reader.block_bytes) as read:
        for batch, samples in zip(read, batches, strict=True):
            assert batch.inputs[:, 0].tolist() == firsts(samples.tolist())
    assert reader.rooms == rooms


def test_an_error_is_raised_where_it_belongs(reader: Counting) -> None:
    reader._stream._store.delete(["data/10.bin"])
    lost = 10 * SHARD // LENGTH + 1
    with prefetch(reader, [[0], [1], [lost], [2]]) as read:
        assert torch.equal(next(read).inputs[0].long(), torch.arange(LENGTH))
        next(read)
        with pytest.raises(DataError, match=r"data/10\.bin is missing"):
            next(read)
