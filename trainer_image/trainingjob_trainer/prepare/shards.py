"""Write examples as shards, and the manifest that names them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

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
    """What one writer made of one block of the ordered examples: keys of the first and the last, shards by split."""

    first: str
    last: str
    splits: dict[SplitName, SplitData]
    dropped: int
    duplicates: int


@dataclass
class _Open:
    """A stream that is being written: a split, or what is one source's of it."""

    data: bytearray = field(default_factory=bytearray)
    shards: list[Shard] = field(default_factory=list)
    documents: int = 0  # in `data`
    size: int = 0  # of the payloads of all documents so far


def write_shards(
    store: Store, examples: Sequence[Example], encoder: Encoder, writer: str, shard_bytes: int = SHARD_BYTES
) -> Part:
    """Write a block of examples, at least one, in their order, as `data/<split>-<writer>-<first key>.<n>.bin`."""
    block, kept = examples[0].key[:12], [example for example in examples if not example.dropped]
    streams: defaultdict[tuple[SplitName, int], _Open] = defaultdict(_Open)  # by split and source
    for start in range(0, len(kept), ENCODED_AT_ONCE):
        some = kept[start : start + ENCODED_AT_ONCE]
        for example, encoded in zip(some, encoder.encode(some), strict=True):
            stream = streams[example.split, example.source]
            stream.data += encoded
            stream.documents += 1
            stream.size += len(example.payload)
            if len(stream.data) >= shard_bytes:
                _flush(store, example.split, example.source, stream, encoder.item_bytes, writer, block)
    for (name, source), stream in streams.items():
        _flush(store, name, source, stream, encoder.item_bytes, writer, block)
    done = {name: _split_data([s for (split, _), s in streams.items() if split == name]) for name in SPLITS}
    return Part(
        first=examples[0].key,
        last=examples[-1].key,
        splits=done,
        dropped=sum(example.copies for example in examples if example.dropped),
        duplicates=sum(example.copies - 1 for example in kept),
    )


def _flush(store: Store, name: SplitName, source: int, stream: _Open, item_bytes: int, writer: str, block: str) -> None:
    if not stream.data:
        return
    data = bytes(stream.data)
    key = f"data/{name}{f'.{source}' if source else ''}-{writer}-{block}.{len(stream.shards):03d}.bin"
    store.put(key, data)
    stream.shards.append(Shard.of(key, data, len(data) // item_bytes, stream.documents, writer, source))
    stream.data.clear()
    stream.documents = 0


def _split_data(streams: Sequence[_Open]) -> SplitData:
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
    cleaned = is_cleaned(config)
    return Manifest(
        identity_hash=config.identity_hash(),
        splits=splits,
        dropped=sum(part.dropped for part in every) if cleaned else None,
        duplicates=sum(part.duplicates for part in every) if cleaned else None,
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
