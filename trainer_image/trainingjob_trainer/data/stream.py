"""The bytes of a split: its shards one after another, read by range, each piece verified against the manifest."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from trainingjob_trainer.data.manifest import PIECE_BYTES, Shard, checksums
from trainingjob_trainer.errors import DataError
from trainingjob_trainer.storage import NotFound, PreconditionFailed, Store

REPAIR = (
    "Restore the object, or delete data/manifest.json in the run directory to have the data prepared again. "
    "spec.data.onCorrupt: skip trains on without its samples."
)


@dataclass(frozen=True)
class Unreadable:
    """Bytes `[start, end)` of a stream that cannot be had."""

    start: int
    end: int
    error: DataError


@dataclass(frozen=True)
class Span:
    """Bytes of a stream from `start` on; zeros where `unreadable` says so."""

    start: int
    data: bytes | memoryview
    unreadable: tuple[Unreadable, ...] = ()

    def trouble(self, start: int, end: int) -> DataError | None:
        """What is wrong with bytes `[start, end)` of the stream, if anything is."""
        return next((bad.error for bad in self.unreadable if bad.start < end and start < bad.end), None)


class Stream:
    """Shards of a store, one after another."""

    def __init__(self, store: Store, shards: Sequence[Shard]) -> None:
        self._store, self._shards = store, shards
        self._starts = [0, *itertools.accumulate(shard.size for shard in shards)]
        self._etags: dict[str, str] = {}

    def read(self, start: int, end: int) -> Span:
        """Bytes `[start, end)`, by one ranged read of each shard that they lie in. Raises `StorageError`."""
        parts: list[Span] = []
        at, position = start, bisect.bisect_right(self._starts, start) - 1
        while at < end:
            base, until = self._starts[position], min(end, self._starts[position + 1])
            parts.append(self._read(self._shards[position], base, at - base, until - base))
            at, position = until, position + 1
        if len(parts) == 1:
            return parts[0]
        bad = tuple(bad for part in parts for bad in part.unreadable)
        return Span(start, b"".join(part.data for part in parts), bad)

    def _read(self, shard: Shard, base: int, start: int, end: int) -> Span:
        """Bytes `[start, end)` of a shard that begins at `base` of the stream."""
        low, high = start // PIECE_BYTES * PIECE_BYTES, min(-(-end // PIECE_BYTES) * PIECE_BYTES, shard.size)
        try:
            data = self._get(shard, low, high)
            wrong = self._wrong(shard, low, data) and self._wrong(shard, low, data := self._get(shard, low, high))
        except DataError as error:
            return Span(base + start, bytes(end - start), (Unreadable(base + start, base + end, error),))
        ends = [min(piece + PIECE_BYTES, shard.size) for piece in wrong]
        bad = tuple(Unreadable(base + a, base + b, self._corrupt(shard)) for a, b in zip(wrong, ends, strict=True))
        return Span(base + start, memoryview(data)[start - low : end - low], bad)

    def _wrong(self, shard: Shard, low: int, data: bytes) -> list[int]:
        """Where the pieces begin whose bytes are not those that were written."""
        found, expected = checksums(data), shard.pieces[8 * (low // PIECE_BYTES) :]
        return [low + i // 8 * PIECE_BYTES for i in range(0, len(found), 8) if found[i : i + 8] != expected[i : i + 8]]

    def _get(self, shard: Shard, start: int, end: int) -> bytes:
        uri = self._store.uri(shard.key)
        try:
            # The shard of the first read, to the end: a pod that prepares the data again must not mix in another.
            data, etag = self._store.get_part(shard.key, start, end, if_match=self._etags.get(shard.key))
        except NotFound as error:
            raise DataError(f"The data shard {uri} is missing.", REPAIR) from error
        except PreconditionFailed as error:
            raise DataError(f"The data shard {uri} was replaced while it was read.", REPAIR) from error
        self._etags.setdefault(shard.key, etag)
        if len(data) != end - start:
            raise DataError(f"The data shard {uri} is shorter than the manifest says ({shard.size} bytes).", REPAIR)
        return data

    def _corrupt(self, shard: Shard) -> DataError:
        uri = self._store.uri(shard.key)
        return DataError(f"The data shard {uri} is corrupt: its bytes are not those that were written.", REPAIR)
