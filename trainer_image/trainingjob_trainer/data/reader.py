"""Samples of a prepared split by index, put together from the blocks that they lie in.

A block is read as one range: its window of a shard. A sample of tokens that lies in two windows is one of the even
block's: what it needs of the odd one's is kept when that is read, and read by itself where it is not known yet.

A missing, short, replaced or corrupt shard is a `DataError` that names it, raised for the samples that lie there.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trainingjob_trainer.data.manifest import PIECE_BYTES, Manifest, SplitName
from trainingjob_trainer.data.order import BLOCK_BYTES, Blocks, Ints, Order, distinct
from trainingjob_trainer.data.rows import decode
from trainingjob_trainer.data.stream import Stream, Unreadable, trouble
from trainingjob_trainer.storage import Store

EDGES = 16 * 2**20  # bytes at most: what is kept of the edges of windows; of 2 KiB samples, those of 64 GiB
IGNORE = -100  # a target with this value has no weight: neither in the loss nor in a metric

Bools = npt.NDArray[np.bool_]
Indices = Sequence[int] | Ints
Bytes = npt.NDArray[np.uint8]
Rows = npt.NDArray[np.uint8]  # [samples, bytes], as they are stored
Memory = npt.NDArray[np.uint8]  # [rooms, bytes], in one piece: a block is in a room

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Batch:
    """Model inputs and what they should predict, row by row (see `Reader.read`)."""

    inputs: Tensor
    targets: Tensor
    skipped: int = 0  # rows without weight, because their data is corrupt

    def to(self, device: torch.device) -> Batch:
        """The batch on a device, integers as int64; without waiting where it comes from page-locked memory."""
        inputs, targets = (tensor.to(device, non_blocking=True) for tensor in (self.inputs, self.targets))
        return Batch(_widened(inputs), _widened(targets), self.skipped)

    def pin(self) -> Batch:
        """The batch in page-locked memory."""
        inputs, targets = (tensor.contiguous().pin_memory() for tensor in (self.inputs, self.targets))
        return Batch(inputs, targets, self.skipped)


@dataclass(frozen=True)
class Loaded:
    """A block whose samples are in a memory as they are stored, one after another."""

    room: int
    begin: int  # the memory's byte that its first sample begins with
    unreadable: tuple[Unreadable, ...] = ()


class Reader:
    """Samples `0 .. len(reader) - 1` of one split, or of one source of it, in the manifest's order."""

    def __init__(
        self,
        store: Store,
        manifest: Manifest,
        split: SplitName,
        sequence_length: int,
        packing: bool = False,
        skip_corrupt: bool = False,
        source: int = 0,
        block_bytes: int = BLOCK_BYTES,
    ) -> None:
        self.split = split
        self._packing = packing
        self._skips = skip_corrupt
        self._manifest, self._length = manifest, sequence_length
        self._stream = Stream(store, manifest.splits[split].of_source(source))
        self._stored = np.dtype(manifest.dtype).newbyteorder("<")
        self._stride, self._overlap = manifest.item_bytes, 0
        if manifest.kind == "tokens":  # a sample's last token is the first of the next one
            self._stride, self._overlap = sequence_length * manifest.item_bytes, manifest.item_bytes
        self._width = self._stride + self._overlap
        self._samples, self._cut = manifest.num_samples(split, sequence_length, source), block_bytes
        self._told: set[str] = set()  # what is wrong with a shard is logged once, and counted at each sample
        self._edges: dict[tuple[int, int], bytes] = {}  # of odd blocks' windows, by where they lie in the stream

    def __len__(self) -> int:
        return self._samples

    @cached_property
    def blocks(self) -> Blocks:
        """How the samples are cut for reading, and for their order."""
        item_bytes = self._manifest.item_bytes
        return Blocks.of(self._stream.sizes, len(self), self._stride, item_bytes, self._overlap, self._cut)

    def order(self, seed: int) -> Order:
        """The order that training reads in."""
        return Order(self.blocks, seed)

    @cached_property
    def block_bytes(self) -> int:
        """Memory that a block needs, at most."""
        return int(np.diff(self.blocks.offsets).max()) + 2 * self._width + 2 * PIECE_BYTES

    def blocks_of(self, indices: Indices) -> set[int]:
        """The blocks that samples lie in."""
        samples = np.asarray(indices, np.int64)
        for outmost in (samples.min(initial=0), samples.max(initial=0)):
            if not 0 <= outmost < len(self):
                raise IndexError(f"sample {outmost} of {len(self)}")
        return distinct(self.blocks.block_of(samples))

    def load(self, block: int, memory: Memory, room: int) -> Loaded:
        """Read the samples of a block into a room, of `block_bytes`.

        Raises `StorageError`; `DataError` if they are not what the manifest says.
        """
        first, end = self.blocks.bounds(block)
        start, until = self.blocks.offsets[block : block + 2].tolist()
        begin, stop = first * self._stride, end * self._stride + self._overlap
        own = memory[room]
        span = self._stream.read(start, until, own[self._width :].data)
        before, window, behind = np.split(own, np.cumsum([self._width + span.begin, until - start]))
        unreadable = [*span.unreadable]
        if begin < start:
            unreadable += self._read_edge(begin, start, before[begin - start :])
        if until < stop:
            unreadable += self._read_edge(until, stop, behind[: stop - until])
        if block % 2 and self._overlap:
            for low, high in ((start, begin + self._overlap), (stop - self._overlap, until)):
                if not trouble(span.unreadable, low, high) and (len(self._edges) + 1) * self._width <= EDGES:
                    self._edges[low, high] = window[low - start : high - start].tobytes()
        return Loaded(room, room * len(own) + len(before) + begin - start, tuple(unreadable))

    def _read_edge(self, start: int, end: int, into: Bytes) -> tuple[Unreadable, ...]:
        """Bytes `[start, end)` of a neighbour's window.

        They are read by themselves if need be: a range that reaches into another chunk of the storage costs more.
        """
        known = self._edges.get((start, end))
        if known is not None:
            into[:] = np.frombuffer(known, np.uint8)
            return ()
        own = np.empty(len(into) + 2 * PIECE_BYTES, np.uint8)
        span = self._stream.read(start, end, own.data)
        into[:] = own[span.begin :][: len(into)]
        return span.unreadable

    def load_all(self, blocks: Collection[int]) -> tuple[dict[int, Loaded], Memory]:
        """The samples of some blocks, in a memory of their own."""
        memory = np.empty((max(1, len(blocks)), self.block_bytes), np.uint8)
        return {block: self.load(block, memory, room) for room, block in enumerate(sorted(blocks))}, memory

    def read(self, indices: Indices) -> Batch:
        """The samples, in this order, on the CPU. Raises `DataError` and `StorageError`.

        Tokens: inputs and targets `[rows, sequence_length]` as they are stored, targets one token on; or targets int32,
        IGNORE in rows that are skipped and, with `packing`, where they begin a document. Rows: as `decode` says.
        """
        return self.assemble(indices, *self.load_all(self.blocks_of(indices)))

    def assemble(self, indices: Indices, blocks: Mapping[int, Loaded], memory: Memory) -> Batch:
        """What `read` gives, from the blocks that the samples lie in."""
        begins, skipped = self.find(indices, blocks)
        return self.batch(self.gather(begins, memory), skipped)

    def find(self, indices: Indices, blocks: Mapping[int, Loaded]) -> tuple[Ints, Bools]:
        """Of each sample the byte of the blocks' memory that it begins with, and whether it is skipped."""
        samples, numbers = np.asarray(indices, np.int64), np.asarray(sorted(blocks), np.int64)
        firsts, loaded = self.blocks.firsts[numbers], [blocks[number] for number in numbers.tolist()]
        places = np.searchsorted(firsts, samples, side="right") - 1
        # Where sample 0 would be, if all were as far apart as a block's are.
        zeros = np.asarray([block.begin for block in loaded], np.int64) - firsts * self._stride
        skipped = np.zeros(len(samples), dtype=bool)
        if any(block.unreadable for block in loaded):
            each = zip(samples.tolist(), places.tolist(), strict=True)
            skipped[:] = [self._skip(sample, loaded[place]) for sample, place in each]
        return zeros[places] + samples * self._stride, skipped

    def gather(self, begins: Ints, memory: Memory) -> Rows:
        """A copy of the samples that begin with these bytes of a memory."""
        sample = np.dtype((np.void, self._width))
        at_each_byte = np.ndarray(memory.size - self._width + 1, sample, memory.data, 0, (1,))
        return at_each_byte[begins].view(np.uint8).reshape(len(begins), self._width)

    def batch(self, rows: Rows, skipped: Bools) -> Batch:
        """What samples mean; `rows` are changed."""
        return self._tokens(rows, skipped) if self._manifest.kind == "tokens" else self._rows(rows, skipped)

    def _skip(self, sample: int, block: Loaded) -> bool:
        """Whether a sample is skipped; raises what is wrong with it where nothing is to be skipped."""
        start = sample * self._stride
        wrong = trouble(block.unreadable, start, start + self._width)
        if wrong is None:
            return False
        if not self._skips:
            raise wrong
        if wrong.cause not in self._told:
            self._told.add(wrong.cause)
            log.warning("samples of split %s are skipped, sample %d first: %s", self.split, sample, wrong.cause)
        return True

    def _tokens(self, rows: Rows, skipped: Bools) -> Batch:
        tokens = rows.view(self._stored).astype(self._stored.newbyteorder("="), copy=False)
        inputs, targets, without = tokens[:, :-1], tokens[:, 1:], int(np.count_nonzero(skipped))
        if self._packing or without:
            masked = skipped[:, None] | (self._packing & (inputs == self._manifest.eos_id))
            targets = np.where(masked, np.int32(IGNORE), targets.astype(np.int32))
        return Batch(torch.from_numpy(inputs), torch.from_numpy(targets), without)

    def _rows(self, rows: Rows, skipped: Bools) -> Batch:
        rows[skipped] = 0
        inputs, targets = decode(rows, self._manifest)
        targets[skipped] = weightless(targets[skipped])
        return Batch(inputs, targets, int(np.count_nonzero(skipped)))


def weightless(targets: Tensor) -> Tensor:
    """Targets of this shape that have no weight: IGNORE, or NaN among real numbers."""
    if targets.is_floating_point():
        return torch.full_like(targets, torch.nan)
    return torch.full(targets.shape, IGNORE, device=targets.device)


def _widened(tensor: Tensor) -> Tensor:
    return tensor if tensor.is_floating_point() else tensor.long()
