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
    """Bytes of a stream that were read; zeros where `unreadable` says so."""

    begin: int  # where they begin in the memory that they were read into
    unreadable: tuple[Unreadable, ...] = ()


def trouble(unreadable: Sequence[Unreadable], start: int, end: int) -> DataError | None:
    """What is wrong with bytes `[start, end)` of a stream, if anything is."""
    return next((bad.error for bad in unreadable if bad.start < end and start < bad.end), None)


class Stream:
    """Shards of a store, one after another."""

    def __init__(self, store: Store, shards: Sequence[Shard]) -> None:
        self._store, self._shards = store, shards
        self.sizes = [shard.size for shard in shards]
        self._starts = [0, *itertools.accumulate(self.sizes)]
        self._etags: dict[str, str] = {}

    def read(self, start: int, end: int, into: memoryview) -> Span:
        """Bytes `[start, end)`, by one ranged read of each shard that they lie in. Raises `StorageError`.

        They are in `into`, which has room for two pieces more.
        """
        at, position = start, bisect.bisect_right(self._starts, start) - 1
        filled, before, bad = 0, 0, list[Unreadable]()
        while at < end:
            shard, base = self._shards[position], self._starts[position]
            until = min(end, base + shard.size)
            low = (at - base) // PIECE_BYTES * PIECE_BYTES
            high = min(-(-(until - base) // PIECE_BYTES) * PIECE_BYTES, shard.size)
            bad += self._fill(shard, base, low, into[filled : filled + high - low])
            before = before or at - base - low  # of the first shard's part: the others' are from their beginning on
            filled, at, position = filled + high - low, until, position + 1
        return Span(before, tuple(bad))

    def _fill(self, shard: Shard, base: int, low: int, part: memoryview) -> list[Unreadable]:
        """Read and verify the pieces from `low` on of a shard that begins at `base`; zeros where that fails."""
        try:
            self._get(shard, low, part)
            places = self._wrong(shard, low, part)
            if places:  # on the way, perhaps
                self._get(shard, low, part)
                places = self._wrong(shard, low, part)
            wrong = dict.fromkeys(places, self._corrupt(shard))
        except DataError as error:
            wrong = dict.fromkeys(range(low, low + len(part), PIECE_BYTES), error)
        for at in wrong:
            piece = part[at - low :][:PIECE_BYTES]
            piece[:] = bytes(len(piece))
        return [Unreadable(base + at, base + min(at + PIECE_BYTES, shard.size), error) for at, error in wrong.items()]

    def _wrong(self, shard: Shard, low: int, data: memoryview) -> list[int]:
        """Where the pieces begin whose bytes are not those that were written."""
        found, expected = checksums(data), shard.pieces[8 * (low // PIECE_BYTES) :]
        return [low + i // 8 * PIECE_BYTES for i in range(0, len(found), 8) if found[i : i + 8] != expected[i : i + 8]]

    def _get(self, shard: Shard, start: int, into: memoryview) -> None:
        uri = self._store.uri(shard.key)
        try:
            # The shard of the first read, to the end: a pod that prepares the data again must not mix in another.
            count, etag = self._store.read_into(shard.key, start, into, if_match=self._etags.get(shard.key))
        except NotFound as error:
            raise DataError(f"The data shard {uri} is missing.", REPAIR) from error
        except PreconditionFailed as error:
            raise DataError(f"The data shard {uri} was replaced while it was read.", REPAIR) from error
        self._etags.setdefault(shard.key, etag)
        if count != len(into):
            raise DataError(f"The data shard {uri} is shorter than the manifest says ({shard.size} bytes).", REPAIR)

    def _corrupt(self, shard: Shard) -> DataError:
        uri = self._store.uri(shard.key)
        return DataError(f"The data shard {uri} is corrupt: its bytes are not those that were written.", REPAIR)
