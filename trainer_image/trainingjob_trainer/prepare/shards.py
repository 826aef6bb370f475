"""Write examples as shards, and the manifest that names them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from trainingjob_trainer.config import Config, TrainerSpec
from trainingjob_trainer.data.manifest import MANIFEST_KEY, SPLITS, Manifest, Shard, SplitData, SplitName
from trainingjob_trainer.errors import DataError
from trainingjob_trainer.prepare.encoders import Encoder
from trainingjob_trainer.prepare.examples import Example
from trainingjob_trainer.prepare.limits import check_limits
from trainingjob_trainer.storage import PreconditionFailed, Store

SHARD_BYTES = 64 * 2**20
ENCODED_AT_ONCE = 256  # documents


class Part(Config):
    """What one writer made of one block of the ordered examples: keys of the first and the last, shards by split."""

    first: str
    last: str
    splits: dict[SplitName, SplitData]


@dataclass
class _Open:
    """A split that is being written."""

    data: bytearray = field(default_factory=bytearray)
    shards: list[Shard] = field(default_factory=list)
    documents: int = 0  # in `data`
    size: int = 0  # of the payloads of all documents so far


def write_shards(
    store: Store, examples: Sequence[Example], encoder: Encoder, writer: str, shard_bytes: int = SHARD_BYTES
) -> Part:
    """Write a block of examples, at least one, in their order, as `data/<split>-<writer>-<first key>.<n>.bin`."""
    block = examples[0].key[:12]
    splits: dict[SplitName, _Open] = {name: _Open() for name in SPLITS}
    for start in range(0, len(examples), ENCODED_AT_ONCE):
        some = examples[start : start + ENCODED_AT_ONCE]
        for example, encoded in zip(some, encoder.encode(some), strict=True):
            split = splits[example.split]
            split.data += encoded
            split.documents += 1
            split.size += len(example.payload)
            if len(split.data) >= shard_bytes:
                _flush(store, example.split, split, encoder.item_bytes, writer, block)
    for name, split in splits.items():
        _flush(store, name, split, encoder.item_bytes, writer, block)
    done = {
        name: SplitData(shards=s.shards, documents=sum(shard.documents for shard in s.shards), bytes=s.size)
        for name, s in splits.items()
    }
    return Part(first=examples[0].key, last=examples[-1].key, splits=done)


def _flush(store: Store, name: SplitName, split: _Open, item_bytes: int, writer: str, block: str) -> None:
    if not split.data:
        return
    data = bytes(split.data)
    key = f"data/{name}-{writer}-{block}.{len(split.shards):03d}.bin"
    store.put(key, data)
    split.shards.append(Shard.of(key, data, len(data) // item_bytes, split.documents, writer))
    split.data.clear()
    split.documents = 0


def manifest_of(config: TrainerSpec, parts: Iterable[Part], encoder: Encoder) -> Manifest:
    """The manifest of all parts, in the order of their examples."""
    every = sorted(parts, key=lambda part: part.first)
    splits: dict[SplitName, SplitData] = {
        name: SplitData(
            shards=[shard for part in every for shard in part.splits[name].shards],
            documents=sum(part.splits[name].documents for part in every),
            bytes=sum(part.splits[name].bytes for part in every),
        )
        for name in SPLITS
    }
    return Manifest(identity_hash=config.identity_hash(), splits=splits, **encoder.facts())


def no_examples(config: TrainerSpec) -> DataError:
    """The error for raw data of which cleaning leaves nothing."""
    return DataError(
        f"Nothing is left of {config.data.train.uri} after cleaning.",
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
