"""Batches ahead of their use: a thread puts them together, and ranged reads fetch the blocks of those to come."""

from __future__ import annotations

import queue
import threading
from collections import Counter, OrderedDict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Protocol

from trainingjob_trainer.data.reader import Batch
from trainingjob_trainer.data.stream import Span

MEMORY = 512 * 2**20  # bytes of blocks: those of the batches to come, and as many used ones as fit beside them
READS_AT_ONCE = 8
READY = 2  # batches
AHEAD = 1024  # batches whose blocks are asked for
GROWTH = 4  # batches by which that grows with each one that is handed out: the first ones don't wait for it


class Reads(Protocol):
    """Samples that are put together from blocks: a `Reader`, or a `MixedReader`."""

    @property
    def block_bytes(self) -> int: ...

    def blocks_of(self, indices: Sequence[int]) -> list[int]: ...

    def load(self, block: int) -> Span: ...

    def assemble(self, indices: Sequence[int], spans: Mapping[int, Span]) -> Batch: ...


@contextmanager
def prefetch(
    reader: Reads, batches: Iterable[Sequence[int]], *, memory: int = MEMORY, pin: bool = False
) -> Iterator[Iterator[Batch]]:
    """An iterator over what `reader` puts together of each batch's samples, read ahead within `memory` bytes.

    An error is raised at the batch that it belongs to. `pin`: in page-locked memory. The threads end with the context.
    """
    ready: queue.Queue[Batch | Exception | None] = queue.Queue(READY)
    stopped = threading.Event()

    def offer(item: Batch | Exception | None) -> None:
        while not stopped.is_set():
            try:
                ready.put(item, timeout=0.1)
                return
            except queue.Full:
                pass

    def work() -> None:
        try:
            for batch in _read_ahead(reader, batches, pool, memory):
                offer(batch.pin() if pin else batch)
                if stopped.is_set():
                    return
            offer(None)
        except Exception as error:  # whatever it is, it is the consumer's to handle
            offer(error)

    def results() -> Iterator[Batch]:
        while (item := ready.get()) is not None:
            if isinstance(item, Exception):
                raise item
            yield item

    pool = ThreadPoolExecutor(READS_AT_ONCE, thread_name_prefix="prefetch")
    thread = threading.Thread(target=work, name="prefetch", daemon=True)
    thread.start()
    try:
        yield results()
    finally:
        stopped.set()
        pool.shutdown(wait=False, cancel_futures=True)
        thread.join()
        pool.shutdown()


def _read_ahead(
    reader: Reads, batches: Iterable[Sequence[int]], pool: ThreadPoolExecutor, memory: int
) -> Iterator[Batch]:
    blocks = _Blocks(reader, pool, memory)
    coming = ((indices, reader.blocks_of(indices)) for indices in batches)
    ahead: deque[tuple[Sequence[int], list[int]]] = deque()
    next_one = next(coming, None)
    while next_one is not None or ahead:
        for _ in range(GROWTH):
            if next_one is None or len(ahead) == AHEAD or (ahead and not blocks.have_room(next_one[1])):
                break
            blocks.want(next_one[1])
            ahead.append(next_one)
            next_one = next(coming, None)
        indices, own = ahead.popleft()
        yield reader.assemble(indices, blocks.take(own))


class _Blocks:
    """Blocks that are read or being read: all that a batch ahead wants, and the last used of the others."""

    def __init__(self, reader: Reads, pool: ThreadPoolExecutor, memory: int) -> None:
        self._reader, self._pool = reader, pool
        self._most = max(1, memory // reader.block_bytes)
        self._held: OrderedDict[int, Future[Span] | Span] = OrderedDict()  # the last used one last
        self._wanted: Counter[int] = Counter()  # batches ahead that want it

    def have_room(self, blocks: Sequence[int]) -> bool:
        """Whether these can be wanted beside what is wanted."""
        return len(self._wanted) + sum(block not in self._wanted for block in blocks) <= self._most

    def want(self, blocks: Sequence[int]) -> None:
        """Have blocks read that are not there, in place of others that nobody wants."""
        for block in blocks:
            self._wanted[block] += 1
            if block not in self._held:
                self._drop_one()
                self._held[block] = self._pool.submit(self._reader.load, block)

    def take(self, blocks: Sequence[int]) -> dict[int, Span]:
        """Blocks that a batch wanted: waits for them. Raises what reading them raised."""
        spans = {}
        for block in blocks:
            held = self._held[block]
            spans[block] = self._held[block] = held.result() if isinstance(held, Future) else held
            self._held.move_to_end(block)
            self._wanted[block] -= 1
            if not self._wanted[block]:
                del self._wanted[block]
        return spans

    def _drop_one(self) -> None:
        if len(self._held) >= self._most:
            unwanted = next((block for block in self._held if block not in self._wanted), None)
            if unwanted is not None:
                del self._held[unwanted]
