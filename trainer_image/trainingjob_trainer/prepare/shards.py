"""Write examples as shards, and the manifest that names them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice

from trainingjob_trainer.beginning import settings_to_begin_with
from trainingjob_trainer.config import Config, TrainerSpec
from trainingjob_trainer.data.manifest import MANIFEST_KEY, SPLITS, Manifest, Shard, SplitData, SplitName
from trainingjob_trainer.errors import DataError
from trainingjob_trainer.prepare.encoders import Encoder
from trainingjob_trainer.prepare.examples import Example, is_cleaned
from trainingjob_trainer.prepare.limits import check_limits
from trainingjob_trainer.storage import PreconditionFailed, Store

SHARD_BYTES = 64 * 2**20
ENCODED_AT_ONCE = 256  # documents


class Part(Config):
    """What one writer made of consecutive examples: keys of the first and the last, shards by split."""

    first: str
    last: str
    splits: dict[SplitName, SplitData]
    dropped: int
    duplicates: int


def write_shards(
    store: Store, examples: Iterable[Example], encoder: Encoder, writer: str, shard_bytes: int = SHARD_BYTES
) -> Part:
    """Write examples, at least one, in their order, as `data/<split>-<writer>-<first key>.<n>.bin`.

    They are taken as they are encoded, and of a stream no more than one and a half shards are held.
    """
    left, streams = iter(examples), dict[tuple[SplitName, int], _Stream]()  # by split and source
    first, last, dropped, duplicates = "", "", 0, 0
    while some := list(islice(left, ENCODED_AT_ONCE)):
        first, last = first or some[0].key, some[-1].key
        kept = [example for example in some if not example.dropped]
        dropped += sum(example.copies for example in some if example.dropped)
        duplicates += sum(example.copies - 1 for example in kept)
        for example, encoded in zip(kept, encoder.encode(kept), strict=True):
            at = example.split, example.source
            if at not in streams:
                streams[at] = _Stream(store, *at, writer, first[:12], encoder.item_bytes, shard_bytes)
            streams[at].add(encoded, len(example.payload))
    for stream in streams.values():
        stream.close()
    done = {name: _split_data([stream for (split, _), stream in streams.items() if split == name]) for name in SPLITS}
    return Part(first=first, last=last, splits=done, dropped=dropped, duplicates=duplicates)


@dataclass
class _Stream:
    """What one writer has of a split, or of one source of it.

    A shard ends before the document that it has no room for, so that it has no small rest beside the windows that it is
    read in (`data.order`); where less than half of another would follow, with the last document.
    """

    store: Store
    split: SplitName
    source: int
    writer: str
    block: str  # first of the writer's keys
    item_bytes: int
    shard_bytes: int
    shards: list[Shard] = field(default_factory=list)
    size: int = 0  # of all payloads
    _data: bytearray = field(default_factory=bytearray)
    _documents: int = 0  # in `_data`
    _full: tuple[int, int] | None = None  # bytes and documents at the beginning of `_data` that make a shard

    def add(self, encoded: bytes, size: int) -> None:
        """Take in a document, whose payload has `size` bytes."""
        if self._full is None and self._data and len(self._data) + len(encoded) > self.shard_bytes:
            self._full = len(self._data), self._documents
        self._data += encoded
        self._documents += 1
        self.size += size
        if self._full is not None and len(self._data) >= self._full[0] + self.shard_bytes // 2:
            self._write(*self._full)

    def close(self) -> None:
        """Write what is left."""
        if self._data:
            self._write(len(self._data), self._documents)

    def _write(self, size: int, documents: int) -> None:
        data = bytes(memoryview(self._data)[:size])
        source = f".{self.source}" if self.source else ""
        key = f"data/{self.split}{source}-{self.writer}-{self.block}.{len(self.shards):03d}.bin"
        self.store.put(key, data)
        self.shards.append(Shard.of(key, data, size // self.item_bytes, documents, self.writer, self.source))
        del self._data[:size]
        self._documents, self._full = self._documents - documents, None


def _split_data(streams: Sequence[_Stream]) -> SplitData:
    shards = [shard for stream in streams for shard in stream.shards]
    documents = sum(shard.documents for shard in shards)
    return SplitData(shards=shards, documents=documents, bytes=sum(stream.size for stream in streams))


def manifest_of(config: TrainerSpec, parts: Iterable[Part], encoder: Encoder) -> Manifest:
    """The manifest of all parts, in the order of their examples (of each source of a mixture).

    Raises `DataError` if cleaning has left nothing.
    """
    every = sorted(parts, key=lambda part: part.first)
    splits: dict[SplitName, SplitData] = {
        name: SplitData(
            shards=sorted((s for part in every for s in part.splits[name].shards), key=lambda shard: shard.source),
            documents=sum(part.splits[name].documents for part in every),
            bytes=sum(part.splits[name].bytes for part in every),
        )
        for name in SPLITS
    }
    if not any(split.documents for split in splits.values()):
        raise no_examples(config)
    cleaned, duplicates = is_cleaned(config), sum(part.duplicates for part in every)
    return Manifest(
        identity_hash=config.identity_hash(),
        splits=splits,
        dropped=sum(part.dropped for part in every) if cleaned else None,
        duplicates=duplicates if cleaned or duplicates else None,
        model_settings=settings_to_begin_with(config),
        **encoder.facts(),
    )


def no_examples(config: TrainerSpec) -> DataError:
    """The error for raw data of which cleaning leaves nothing."""
    return DataError(
        f"Nothing is left of {config.data.train} after cleaning.",
        "Look at the data, and at spec.data.prepare.clean.",
    )


def publish(config: TrainerSpec, store: Store, manifest: Manifest) -> Manifest:
    """Check the data against the configuration and write the manifest: from now on the data is ready.

    Of two that prepare the same data at the same time the first stands; its manifest is returned to both.
    """
    check_limits(config, manifest)
    try:
        store.put(MANIFEST_KEY, manifest.to_json(), if_none_match=True)
        return manifest
    except PreconditionFailed:
        stored, etag = store.get_with_etag(MANIFEST_KEY)
    standing = Manifest.model_validate_json(stored)
    if standing.identity_hash == manifest.identity_hash:
        return standing
    store.put(MANIFEST_KEY, manifest.to_json(), if_match=etag)  # of another run, whose directory this was before
    return manifest
