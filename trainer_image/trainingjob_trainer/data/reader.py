"""Samples of a prepared split by index, put together from the blocks that they lie in.

A missing, short, replaced or corrupt shard is a `DataError` that names it, raised for the samples that lie there.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trainingjob_trainer.data.manifest import Manifest, SplitName
from trainingjob_trainer.data.order import BLOCK_BYTES, Blocks, Order
from trainingjob_trainer.data.rows import decode
from trainingjob_trainer.data.stream import REPAIR, Span, Stream
from trainingjob_trainer.errors import DataError
from trainingjob_trainer.storage import Store

IGNORE = -100  # a target with this value has no weight: neither in the loss nor in a metric

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
        self._samples, self._cut = manifest.num_samples(split, sequence_length, source), block_bytes

    def __len__(self) -> int:
        return self._samples

    @cached_property
    def blocks(self) -> Blocks:
        """How the samples are cut for reading, and for their order."""
        return Blocks.of(len(self), self._stride, self._cut)

    def order(self, seed: int) -> Order:
        """The order that training reads in."""
        return Order(self.blocks, seed)

    @property
    def block_bytes(self) -> int:
        """Memory of a block, at most."""
        return -(-len(self) // self.blocks.count) * self._stride + self._overlap

    def blocks_of(self, indices: Sequence[int]) -> list[int]:
        """The blocks that samples lie in."""
        outside = [index for index in (min(indices), max(indices)) if not 0 <= index < len(self)]
        if outside:
            raise IndexError(f"sample {outside[0]} of {len(self)}")
        return sorted(set(self.blocks.block_of(np.asarray(indices)).tolist()))

    def load(self, block: int) -> Span:
        """The bytes of a block. Raises `StorageError`; `DataError` if they are not what the manifest says."""
        first, end = self.blocks.bounds(block)
        span = self._stream.read(first * self._stride, end * self._stride + self._overlap)
        if self._manifest.kind == "tokens":
            self._check_vocabulary(np.frombuffer(span.data, self._stored))
        return span

    def read(self, indices: Sequence[int]) -> Batch:
        """The samples, in this order, on the CPU. Raises `DataError` and `StorageError`.

        Tokens: inputs and targets `[rows, sequence_length]` as they are stored, targets one token on; or targets int32,
        IGNORE in rows that are skipped and, with `packing`, where they begin a document. Rows: as `decode` says.
        """
        return self.assemble(indices, {block: self.load(block) for block in self.blocks_of(indices)})

    def assemble(self, indices: Sequence[int], spans: Mapping[int, Span]) -> Batch:
        """What `read` gives, from the blocks that the samples lie in."""
        width = self._stride + self._overlap
        samples = np.asarray(indices, dtype=np.int64)
        places = list(zip(self.blocks.block_of(samples).tolist(), (samples * self._stride).tolist(), strict=True))
        starts, data = {b: span.start for b, span in spans.items()}, {b: span.data for b, span in spans.items()}
        cut = [data[block][(at := start - starts[block]) : at + width] for block, start in places]
        rows = np.frombuffer(bytearray().join(cut), dtype=np.uint8).reshape(len(indices), width)
        skipped = np.zeros(len(indices), dtype=bool)
        if any(span.unreadable for span in spans.values()):
            skipped[:] = [self._skip(sample, spans[block]) for sample, (block, _) in zip(indices, places, strict=True)]
        return self._tokens(rows, skipped) if self._manifest.kind == "tokens" else self._rows(rows, skipped)

    def _skip(self, sample: int, span: Span) -> bool:
        """Whether a sample is skipped; raises what is wrong with it where nothing is to be skipped."""
        start = sample * self._stride
        trouble = span.trouble(start, start + self._stride + self._overlap)
        if trouble is None:
            return False
        if not self._skips:
            raise trouble
        log.warning("sample %d of split %s is skipped: %s", sample, self.split, trouble.cause)
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
