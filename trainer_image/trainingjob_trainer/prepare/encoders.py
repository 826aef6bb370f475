"""From examples to the bytes of shards: what is learnt of the data for that (tokenizer, classes), and what it gives.

Encoders are small and picklable: they travel to the writers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from tokenizers import Tokenizer

from trainingjob_trainer.beginning import source_of
from trainingjob_trainer.checkpoint.commits import check_encoding, latest
from trainingjob_trainer.config import TrainerSpec
from trainingjob_trainer.data.manifest import ITEM_BYTES, LABEL_BYTES, TOKENIZER_KEY, Manifest, Scale
from trainingjob_trainer.errors import DataError
from trainingjob_trainer.prepare import tokenizer as bpe
from trainingjob_trainer.prepare.examples import Example, label_names
from trainingjob_trainer.storage import Store


class Corpus(Protocol):
    """All examples of a job, wherever they are: what an encoder is made from. Each call goes over them anew."""

    def labels(self) -> Iterable[str]:
        """Every label at least once."""

    def shapes(self) -> Iterable[tuple[int, ...]]:
        """Every shape at least once."""

    def training_payloads(self) -> Iterable[bytes]:
        """The payloads of the training split, in the order of their hashes."""


class Encoder(Protocol):
    """Turns examples into the bytes of a shard."""

    @property
    def item_bytes(self) -> int:
        """Bytes of a token or of a row."""

    def encode(self, examples: Sequence[Example]) -> list[bytes]:
        """One byte string for each example."""

    def facts(self) -> dict[str, Any]:
        """The fields of the manifest that say what the bytes mean."""


def make_encoder(store: Store, config: TrainerSpec, corpus: Corpus) -> Encoder:
    """The encoder of a job's data. The tokenizer, trained on the training split only or taken with the weights that
    the run begins with, is stored.

    Raises `UserError` if the run has a checkpoint already, which another one encoded for: nothing is overwritten then.
    """
    encoder = _encoder(config, corpus)
    check_encoding(latest(store), Manifest(splits={}, **encoder.facts()), store)
    if not isinstance(encoder, TableEncoder | ImageEncoder):
        store.put(TOKENIZER_KEY, encoder.tokenizer)
    return encoder


def _encoder(config: TrainerSpec, corpus: Corpus) -> TokenEncoder | TextEncoder | ImageEncoder | TableEncoder:
    kind, multi_label = config.task.kind, config.task.multi_label
    if kind == "regression":
        return TableEncoder(len(config.data.train.features), scales(corpus.training_payloads()))
    if kind == "image-classification":
        return ImageEncoder(Labels.of(corpus.labels(), multi_label), only_shape(corpus.shapes()))
    if config.model.init_from is not None:
        stored, vocab_size, eos_id = source_of(config).tokenizer
    else:
        tokenizer = bpe.train_bpe(corpus.training_payloads(), config.data.prepare.tokenizer.vocab_size)
        stored, vocab_size, eos_id = bpe.to_json(tokenizer), bpe.vocabulary_size(tokenizer), bpe.EOS_ID
    tokens = TokenEncoder(stored, "uint16" if vocab_size <= 2**16 else "uint32", eos_id)
    if kind == "language-modeling":
        return tokens
    labels, closed = Labels.of(corpus.labels(), multi_label), config.model.huggingface is not None
    return TextEncoder(tokens, labels, config.training.sequence_length, closed)


@dataclass(frozen=True)
class TokenEncoder:
    """Documents as little-endian tokens, each closed by EOS."""

    tokenizer: bytes
    dtype: str
    eos_id: int

    @property
    def item_bytes(self) -> int:
        return ITEM_BYTES[self.dtype]

    @cached_property
    def _loaded(self) -> Tokenizer:
        return bpe.load(self.tokenizer)

    def encode(self, examples: Sequence[Example]) -> list[bytes]:
        return [self.stored([*ids, self.eos_id]) for ids in self.token_ids(examples)]

    def token_ids(self, examples: Sequence[Example]) -> list[list[int]]:
        """The tokens of each document."""
        texts = [example.payload.decode() for example in examples]
        return [encoding.ids for encoding in self._loaded.encode_batch_fast(texts, add_special_tokens=False)]

    @cached_property
    def first_id(self) -> int:
        """What a text that stands alone begins with: the tokenizer's mark for that, or EOS."""
        marks = self._loaded.encode("").ids
        return int(marks[0]) if marks else self.eos_id

    def stored(self, ids: Sequence[int]) -> bytes:
        """Tokens as they are stored."""
        return np.asarray(ids, dtype=np.dtype(self.dtype).newbyteorder("<")).tobytes()

    def facts(self) -> dict[str, Any]:
        return {
            "kind": "tokens",
            "dtype": self.dtype,
            "vocab_size": bpe.vocabulary_size(self._loaded),
            "tokenizer_digest": bpe.digest(self.tokenizer),
            "eos_id": self.eos_id,
        }


