"""The manifest: names every shard of the prepared data. Written last, so its presence means that the data is ready."""

from __future__ import annotations

import hashlib
import math
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from trainingjob_trainer.config import Config
from trainingjob_trainer.errors import UserError
from trainingjob_trainer.storage import NotFound, Store

try:
    from zlib_ng.zlib_ng import crc32  # eight times as fast as zlib's: 0.02 s of CPU for 1 GiB
except ImportError:  # a machine that has nothing but PyTorch, NumPy and pydantic (`make bench-gpu`)
    from zlib import crc32

MANIFEST_KEY = "data/manifest.json"
TOKENIZER_KEY = "data/tokenizer.json"
LABEL_BYTES = 4  # a row ends with its label, int32 little-endian; with its value, float32; or see `multi_label`
PIECE_BYTES = 2**18  # of a shard, each with a checksum of its own: what a ranged read is rounded to

ITEM_BYTES = {"uint8": 1, "uint16": 2, "uint32": 4, "float32": 4}

SplitName = Literal["train", "validation", "test"]
HELD_OUT: tuple[SplitName, ...] = ("validation", "test")
SPLITS: tuple[SplitName, ...] = ("train", *HELD_OUT)


class Shard(Config):
    """One object of a split: raw little-endian tokens, or rows."""

    key: str
    size: Annotated[int, Field(ge=0, description="Bytes.")]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    pieces: Annotated[str, Field(pattern=r"^([0-9a-f]{8})*$", description="CRC-32 of each 256 KiB, one after another.")]
    count: Annotated[int, Field(ge=0, description="Tokens, or rows.")]
    documents: Annotated[int, Field(ge=0, description="Documents, or rows: whole ones, in tokens closed by EOS.")]
    writer: Annotated[str, Field(description="Pod (or host) that wrote it.")]
    source: Annotated[int, Field(ge=0, description="Of the training split of a mixture: the place of its source.")] = 0

    @classmethod
    def of(cls, key: str, data: bytes, count: int, documents: int, writer: str, source: int = 0) -> Shard:
        """The entry for a shard of these bytes."""
        return cls(
            key=key,
            size=len(data),
            sha256=hashlib.sha256(data).hexdigest(),
            pieces=checksums(data),
            count=count,
            documents=documents,
            writer=writer,
            source=source,
        )

    @model_validator(mode="after")
    def _each_piece_has_a_checksum(self) -> Self:
        if len(self.pieces) != 8 * math.ceil(self.size / PIECE_BYTES):
            raise ValueError(f"{self.key} has {self.size} bytes, and {len(self.pieces) // 8} checksums of pieces")
        return self


def checksums(data: bytes | memoryview) -> str:
    """CRC-32 of each piece of a shard, as the manifest has them."""
    starts = range(0, len(data), PIECE_BYTES)
    return "".join(f"{crc32(data[start : start + PIECE_BYTES]):08x}" for start in starts)


class SplitData(Config):
    """The shards of one split; concatenated in this order they are its stream, or one stream after another of each
    source."""

    shards: list[Shard]
    documents: Annotated[int, Field(ge=0, description="Documents, or images.")]
    bytes: Annotated[int, Field(ge=0, description="UTF-8 bytes of the text, pixel bytes of images.")]

    @property
    def count(self) -> int:
        """Tokens (EOS included), or rows."""
        return sum(shard.count for shard in self.shards)

    def of_source(self, source: int) -> list[Shard]:
        """The shards of one source."""
        return [shard for shard in self.shards if shard.source == source]


class Scale(Config):
    """A column of the training split."""

    mean: float
    deviation: Annotated[float, Field(gt=0, description="Standard deviation; 1 for a column that is constant.")]


