"""Samples of a prepared split by index, put together from the blocks that they lie in.

A block is read as one range: the window of its shard that its samples begin in. The last sample of tokens ends in the
next window: what it needs of that is kept when that is read, and read along with the block where it is not known yet.

A missing, short, replaced or corrupt shard is a `DataError` that names it, raised for the samples that lie there.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trainingjob_trainer.data.manifest import PIECE_BYTES, Manifest, SplitName
from trainingjob_trainer.data.order import BLOCK_BYTES, Blocks, Ints, Order
from trainingjob_trainer.data.rows import decode
from trainingjob_trainer.data.stream import REPAIR, Stream, Unreadable, trouble
from trainingjob_trainer.errors import DataError
from trainingjob_trainer.storage import Store

HEADS = 16 * 2**20  # bytes: what is kept of the beginnings of windows; of 2 KiB samples, those of 64 GiB
IGNORE = -100  # a target with this value has no weight: neither in the loss nor in a metric

Indices = Sequence[int] | Ints
Stored = npt.NDArray[np.void]  # an element is a sample

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
        return replace(self, inputs=_widened(inputs), targets=_widened(targets))

    def pin(self) -> Batch:
        """The batch in page-locked memory."""
        inputs, targets = (tensor.contiguous().pin_memory() for tensor in (self.inputs, self.targets))
        return replace(self, inputs=inputs, targets=targets)


@dataclass(frozen=True)
class Loaded:
    """A block's samples as they are stored: all but the last, or that one alone, as views of what was read."""

    samples: Stored
    last: Stored
    memory: memoryview  # what they lie in: free for another block when this one is not wanted any more
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
        self._heads: dict[int, bytes] = {}  # of a block's window, what the last sample of the block before ends with

    def __len__(self) -> int:
        return self._samples

    @cached_property
    def blocks(self) -> Blocks:
        """How the samples are cut for reading, and for their order."""
        return Blocks.of(self._stream.sizes, len(self), self._stride, self._manifest.item_bytes, self._cut)

    def order(self, seed: int) -> Order:
        """The order that training reads in."""
        return Order(self.blocks, seed)

    @cached_property
    def block_bytes(self) -> int:
        """Memory that a block needs, at most."""
        return int(np.diff(self.blocks.offsets).max()) + self._width + 2 * PIECE_BYTES

    def blocks_of(self, indices: Indices) -> set[int]:
        """The blocks that samples lie in."""
        samples = np.asarray(indices)
        outside = samples[(samples < 0) | (samples >= len(self))]
        if len(outside):
            raise IndexError(f"sample {outside[0]} of {len(self)}")
        return set(self.blocks.block_of(samples).tolist())

    def load(self, block: int, memory: memoryview) -> Loaded:
        """The samples of a block, in a memory of `block_bytes`.

        Raises `StorageError`; `DataError` if they are not what the manifest says.
        """
        first, end = self.blocks.bounds(block)
        start, until = self.blocks.offsets[block : block + 2].tolist()
        rest = self._heads.get(block + 1)
        span = self._stream.read(start, end * self._stride + self._overlap if rest is None else until, memory)
        if self._manifest.kind == "tokens":
            self._check_vocabulary(np.frombuffer(span.data, self._stored))
        at, count = first * self._stride - start, end - first
        head = at + self._overlap
        if not trouble(span.unreadable, start, start + head) and (len(self._heads) + 1) * self._width <= HEADS:
            self._heads[block] = bytes(span.data[:head])
        sample = np.dtype((np.void, self._width))
        last = np.frombuffer(bytes(span.data[at + (count - 1) * self._stride :][: self._width]) + (rest or b""), sample)
        all_but = np.ndarray(count - 1, sample, span.data, at, (self._stride,)) if count > 1 else last
        return Loaded(all_but, last, memory, span.unreadable)

    def load_all(self, blocks: Iterable[int]) -> dict[int, Loaded]:
        """The samples of some blocks, each in a memory of its own."""
        return {block: self.load(block, memoryview(bytearray(self.block_bytes))) for block in sorted(blocks)}

    def read(self, indices: Indices) -> Batch:
        """The samples, in this order, on the CPU. Raises `DataError` and `StorageError`.

        Tokens: inputs and targets `[rows, sequence_length]` as they are stored, targets one token on; or targets int32,
        IGNORE in rows that are skipped and, with `packing`, where they begin a document. Rows: as `decode` says.
        """
        return self.assemble(indices, self.load_all(self.blocks_of(indices)))

    def assemble(self, indices: Indices, blocks: Mapping[int, Loaded]) -> Batch:
        """What `read` gives, from the blocks that the samples lie in."""
        samples = np.asarray(indices)
        places = self.blocks.block_of(samples)
        within = samples - self.blocks.firsts[places]
        lasts = np.flatnonzero(samples + 1 == self.blocks.firsts[places + 1])
        within[lasts] = 0  # for the time being
        ends = np.flatnonzero(np.append(places[1:] != places[:-1], True))  # of neighbours of one block
        rows = np.empty(len(samples), np.dtype((np.void, self._width)))
        begin, unreadable = 0, False
        for block, end in zip(places[ends].tolist(), (ends + 1).tolist(), strict=True):
            rows[begin:end] = blocks[block].samples[within[begin:end]]
            begin, unreadable = end, unreadable or bool(blocks[block].unreadable)
        for place in lasts.tolist():
            rows[place] = blocks[int(places[place])].last[0]
        skipped = np.zeros(len(samples), dtype=bool)
        if unreadable:
            each = zip(samples.tolist(), places.tolist(), strict=True)
            skipped[:] = [self._skip(sample, blocks[block]) for sample, block in each]
        of_bytes = rows.view(np.uint8).reshape(len(samples), self._width)
        return self._tokens(of_bytes, skipped) if self._manifest.kind == "tokens" else self._rows(of_bytes, skipped)

    def _skip(self, sample: int, block: Loaded) -> bool:
        """Whether a sample is skipped; raises what is wrong with it where nothing is to be skipped."""
        start = sample * self._stride
        wrong = trouble(block.unreadable, start, start + self._width)
        if wrong is None:
            return False
        if not self._skips:
            raise wrong
        log.warning("sample %d of split %s is skipped: %s", sample, self.split, wrong.cause)
        return True

    def _check_vocabulary(self, tokens: npt.NDArray[Any]) -> None:
        if tokens.max(initial=0) >= (self._manifest.vocab_size or 0):
            raise DataError(
                f"Split {self.split} has the token {tokens.max()}, but the vocabulary ends at "
                f"{self._manifest.vocab_size}.",
                REPAIR,
            )

    def _tokens(self, rows: npt.NDArray[np.uint8], skipped: npt.NDArray[np.bool_]) -> Batch:
        tokens = rows.view(self._stored).astype(self._stored.newbyteorder("="), copy=False)
        inputs, targets = tokens[:, :-1], tokens[:, 1:]
        if self._packing or skipped.any():
            masked = skipped[:, None] | (self._packing & (inputs == self._manifest.eos_id))
            targets = np.where(masked, np.int32(IGNORE), targets.astype(np.int32))
        return Batch(torch.from_numpy(inputs), torch.from_numpy(targets), int(skipped.sum()))

    def _rows(self, rows: npt.NDArray[np.uint8], skipped: npt.NDArray[np.bool_]) -> Batch:
        rows[skipped] = 0
        inputs, targets = decode(rows, self._manifest)
        targets[skipped] = weightless(targets[skipped])
        return Batch(inputs, targets, int(skipped.sum()))


def weightless(targets: Tensor) -> Tensor:
    """Targets of this shape that have no weight: IGNORE, or NaN among real numbers."""
    if targets.is_floating_point():
        return torch.full_like(targets, torch.nan)
    return torch.full(targets.shape, IGNORE, device=targets.device)


def _widened(tensor: Tensor) -> Tensor:
    return tensor if tensor.is_floating_point() else tensor.long()
