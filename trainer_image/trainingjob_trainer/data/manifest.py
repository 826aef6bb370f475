"""The manifest: names every shard of the prepared data. Written last, so its presence means that the data is ready."""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from trainingjob_trainer.config import Config

MANIFEST_KEY = "data/manifest.json"
TOKENIZER_KEY = "data/tokenizer.json"
LABEL_BYTES = 4  # an image row ends with its label, int32 little-endian

SplitName = Literal["train", "validation", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "validation", "test")


class Shard(Config):
    """One object of a split: raw little-endian tokens, or image rows."""

    key: str
    size: Annotated[int, Field(ge=0, description="Bytes.")]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    count: Annotated[int, Field(ge=0, description="Tokens, or images.")]
    writer: Annotated[str, Field(description="Pod (or host) that wrote it.")]


class SplitData(Config):
    """The shards of one split; concatenated in this order they are its stream."""

    shards: list[Shard]
    documents: Annotated[int, Field(ge=0, description="Documents, or images.")]
    bytes: Annotated[int, Field(ge=0, description="UTF-8 bytes of the text (tokens), pixel bytes (images).")]

    @property
    def count(self) -> int:
        """Tokens (EOS included), or images."""
        return sum(shard.count for shard in self.shards)


class Manifest(Config):
    """What the prepared data is: tokens of a vocabulary, or images of one shape and their classes."""

    version: Literal[1] = 1
    kind: Literal["tokens", "images"]
    dtype: Literal["uint8", "uint16", "uint32"]
    identity_hash: Annotated[str, Field(description="Of the run whose data this is.")] = ""
    splits: dict[SplitName, SplitData]
    vocab_size: int | None = None
    tokenizer_digest: str | None = None
    eos_id: int | None = None
    shape: tuple[int, int, int] | None = Field(None, description="Channels, height, width.")
    classes: list[str] | None = None

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.kind == "tokens" and None in (self.vocab_size, self.tokenizer_digest, self.eos_id):
            raise ValueError("a manifest of tokens needs vocabSize, tokenizerDigest and eosId")
        if self.kind == "images" and None in (self.shape, self.classes):
            raise ValueError("a manifest of images needs shape and classes")
        return self

    @property
    def item_bytes(self) -> int:
        """Bytes of one token, or of one image row (pixels, then label)."""
        if self.shape is not None:
            return math.prod(self.shape) + LABEL_BYTES
        return 2 if self.dtype == "uint16" else 4

    def num_samples(self, split: SplitName, sequence_length: int) -> int:
        """Samples of a split: images, or windows of `sequence_length + 1` tokens at stride `sequence_length`."""
        count = self.splits[split].count
        return count if self.kind == "images" else max(0, (count - 1) // sequence_length)

    def to_json(self) -> bytes:
        """The stored form: camelCase JSON."""
        return self.model_dump_json(by_alias=True, exclude_none=True, indent=1).encode()
