"""Batches ahead of their use: a thread puts them together, and ranged reads fetch the blocks of those to come."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from queue import SimpleQueue
from typing import Protocol

import numpy as np

from trainingjob_trainer.data.order import Ints
from trainingjob_trainer.data.reader import Batch, Bools, Indices, Loaded, Memory, Rows
from trainingjob_trainer.errors import TrainerError

# Bytes of blocks, about two groups of them: those of the batches to come, and as many used ones as fit beside them.
# `accounting.PREFETCH` counts as much.
MEMORY = 576 * 2**20
READS_AT_ONCE = 8
TOGETHER = 16  # batches for which all is reckoned at once
# Batches that are ready lie in trays, at most so many in each, and so many bytes. The thread goes on when a tray is
# empty, and not at each batch: to be woken up takes Python's lock away from the loop, which shows in small steps.
READY = 2  # trays
TRAY, TRAY_BYTES = 16, 4 * 2**20
SHARE = 0.75  # of the memory's rooms: they need no more blocks, so that others are read meanwhile
AHEAD = 64  # times as many batches, whose blocks are asked for
# By how many times that grows with each that is handed out, and as long as its blocks are being read: the first batches
# don't wait for it, and of the next group as much is being read as there is room for.
GROWTH = 2

Change = Callable[[Rows, Indices], None]  # makes of samples as they are stored those of their draws, in place
_Part = tuple[Rows, Bools]  # samples as they are stored, and which of them are skipped


class Reads(Protocol):
    """Samples that are put together from blocks: a `Reader`, or a `MixedReader`."""

    def __len__(self) -> int: ...

    @property
    def block_bytes(self) -> int: ...

    def blocks_of(self, indices: Indices) -> Set[int]: ...

    def load(self, block: int, memory: Memory, room: int) -> Loaded: ...

    def find(self, indices: Indices, blocks: Mapping[int, Loaded]) -> tuple[Ints, Bools]: ...

    def gather(self, begins: Ints, memory: Memory) -> Rows: ...

    def batch(self, rows: Rows, skipped: Bools) -> Batch: ...


def unchanged(rows: Rows, draws: Indices) -> None:
    """Every draw of a sample is the sample as it is stored."""


@contextmanager
def prefetch(
    reader: Reads,
    batches: Iterable[Indices],
    *,
    memory: int = MEMORY,
    pin: bool = False,
    change: Change = unchanged,
) -> Iterator[Iterator[Batch]]:
    """An iterator over what `reader` puts together of each batch's samples, read ahead within `memory` bytes.

    batches: draws (see `Order.draws`); of the first epoch they are samples. An error is raised at the batch that it
    belongs to. `pin`: in page-locked memory. The threads end with the context.
    """
    ready: SimpleQueue[tuple[Batch | Exception | None, bool]] = SimpleQueue()  # and whether it is a tray's last
    trays: SimpleQueue[None] = SimpleQueue()  # that are empty
    stopped = threading.Event()

    def work() -> None:
        room = 0
        try:
            for batch in _read_ahead(reader, batches, change, pool, memory):
                if room <= 0:
                    trays.get()
                    room = TRAY_BYTES
                if stopped.is_set():
                    return
                room -= max(batch.inputs.nbytes, TRAY_BYTES // TRAY)
                ready.put((batch.pin() if pin else batch, room <= 0))
            ready.put((None, True))
        except Exception as error:  # whatever it is, it is the consumer's to handle
            ready.put((error, True))

    def results() -> Iterator[Batch]:
        while True:
            item, is_last = ready.get()
            if is_last:
                trays.put(None)
            if item is None:
                return
            if isinstance(item, Exception):
                raise item
            yield item

    for _ in range(READY):
        trays.put(None)
    pool = ThreadPoolExecutor(READS_AT_ONCE, thread_name_prefix="prefetch")
    thread = threading.Thread(target=work, name="prefetch", daemon=True)
    thread.start()
    try:
        yield results()
    finally:
        stopped.set()
        trays.put(None)
        pool.shutdown(wait=False, cancel_futures=True)
        thread.join()
        pool.shutdown()


def _read_ahead(
    reader: Reads, batches: Iterable[Indices], change: Change, pool: ThreadPoolExecutor, memory: int
) -> Iterator[Batch]:
    blocks = _Blocks(reader, pool, memory)
    coming = _together(reader, iter(batches), blocks)
    ahead: deque[_Some] = deque()
    parts: list[_Part] = []  # of the batch that is being put together
    next_ones = next(coming, None)
    while next_ones or ahead:
        growth = 0
        while next_ones and len(ahead) < AHEAD and (growth < GROWTH or blocks.being_read(ahead[0].blocks)):
            if not blocks.want(next_ones.blocks):
                break
            ahead.append(next_ones)
            next_ones = next(coming, None)
            growth += 1
        some = ahead.popleft()
        for draws, (begins, skipped) in zip(some.batches, _found(reader, some, blocks), strict=True):
            rows = reader.gather(begins, blocks.memory)
            change(rows, draws)
            parts.append((rows, skipped))
            if not some.goes_on:
                yield reader.batch(*(parts.pop() if len(parts) == 1 else _joined(parts)))
        blocks.release()


def _joined(parts: list[_Part]) -> _Part:
    """All parts, which are taken out of the list."""
    rows, skipped = zip(*parts, strict=True)
    parts.clear()
    return np.concatenate(rows), np.concatenate(skipped)


class _Some:
    """Batches that follow each other: what is reckoned for all of them at once costs as much as for each by itself.

    Or a part of one, which goes on with the next part: of a batch for whose blocks there are not enough rooms.
    """

    def __init__(self, reader: Reads, batches: Sequence[Indices], goes_on: bool = False) -> None:
        self._reader, self.batches, self.goes_on = reader, batches, goes_on
        self.samples = np.concatenate([np.asarray(batch, np.int64) for batch in batches]) % len(reader)
        self.blocks = reader.blocks_of(self.samples)

    def halves(self) -> Iterator[_Some]:
        if len(self.batches) == 1:
            [rows] = self.batches
            middle = len(rows) // 2
            yield _Some(self._reader, [rows[:middle]], goes_on=True)
            yield _Some(self._reader, [rows[middle:]], self.goes_on)
            return
        middle = len(self.batches) // 2
        yield _Some(self._reader, self.batches[:middle])
        yield _Some(self._reader, self.batches[middle:])


def _together(reader: Reads, batches: Iterator[Indices], blocks: _Blocks) -> Iterator[_Some]:
    """One batch, then more at once, so that the first one does not wait; fewer where they need too many blocks."""
    size = 1
    while some := list(islice(batches, size)):
        yield from _fitting(_Some(reader, some), blocks)
        size = min(2 * size, TOGETHER)


def _fitting(some: _Some, blocks: _Blocks) -> Iterator[_Some]:
    share = SHARE if len(some.batches) > 1 else 1.0
    if len(some.blocks) <= max(1, share * len(blocks.memory)):  # one sample needs one
        yield some
        return
    for half in some.halves():
        yield from _fitting(half, blocks)


def _found(reader: Reads, some: _Some, blocks: _Blocks) -> Iterator[tuple[Ints, Bools]]:
    """Of each batch, or of the part of one, where its samples begin in the memory, and which are skipped."""
    try:
        begins, skipped = reader.find(some.samples, blocks.wait_for(some.blocks))
    except TrainerError:
        if len(some.batches) == 1:
            raise
        for half in some.halves():  # the batches before the one that it belongs to are given
            yield from _found(reader, half, blocks)
        return
    end = 0
    for batch in some.batches:
        start, end = end, end + len(batch)
        yield begins[start:end], skipped[start:end]


class _Blocks:
    """Blocks that are read or being read: all that a batch ahead wants, and the last used of the others."""

    def __init__(self, reader: Reads, pool: ThreadPoolExecutor, memory: int) -> None:
        self._reader, self._pool = reader, pool
        self._read: dict[int, Loaded] = {}
        self._reading: dict[int, Future[Loaded]] = {}
        self._last: dict[int, int] = {}  # of each of both, the last one of `want` that wants it
        self._wanted, self._released = 0, 0  # how often blocks were
        self.memory = np.empty((max(1, memory // reader.block_bytes), reader.block_bytes), np.uint8)
        self._spare = list(range(len(self.memory)))

    def want(self, blocks: Set[int]) -> bool:
        """Have blocks of the next batch read that are not there, in place of others that nobody wants: whether there
        is room for all. There is if nobody else wants any.
        """
        self._last.update(dict.fromkeys(blocks & self._last.keys(), self._wanted))
        for block in sorted(blocks - self._last.keys()):
            room = self._spare.pop() if self._spare else self._drop_one()
            if room is None:
                return False
            self._last[block] = self._wanted
            self._reading[block] = self._pool.submit(self._reader.load, block, self.memory, room)
        self._wanted += 1
        return True

    def being_read(self, blocks: Set[int]) -> bool:
        """Whether some of these are not there yet."""
        return any(not self._reading[block].done() for block in blocks & self._reading.keys())

    def wait_for(self, blocks: Set[int]) -> dict[int, Loaded]:
        """Blocks that are wanted, when they are there. Raises what reading them raised."""
        for block in blocks & self._reading.keys():
            self._read[block] = self._reading[block].result()
            del self._reading[block]
        return {block: self._read[block] for block in blocks}

    def release(self) -> None:
        """Nobody wants blocks any more for what wanted them first."""
        self._released += 1

    def _drop_one(self) -> int | None:
        """The room of a block that nobody wants, the one that was last wanted before all others."""
        block = min(self._read, key=self._last.__getitem__, default=None)
        if block is None or self._last[block] >= self._released:
            return None
        del self._last[block]
        return self._read.pop(block).room
