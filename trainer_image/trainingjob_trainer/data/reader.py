"""Read samples of a prepared split by index, in batches, ahead of their use.

A split that fits in `cache_bytes` is read shard by shard, each verified against the manifest's sha256 and kept; of a
larger one every sample is a ranged read. Either way a missing, short or corrupt shard is a `DataError` that names it.
"""

from __future__ import annotations

import bisect
import hashlib
import itertools
import queue
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from trainingjob_trainer.data.manifest import Manifest, Shard, SplitName
from trainingjob_trainer.data.rows import decode
from trainingjob_trainer.errors import DataError
from trainingjob_trainer.storage import NotFound, Store

CACHE_BYTES = 512 * 2**20
READS_AT_ONCE = 8
REPAIR = "Delete data/manifest.json in the run directory to have the data prepared again, or restore the object."


@dataclass(frozen=True)
class Batch:
    """Model inputs and what they should predict, row by row (see `Reader.read`)."""

    inputs: Tensor
    targets: Tensor

    def to(self, device: torch.device) -> Batch:
        """The batch on a device; from page-locked memory, without waiting, where that is CUDA."""
        if device.type != "cuda":
            return Batch(self.inputs.to(device), self.targets.to(device))
        inputs, targets = self.inputs.pin_memory(), self.targets.pin_memory()
        return Batch(inputs.to(device, non_blocking=True), targets.to(device, non_blocking=True))


class Reader:
    """Samples `0 .. len(reader) - 1` of one split, in the manifest's order."""

    def __init__(
        self,
        store: Store,
        manifest: Manifest,
        split: SplitName,
        sequence_length: int,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        self.split = split
        self._store, self._manifest, self._length = store, manifest, sequence_length
        self._shards = manifest.splits[split].shards
        self._starts = [0, *itertools.accumulate(shard.size for shard in self._shards)]
        self._cached = self._starts[-1] <= cache_bytes
        self._cache: dict[str, bytes] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self._manifest.num_samples(self.split, self._length)

    def read(self, indices: Sequence[int]) -> Batch:
        """The samples, in this order, on the CPU.

        Tokens: inputs and targets `[rows, sequence_length]` int64, targets one token on. Rows: as `decode` says.
        Raises `DataError`.
        """
        ranges = [self._range(index) for index in indices]
        if self._cached:
            rows = [self._bytes(start, end) for start, end in ranges]
        else:
            with ThreadPoolExecutor(READS_AT_ONCE) as pool:
                rows = list(pool.map(lambda bounds: self._bytes(*bounds), ranges))
        return self._tokens(rows) if self._manifest.kind == "tokens" else self._rows(rows)

    def _range(self, index: int) -> tuple[int, int]:
        """Bytes of a sample in the split's stream."""
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        size = self._manifest.item_bytes
        if self._manifest.kind != "tokens":
            return index * size, (index + 1) * size
        return index * self._length * size, ((index + 1) * self._length + 1) * size

    def _bytes(self, start: int, end: int) -> bytes:
        parts = []
        position = bisect.bisect_right(self._starts, start) - 1
        while start < end:
            shard, base = self._shards[position], self._starts[position]
            stop = min(end, base + shard.size)
            parts.append(self._slice(shard, start - base, stop - base))
            start, position = stop, position + 1
        return b"".join(parts)

    def _slice(self, shard: Shard, start: int, end: int) -> bytes:
        if self._cached:
            return self._whole(shard)[start:end]
        data = self._get(shard, start, end)
        if len(data) != end - start:
            raise DataError(f"The data shard {self._store.uri(shard.key)} is shorter than the manifest says.", REPAIR)
        return data

    def _whole(self, shard: Shard) -> bytes:
        with self._lock:
            if shard.key not in self._cache:
                data = self._get(shard, None, None)
                if hashlib.sha256(data).hexdigest() != shard.sha256:
                    raise DataError(
                        f"The data shard {self._store.uri(shard.key)} is corrupt: its {len(data)} bytes do not have "
                        f"the sha256 that the manifest names for {shard.size} bytes.",
                        REPAIR,
                    )
                self._cache[shard.key] = data
            return self._cache[shard.key]

    def _get(self, shard: Shard, start: int | None, end: int | None) -> bytes:
        try:
            return self._store.get(shard.key, start, end)
        except NotFound as error:
            raise DataError(f"The data shard {self._store.uri(shard.key)} is missing.", REPAIR) from error

    def _tokens(self, rows: list[bytes]) -> Batch:
        dtype = np.dtype(self._manifest.dtype).newbyteorder("<")
        tokens = np.frombuffer(b"".join(rows), dtype=dtype).astype(np.int64).reshape(len(rows), self._length + 1)
        if tokens.max(initial=0) >= (self._manifest.vocab_size or 0):
            raise DataError(
                f"Split {self.split} has the token {tokens.max()}, but the vocabulary ends at "
                f"{self._manifest.vocab_size}.",
                REPAIR,
            )
        whole = torch.from_numpy(tokens)
        return Batch(whole[:, :-1].contiguous(), whole[:, 1:].contiguous())

    def _rows(self, rows: list[bytes]) -> Batch:
        flat = np.frombuffer(b"".join(rows), dtype=np.uint8).reshape(len(rows), self._manifest.item_bytes)
        return Batch(*decode(flat, self._manifest))


@contextmanager
def prefetch(reader: Reader, batches: Iterable[Sequence[int]], depth: int = 2) -> Iterator[Iterator[Batch]]:
    """An iterator over `reader.read(indices)` of each batch, read by a thread that is at most `depth` batches ahead.

    An error of the thread is raised at the batch that it belongs to. The thread ends with the context.
    """
    ready: queue.Queue[Batch | Exception | None] = queue.Queue(depth)
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
            for indices in batches:
                if stopped.is_set():
                    return
                offer(reader.read(indices))
            offer(None)
        except Exception as error:  # whatever it is, it is the consumer's to handle
            offer(error)

    def results() -> Iterator[Batch]:
        while (item := ready.get()) is not None:
            if isinstance(item, Exception):
                raise item
            yield item

    thread = threading.Thread(target=work, name="prefetch", daemon=True)
    thread.start()
    try:
        yield results()
    finally:
        stopped.set()
        thread.join()