class Manifest(Config):
    """What the prepared data is: one stream of tokens, or rows, each a sample: an image or a text and its class, or
    columns of numbers and the value to predict.

    All rows are of one size, so sample i lies at byte i * `item_bytes` of its split. A text's row is EOS (or
    what its tokenizer has texts begin with), its tokens, and EOS to the row's end (see `shape`); the one that would be
    longer is cut.
    """

    version: Literal[2] = 2
    kind: Literal["tokens", "images", "texts", "tables"]
    dtype: Literal["uint8", "uint16", "uint32", "float32"]
    identity_hash: Annotated[str, Field(description="Of the run whose data this is.")] = ""
    splits: dict[SplitName, SplitData]
    vocab_size: int | None = None
    tokenizer_digest: str | None = None
    eos_id: int | None = None
    shape: tuple[int, ...] | None = Field(
        None, description="Of a row: channels, height, width of an image; tokens of a text, padding included; columns."
    )
    classes: list[str] | None = None
    multi_label: bool = Field(False, description="A row ends with a byte for each class, 1 where it has the label.")
    scales: list[Scale] | None = Field(None, description="Of each column and, the last, of the value to predict.")
    dropped: int | None = Field(None, description="Documents that cleaning dropped. Absent: nothing is cleaned.")
    duplicates: int | None = Field(
        None,
        description="Examples that were left out because an equal one is there. Absent: none, uncleaned.",
    )
    model_settings: str | None = Field(
        None, description="config.json of the model that the run begins with, where spec.model leaves it to that."
    )

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.kind in ("tokens", "texts") and None in (self.vocab_size, self.tokenizer_digest, self.eos_id):
            raise ValueError(f"a manifest of {self.kind} needs vocabSize, tokenizerDigest and eosId")
        if self.kind in ("images", "texts") and None in (self.shape, self.classes):
            raise ValueError(f"a manifest of {self.kind} needs shape and classes")
        if self.kind == "tables" and None in (self.shape, self.scales):
            raise ValueError("a manifest of tables needs shape and scales")
        return self

    @property
    def item_bytes(self) -> int:
        """Bytes of one token, or of one row (its numbers, then its label)."""
        size = ITEM_BYTES[self.dtype]
        return size if self.shape is None else math.prod(self.shape) * size + self.label_bytes

    @property
    def label_bytes(self) -> int:
        """Bytes at the end of a row that say what is to be predicted."""
        return len(self.classes or ()) if self.multi_label else LABEL_BYTES

    def num_samples(self, split: SplitName, sequence_length: int, source: int | None = None) -> int:
        """Samples of a split, of all sources or of one: rows, or windows of `sequence_length + 1` tokens of a source's
        stream at stride `sequence_length`."""
        counts = self._streams(split, source)
        return sum(counts) if self.shape is not None else sum(max(0, (n - 1) // sequence_length) for n in counts)

    def tail(self, split: SplitName, sequence_length: int) -> int:
        """Tokens of a split that no sample has, at the end of each source's stream: too few for one more."""
        if self.shape is not None:
            return 0
        return sum((n - 1) % sequence_length if n > sequence_length else n for n in self._streams(split))

    def summary(self, sequence_length: int) -> str:
        """How much there is to train on (in all, and of each source) and to judge by, the vocabulary, which little text
        makes smaller than was asked for, and what of the raw data is not among the training samples."""
        train, validation, test = (self.num_samples(split, sequence_length) for split in SPLITS)
        sources = sorted({shard.source for shard in self.splits["train"].shards})
        each = " + ".join(f"{self.num_samples('train', sequence_length, source):,}" for source in sources)
        of_each = f" ({each}, by source)" if len(sources) > 1 else ""
        vocabulary = f" in a vocabulary of {self.vocab_size:,}" if self.vocab_size else ""
        tail = self.tail("train", sequence_length)
        counts = {"documents dropped": self.dropped, "duplicates": self.duplicates, "tokens at the end": tail}
        left_out = ", ".join(f"{count:,} {what}" for what, count in counts.items() if count)
        samples = f"{train:,} training{of_each}, {validation:,} validation and {test:,} test samples{vocabulary}"
        return samples + (f" (left out: {left_out})" if left_out else "")

    def _streams(self, split: SplitName, source: int | None = None) -> list[int]:
        """Tokens, or rows, of each source's stream of a split, or of one source's."""
        data = self.splits[split]
        sources = {shard.source for shard in data.shards} if source is None else {source}
        return [sum(shard.count for shard in data.of_source(number)) for number in sources]

    def to_json(self) -> bytes:
        """The stored form: camelCase JSON."""
        return self.model_dump_json(by_alias=True, exclude_none=True, indent=1).encode()


def read_tokenizer(manifest: Manifest, store: Store) -> bytes:
    """The stored tokenizer of the prepared data. Raises `UserError` if it is another, or gone."""
    uri = store.uri(TOKENIZER_KEY)
    restore = "Restore it; the run then goes on from its last checkpoint."
    try:
        stored = store.get(TOKENIZER_KEY)
    except NotFound as error:
        raise UserError(f"{uri}, the tokenizer that the data was prepared with, is missing.", restore) from error
    found, expected = hashlib.sha256(stored).hexdigest(), str(manifest.tokenizer_digest)
    if found != expected:
        raise UserError(
            f"{uri} (SHA-256 {found[:12]}) is not the tokenizer that the data was prepared with ({expected[:12]}): "
            "the model would not understand it.",
            restore,
        )
    return stored
