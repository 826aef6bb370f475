"""The data and how it is prepared."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from trainingjob_trainer.config.base import Config, Name, Quantity, Uri

# Of the order that data/order.py gives. Part of a run's identity: no run goes on in another order than it began in.
ORDER_VERSION = 5


class Component(Config):
    """One source of a mixture."""

    name: Annotated[str, Field(max_length=40, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")] = Field(
        description="What reports call it."
    )
    uri: Uri = Field(description="Raw data: object, prefix ending in '/', or glob.")
    weight: Annotated[int, Field(ge=1, le=1000)] = Field(
        description="Of as many training samples as the sum of all weights, so many are of this source."
    )


class Source(Config):
    """Raw data: one object, all objects below a prefix, or a glob; or several of them, weighted."""

    uri: Uri | None = Field(
        None, description="Object, prefix ending in '/', or glob. `.gz` and `.zst` JSONL and text are decompressed."
    )
    mixture: Annotated[list[Component], Field(min_length=2, max_length=32)] | None = Field(
        None,
        description="Several sources in place of `uri`, in the same format. Held-out fractions and the tokenizer are "
        "of all of them, unweighted; of equal documents the source that comes first keeps its own (language-modeling).",
    )
    format: Literal["jsonl", "text", "parquet", "csv"] = Field(
        "jsonl",
        description="jsonl: one JSON object a line; text: one document a file; parquet: one row an example; csv: "
        "names, then one example a line.",
    )
    field: Name = Field("text", description="Field or column that holds the text.")
    image_field: Name = Field("image", description="Column of encoded images, PNG or JPEG (image-classification).")
    label_field: Name = Field(
        "label",
        description="Field of integer or string labels (classification), or of the number to predict (regression).",
    )
    features: Annotated[list[Name], Field(max_length=1024)] = Field(
        default_factory=list, description="Columns of numbers to predict from (regression)."
    )

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if (self.uri is None) == (self.mixture is None):
            raise ValueError(
                f"exactly one of uri and mixture must be set, not {'none' if self.uri is None else 'both'}"
            )
        names = [component.name for component in self.mixture or ()]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"mixture has the name {twice[0]} more than once: names must differ")
        return self

    @property
    def uris(self) -> list[str]:
        """Of each source."""
        return [component.uri for component in self.mixture] if self.mixture else [str(self.uri)]

    @property
    def weights(self) -> list[int]:
        """Of each source."""
        return [component.weight for component in self.mixture] if self.mixture else [1]

    def __str__(self) -> str:
        if not self.mixture:
            return str(self.uri)
        return ", ".join(f"{component.uri} (weight {component.weight})" for component in self.mixture)


class Split(Config):
    """A held-out split: a fraction of the training data, cut by content hash, or data of its own."""

    fraction: Annotated[float, Field(gt=0, le=0.5)] | None = Field(None, description="Share of the training documents.")
    uri: Uri | None = Field(None, description="Raw data of its own, in the format of `train`.")

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if (self.fraction is None) == (self.uri is None):
            how_many = "none" if self.uri is None else "both"
            raise ValueError(f"exactly one of fraction and uri must be set, not {how_many}")
        return self


class Tokenizer(Config):
    """The tokenizer, trained on the training documents only."""

    train: Literal["bpe"] = Field("bpe", description="bpe: byte-level byte-pair encoding.")
    vocab_size: Annotated[int, Field(ge=257, le=1_000_000)] = Field(32_000, description="Entries, EOS included.")


class Clean(Config):
    """What becomes of raw documents before they are split and tokenized."""

    normalize: bool = Field(
        True, description="Unicode NFC, line ends to \\n, control characters removed, ends stripped."
    )
    min_chars: Annotated[int, Field(ge=0, le=1_000_000)] = Field(1, description="Shorter documents are dropped.")
    max_chars: Annotated[int, Field(ge=1, le=1_000_000_000)] = Field(
        10_000_000, description="Longer documents are cut to this length."
    )
    deduplicate: bool = Field(True, description="Of documents with equal content one is kept.")

    @model_validator(mode="after")
    def _min_below_max(self) -> Self:
        if self.min_chars > self.max_chars:
            raise ValueError(f"minChars ({self.min_chars}) must not be above maxChars ({self.max_chars})")
        return self


class Prepare(Config):
    """How raw data becomes shards: Ray Data on CPU-only pods, before a GPU is asked for."""

    replicas: Annotated[int, Field(ge=1, le=256)] = Field(1, description="Pods that prepare the data.")
    cpu: Quantity = Field("1", description="CPU request and limit of a prepare pod.")
    memory: Quantity = Field("4Gi", description="Memory request and limit of a prepare pod.")
    tokenizer: Tokenizer = Field(default_factory=Tokenizer, description="Tokenizer of text.")
    clean: Clean = Field(default_factory=Clean, description="Cleaning of text.")


class Augmentation(Config):
    """Random changes of training images, other ones each time that an image is seen."""

    horizontal_flip: Annotated[float, Field(ge=0, le=1)] = Field(
        0.0, description="Chance that an image is mirrored, left to right."
    )
    shift: Annotated[int, Field(ge=0, le=4096)] = Field(
        0, description="Pixels by which an image is moved at most, along each side; what is moved in is black."
    )
    brightness: Annotated[float, Field(ge=0, le=1)] = Field(
        0.0, description="All pixels of an image are multiplied by one number of 1 - brightness to 1 + brightness."
    )
    contrast: Annotated[float, Field(ge=0, le=1)] = Field(
        0.0,
        description="How far an image's pixels are from their mean is multiplied by one number of 1 - contrast to 1 + "
        "contrast.",
    )
    erase: Annotated[float, Field(ge=0, le=1)] = Field(
        0.0, description="Chance that a rectangle is made grey, whose sides are an eighth to a half of the image's."
    )

    def __str__(self) -> str:
        return ", ".join(f"{name} {value:g}" for name, value in self.asked().items()) or "none"


class Data(Config):
    """The data: raw in S3, three splits."""

    train: Source = Field(description="Training data.")
    validation: Split = Field(default_factory=lambda: Split(fraction=0.01), description="Watched while training.")
    test: Split = Field(default_factory=lambda: Split(fraction=0.01), description="Held out until training is over.")
    prepare: Prepare = Field(default_factory=Prepare, description="Preparation.")
    packing: bool = Field(
        False,
        description="Documents share samples without seeing each other: attention stays within a document, and its "
        "first token is not predicted from the document before (language-modeling).",
    )
    augmentation: Augmentation | None = Field(
        None, description="Random changes of training images (image-classification). Absent: none."
    )
    on_corrupt: Literal["fail", "skip"] = Field(
        "fail", description="Where prepared data is missing or corrupt. skip: its samples are left out and counted."
    )

    @model_validator(mode="after")
    def _training_data_remains(self) -> Self:
        validation, test = self.validation.fraction or 0.0, self.test.fraction or 0.0
        if validation + test >= 1:
            raise ValueError(
                f"validation.fraction ({validation:.2f}) and test.fraction ({test:.2f}) leave nothing to train on: "
                "their sum must be below 1"
            )
        return self