@dataclass(frozen=True)
class TextEncoder:
    """Texts as rows of `length` tokens: EOS (or what the tokenizer has texts begin with), the text as far as it fits,
    EOS to the end; then the label. closed: one EOS at least, however long the text, as libraries close what they cut.
    """

    tokens: TokenEncoder
    labels: Labels
    length: int
    closed: bool = False

    @property
    def tokenizer(self) -> bytes:
        return self.tokens.tokenizer

    @property
    def item_bytes(self) -> int:
        return self.length * self.tokens.item_bytes + self.labels.item_bytes

    def encode(self, examples: Sequence[Example]) -> list[bytes]:
        eos = self.tokens.eos_id
        first = self.tokens.first_id
        room = self.length - (2 if self.closed else 1)
        padded = ([first, *ids[:room]] for ids in self.tokens.token_ids(examples))
        rows = [self.tokens.stored(row + [eos] * (self.length - len(row))) for row in padded]
        return [row + self.labels.encode(e.label) for row, e in zip(rows, examples, strict=True)]

    def facts(self) -> dict[str, Any]:
        return {**self.tokens.facts(), "kind": "texts", "shape": (self.length,), **self.labels.facts()}


@dataclass(frozen=True)
class ImageEncoder:
    """Images as rows: pixels `[C, H, W]` uint8, then the label."""

    labels: Labels
    shape: tuple[int, int, int]

    @property
    def item_bytes(self) -> int:
        channels, height, width = self.shape
        return channels * height * width + self.labels.item_bytes

    def encode(self, examples: Sequence[Example]) -> list[bytes]:
        return [e.payload + self.labels.encode(e.label) for e in examples]

    def facts(self) -> dict[str, Any]:
        return {"kind": "images", "dtype": "uint8", "shape": self.shape, **self.labels.facts()}


@dataclass(frozen=True)
class TableEncoder:
    """Columns and the value to predict, as they were read: float32."""

    features: int
    scales: list[Scale]

    @property
    def item_bytes(self) -> int:
        return 4 * (self.features + 1)

    def encode(self, examples: Sequence[Example]) -> list[bytes]:
        return [example.payload for example in examples]

    def facts(self) -> dict[str, Any]:
        return {"kind": "tables", "dtype": "float32", "shape": (self.features,), "scales": self.scales}


@dataclass(frozen=True)
class Labels:
    """The end of a row: the label's place among the classes, int32; with `multi_label` a byte for each class."""

    classes: list[str]
    multi_label: bool

    @classmethod
    def of(cls, labels: Iterable[str], multi_label: bool) -> Labels:
        """The classes in their order: numbers by value, names by spelling."""
        every = {name for label in labels for name in label_names(label)} if multi_label else set(labels)
        numbers = all(re.fullmatch(r"-?\d+", label) for label in every)
        return cls(sorted(every, key=(lambda label: (int(label), label)) if numbers else None), multi_label)

    @property
    def item_bytes(self) -> int:
        return len(self.classes) if self.multi_label else LABEL_BYTES

    def encode(self, label: str) -> bytes:
        """What stands at the end of a row with this label."""
        if self.multi_label:
            names = set(label_names(label))
            return bytes(name in names for name in self.classes)
        return np.asarray(self.classes.index(label), dtype="<i4").tobytes()

    def facts(self) -> dict[str, Any]:
        """Fields of the manifest."""
        return {"classes": self.classes, "multi_label": self.multi_label}


def scales(rows: Iterable[bytes]) -> list[Scale]:
    """Mean and standard deviation of each column of rows of float32; the last one is the value to predict."""
    count, mean, squares = 0, np.zeros(1), np.zeros(1)
    for row in rows:  # Welford 1962: sums of squares would lose what is small beside the mean
        values = np.frombuffer(row, dtype="<f4").astype(np.float64)
        count += 1
        before = values - mean
        mean = mean + before / count
        squares = squares + before * (values - mean)
    deviations = np.sqrt(squares / max(count, 1))
    return [Scale(mean=float(m), deviation=float(d) if d > 0 else 1.0) for m, d in zip(mean, deviations, strict=True)]


def only_shape(shapes: Iterable[tuple[int, ...]]) -> tuple[int, int, int]:
    """The one shape `[C, H, W]` that all images must have. Raises `DataError`."""
    different = sorted({tuple(shape) for shape in shapes})
    if len(different) != 1:
        found = " and ".join("x".join(map(str, shape)) for shape in different[:3]) or "none"
        raise DataError(
            f"Images must have one shape (channels x height x width); found {found}.",
            "Bring the images to one size and colour mode before they are uploaded.",
        )
    channels, height, width = different[0]
    return channels, height, width
