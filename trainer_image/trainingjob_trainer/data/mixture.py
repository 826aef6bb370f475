"""Weighted sources of training data as one: which source each position draws from, and samples by one number.

The sources' samples are numbered one source after another. Which source a position draws from follows from the position
alone: every window of as many positions as the sum of the weights draws as many samples from each source as its weight,
spread evenly over the window. A source's own positions are counted on from window to window, in an order of its own, so
each of its epochs visits each of its samples once, however much faster than the others' it passes.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from itertools import accumulate

import numpy as np

from trainingjob_trainer.data.manifest import PIECE_BYTES, Manifest
from trainingjob_trainer.data.order import BLOCK_BYTES, Ints, Order
from trainingjob_trainer.data.reader import Batch, Bools, Indices, Loaded, Memory, Reader, Rows
from trainingjob_trainer.storage import Store


class MixedOrder:
    """The order of a mixture: position p is sample `indices([p])[0]`, numbered over all sources."""

    def __init__(self, orders: Sequence[Order], weights: Sequence[int]) -> None:
        self._orders, self._weights = orders, np.asarray(weights, dtype=np.int64)
        self._first = np.asarray([0, *accumulate(map(len, orders))])
        self._source, self._turn = _window(weights)

    def __len__(self) -> int:
        """Samples of all sources."""
        return int(self._first[-1])

    def indices(self, positions: Ints) -> Ints:
        """The samples at many positions, in their order."""
        return self.draws(positions) % len(self)

    def draws(self, positions: Ints) -> Ints:
        """The same as draws: `len(self)` more for each epoch of its source that came before a sample's own."""
        windows, slots = np.divmod(positions, len(self._source))
        source, result = self._source[slots], np.empty_like(positions)
        own = windows * self._weights[source] + self._turn[slots]
        for number in np.unique(source):
            chosen, order = source == number, self._orders[number]
            epochs, samples = np.divmod(order.draws(own[chosen]), len(order))
            result[chosen] = self._first[number] + samples + epochs * len(self)
        return result


def _window(weights: Sequence[int]) -> tuple[Ints, Ints]:
    """Of each slot of a window its source, and how many slots before it are the same source's.

    Up to any slot each source has its share, give or take less than one: turn j of weight w has to come within slots
    [j / w, (j + 1) / w) of the window, rounded outwards, and whose end comes first goes first, which keeps all of them
    (Baruah et al. 1996, proportionate progress).
    """
    total = sum(weights)
    source, turn = np.empty(total, dtype=np.int64), np.empty(total, dtype=np.int64)
    coming, ready = [(0, number, 0) for number in range(len(weights))], list[tuple[int, int, int]]()
    for slot in range(total):
        while coming and coming[0][0] <= slot:
            _, number, nth = heapq.heappop(coming)
            heapq.heappush(ready, (-(-(nth + 1) * total // weights[number]), number, nth))
        _, number, nth = heapq.heappop(ready)
        source[slot], turn[slot] = number, nth
        heapq.heappush(coming, ((nth + 1) * total // weights[number], number, nth + 1))
    return source, turn


class MixedReader:
    """The samples of all sources of the training split, each source in blocks of its own: see `Reader`."""

    def __init__(
        self,
        store: Store,
        manifest: Manifest,
        sequence_length: int,
        weights: Sequence[int],
        packing: bool = False,
        skip_corrupt: bool = False,
    ) -> None:
        # The blocks of all sources' groups are in memory at once.
        # Half of it is a multiple of a piece, too.
        block_bytes = max(1, BLOCK_BYTES // len(weights) // (2 * PIECE_BYTES)) * 2 * PIECE_BYTES
        self._weights = weights
        self._readers = [
            Reader(store, manifest, "train", sequence_length, packing, skip_corrupt, source, block_bytes)
            for source in range(len(weights))
        ]
        self._first = [0, *accumulate(map(len, self._readers))]
        self._first_block = [0, *accumulate(reader.blocks.count for reader in self._readers)]

    def __len__(self) -> int:
        return self._first[-1]

    @property
    def block_bytes(self) -> int:
        """Memory that a block needs, at most."""
        return max(reader.block_bytes for reader in self._readers)

    def order(self, seed: int) -> MixedOrder:
        """The order that training reads in."""
        return MixedOrder([reader.order(seed) for reader in self._readers], self._weights)

    def blocks_of(self, indices: Indices) -> set[int]:
        """The blocks that samples lie in, numbered over all sources."""
        return {
            self._first_block[source] + block
            for source, rows in self._by_source(indices).items()
            for block in self._readers[source].blocks_of(self._own(source, indices, rows))
        }

    def load(self, block: int, memory: Memory, room: int) -> Loaded:
        """Read the samples of a block into a room, of `block_bytes`."""
        source = int(np.searchsorted(self._first_block, block, side="right")) - 1
        return self._readers[source].load(block - self._first_block[source], memory, room)

    def find(self, indices: Indices, blocks: Mapping[int, Loaded]) -> tuple[Ints, Bools]:
        """Of each sample the byte of the blocks' memory that it begins with, and whether it is skipped."""
        begins, skipped = np.empty(len(indices), np.int64), np.empty(len(indices), dtype=bool)
        for source, chosen in self._by_source(indices).items():
            first, end = self._first_block[source : source + 2]
            own = {number - first: block for number, block in blocks.items() if first <= number < end}
            begins[chosen], skipped[chosen] = self._readers[source].find(self._own(source, indices, chosen), own)
        return begins, skipped

    def gather(self, begins: Ints, memory: Memory) -> Rows:
        """A copy of the samples that begin with these bytes of a memory."""
        return self._readers[0].gather(begins, memory)

    def batch(self, rows: Rows, skipped: Bools) -> Batch:
        """What samples mean; `rows` are changed."""
        return self._readers[0].batch(rows, skipped)

    def _by_source(self, indices: Indices) -> dict[int, Ints]:
        """Which of `indices` are of each source that has any."""
        source = np.searchsorted(self._first, np.asarray(indices), side="right") - 1
        return {int(number): np.flatnonzero(source == number) for number in np.unique(source)}

    def _own(self, source: int, indices: Indices, rows: Ints) -> Ints:
        return np.asarray(indices)[rows] - self._first[source]


def training_reader(
    store: Store, manifest: Manifest, sequence_length: int, weights: Sequence[int], packing: bool, skip_corrupt: bool
) -> Reader | MixedReader:
    """What reads the training split, of one source or of several."""
    if len(weights) == 1:
        return Reader(store, manifest, "train", sequence_length, packing, skip_corrupt)
    return MixedReader(store, manifest, sequence_length, weights, packing, skip_corrupt)
