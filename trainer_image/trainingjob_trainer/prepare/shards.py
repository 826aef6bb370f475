"""Write examples as shards, and the manifest that names them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import numpy as np
from tokenizers import Tokenizer

from trainingjob_trainer.config import Config, TrainerSpec
from trainingjob_trainer.data.manifest import MANIFEST_KEY, SPLITS, TOKENIZER_KEY, Manifest, Shard, SplitData, SplitName
from trainingjob_trainer.errors import DataError
from trainingjob_trainer.prepare import tokenizer as bpe
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


class Encoder(Protocol):
    """Turns examples into the bytes of a shard. Small and picklable: it travels to the writers."""

    @property
    def item_bytes(self) -> int:
        """Bytes of a token or of an image row."""

    def encode(self, examples: Sequence[Example]) -> list[bytes]:
        """One byte string for each example."""


@dataclass(frozen=True)
class TokenEncoder:
    """Documents as little-endian tokens, each closed by EOS."""

    tokenizer: bytes
    dtype: str
    eos_id: int

    @property
    def item_bytes(self) -> int:
        return np.dtype(self.dtype).itemsize

    @cached_property
    def _loaded(self) -> Tokenizer:
        return bpe.load(self.tokenizer)

    def encode(self, examples: Sequence[Example]) -> list[bytes]:
        encodings = self._loaded.encode_batch_fast([e.payload.decode() for e in examples], add_special_tokens=False)
        dtype = np.dtype(self.dtype).newbyteorder("<")
        return [np.asarray([*encoding.ids, self.eos_id], dtype=dtype).tobytes() for encoding in encodings]


@dataclass(frozen=True)
class ImageEncoder:
    """Images as rows: pixels `[C, H, W]` uint8, then the label's place among the classes, int32 little-endian."""

    classes: list[str]
    item_bytes: int

    def encode(self, examples: Sequence[Example]) -> list[bytes]:
        return [e.payload + np.asarray(self.classes.index(e.label), dtype="<i4").tobytes() for e in examples]


@dataclass
class _Open:
    """A split that is being written."""

    data: bytearray = field(default_factory=bytearray)
    shards: list[Shard] = field(default_factory=list)
    documents: int = 0
    size: int = 0


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
    done = {name: SplitData(shards=s.shards, documents=s.documents, bytes=s.size) for name, s in splits.items()}
    return Part(first=examples[0].key, last=examples[-1].key, splits=done)


def _flush(store: Store, name: SplitName, split: _Open, item_bytes: int, writer: str, block: str) -> None:
    if not split.data:
        return
    data = bytes(split.data)
    key = f"data/{name}-{writer}-{block}.{len(split.shards):03d}.bin"
    store.put(key, data)
    sha256 = hashlib.sha256(data).hexdigest()
    split.shards.append(Shard(key=key, size=len(data), sha256=sha256, count=len(data) // item_bytes, writer=writer))
    split.data.clear()


def token_encoder(store: Store, config: TrainerSpec, training_documents: Iterable[bytes]) -> TokenEncoder:
    """Train the tokenizer on the training documents, in the order of their hashes, and store it."""
    tokenizer = bpe.train_bpe(training_documents, config.data.prepare.tokenizer.vocab_size)
    stored = bpe.to_json(tokenizer)
    store.put(TOKENIZER_KEY, stored)
    dtype = "uint16" if tokenizer.get_vocab_size() <= 2**16 else "uint32"
    return TokenEncoder(stored, dtype, bpe.EOS_ID)


def image_encoder(
    labels: Iterable[str], shapes: Iterable[tuple[int, ...]]
) -> tuple[ImageEncoder, tuple[int, int, int]]:
    """The encoder for these labels, and the one shape `[C, H, W]` that all images must have. Raises `DataError`."""
    different = sorted({tuple(shape) for shape in shapes})
    if len(different) != 1:
        found = " and ".join("x".join(map(str, shape)) for shape in different[:3]) or "none"
        raise DataError(
            f"Images must have one shape (channels x height x width); found {found}.",
            "Bring the images to one size and colour mode before they are uploaded.",
        )
    channels, height, width = different[0]
    every = set(labels)
    classes = sorted(every, key=int) if all(label.lstrip("-").isdecimal() for label in every) else sorted(every)
    return ImageEncoder(classes, channels * height * width + 4), (channels, height, width)


def manifest_of(
    config: TrainerSpec, parts: Iterable[Part], encoder: TokenEncoder | ImageEncoder, shape: tuple[int, int, int] | None
) -> Manifest:
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
    if isinstance(encoder, ImageEncoder):
        return Manifest(
            kind="images",
            dtype="uint8",
            identity_hash=config.identity_hash(),
            splits=splits,
            shape=shape,
            classes=encoder.classes,
        )
    return Manifest(
        kind="tokens",
        dtype="uint16" if encoder.dtype == "uint16" else "uint32",
        identity_hash=config.identity_hash(),
        splits=splits,
        vocab_size=bpe.load(encoder.tokenizer).get_vocab_size(),
        tokenizer_digest=bpe.digest(encoder.tokenizer),
        eos_id=encoder.eos_id,
    )


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
