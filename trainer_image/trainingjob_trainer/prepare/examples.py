"""From records to examples: cleaned, hashed, and put into a split.

A document's split and its place in the stream follow from the SHA-256 of its cleaned content alone. So neither the
order of the source, nor the number of writers, nor documents added later move an example from one split to another,
and the prepared stream is the same however many pods wrote it.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import struct
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from trainingjob_trainer.config import Clean, Split, TrainerSpec
from trainingjob_trainer.data.manifest import LABEL_BYTES, SplitName
from trainingjob_trainer.errors import DataError
from trainingjob_trainer.prepare.source import RawObject, list_objects, records

HELD_OUT_FIRST: dict[str, int] = {"test": 0, "validation": 1, "train": 2}


@dataclass(frozen=True, slots=True)
class Example:
    """A document (`payload`: UTF-8; `label` if it has a class), an image (`payload`: uint8 pixels `[C, H, W]`, with
    `label` and `shape`) or a row of a table (`payload`: float32 columns, then the value to predict)."""

    key: str  # SHA-256 of the content, hex: of what a model is given, not of the label or value that it is to predict
    split: SplitName
    payload: bytes
    label: str = ""
    shape: tuple[int, ...] = ()
    source: int = 0  # of a mixture's training documents
    copies: int = 1  # equal ones that this one is kept of
    dropped: bool = False  # by cleaning: it is there to be counted, and has no payload

    @property
    def rank(self) -> tuple[str, int, int, str, bytes]:
        """The place in the order; of equal contents the held-out one comes first, so that training never sees it."""
        return self.key, HELD_OUT_FIRST[self.split], self.source, self.label, self.payload


def raw_objects(config: TrainerSpec) -> list[tuple[SplitName, RawObject]]:
    """Every raw object of a job, with the split that its data belongs to (`train`: or is cut out of)."""
    found: list[tuple[SplitName, RawObject]] = [
        ("train", raw)
        for source, uri in enumerate(config.data.train.uris)
        for raw in list_objects(uri, config.storage, source)
    ]
    if config.data.validation.uri:
        found += [("validation", raw) for raw in list_objects(config.data.validation.uri, config.storage)]
    if config.data.test.uri:
        found += [("test", raw) for raw in list_objects(config.data.test.uri, config.storage)]
    return found


def first_shape(config: TrainerSpec) -> tuple[int, ...]:
    """That of the first image: all must have the same."""
    shapes = (e.shape for split, raw in raw_objects(config) for e in read_examples(config, split, raw))
    return next(shapes, (3, 224, 224))  # that there is none is said elsewhere


def read_examples(config: TrainerSpec, split: SplitName, raw: RawObject) -> Iterator[Example]:
    """The examples of one raw object, in its order. Raises `DataError` or `UserError` naming object and field."""
    if config.task.kind == "image-classification":
        yield from _images(config, split, raw)
    elif config.task.kind == "regression":
        yield from _rows(config, split, raw)
    else:
        yield from _documents(config, split, raw)


def _documents(config: TrainerSpec, split: SplitName, raw: RawObject) -> Iterator[Example]:
    """Texts, with a label beside each if that is the task. Equal texts share a split, whatever their labels."""
    source = config.data.train
    labelled = config.task.kind == "text-classification"
    fields = [source.field, source.label_field] if labelled else [source.field]
    for record in records(raw, source, fields, config.storage):
        found = _text(record, source.field, raw)
        text = clean_text(found, config.data.prepare.clean)
        payload = (found if text is None else text).encode()
        key = hashlib.sha256(payload).hexdigest()
        into = _split_of(key, split, config)
        of = raw.source if into == "train" else 0
        if text is None:
            yield Example(key, into, b"", source=of, dropped=True)
        else:
            label = _label(record[source.label_field], config, raw) if labelled else ""
            yield Example(key, into, payload, label, source=of)


def _images(config: TrainerSpec, split: SplitName, raw: RawObject) -> Iterator[Example]:
    """Pictures with their labels. Equal pictures share a split, whatever their labels; all of them are kept."""
    source = config.data.train
    for record in records(raw, source, [source.image_field, source.label_field], config.storage):
        pixels, shape = decode_image(record[source.image_field], source.image_field, raw)
        label = _label(record[source.label_field], config, raw)
        key = hashlib.sha256(pixels).hexdigest()
        yield Example(key, _split_of(key, split, config), pixels, label, shape)


def _rows(config: TrainerSpec, split: SplitName, raw: RawObject) -> Iterator[Example]:
    """Rows of a table. Those with equal features share a split, whatever their values: where something was measured
    twice, a model that remembers the one measurement would pass for one that foretells the other."""
    source = config.data.train
    fields = [*source.features, source.label_field]
    for record in records(raw, source, fields, config.storage):
        payload = struct.pack(f"<{len(fields)}f", *(_number(record[field], field, raw) for field in fields))
        key = hashlib.sha256(payload[:-LABEL_BYTES]).hexdigest()
        yield Example(key, _split_of(key, split, config), payload)


def arrange(examples: Iterable[Example], config: TrainerSpec) -> list[Example]:
    """Examples in the order of their content's hash; of equal documents one is kept, if the configuration says so.

    Of equal examples in two splits, where these have data of their own, those that are held out are kept. What cleaning
    has dropped stays among them, to be counted by whoever writes them.
    """
    ordered = sorted(examples, key=lambda example: example.rank)
    one_of_each = is_cleaned(config) and config.data.prepare.clean.deduplicate
    kept = []
    for _, group in groupby(ordered, key=lambda example: example.key):
        first, *others = group
        same = [] if one_of_each else [example for example in others if example.split == first.split]
        kept += [replace(first, copies=1 + len(others) - len(same)), *same]
    return kept


def is_cleaned(config: TrainerSpec) -> bool:
    """Whether examples are documents, which cleaning may drop."""
    return config.task.kind in ("language-modeling", "text-classification")


def clean_text(text: str, clean: Clean) -> str | None:
    """The document as it is trained on, or None when it is dropped (see `config.Clean`)."""
    if clean.normalize:
        text = unicodedata.normalize("NFC", text.replace("\r\n", "\n").replace("\r", "\n"))
        text = "".join(c for c in text if c in "\n\t" or unicodedata.category(c) != "Cc").strip()
    text = text[: clean.max_chars]
    return text if len(text) >= clean.min_chars else None


def split_of(key: str, validation: float, test: float) -> SplitName:
    """The split of a content hash: its first 64 bits as a number in [0, 1), against the fractions."""
    place = int(key[:16], 16) / 2.0**64
    if place < test:
        return "test"
    return "validation" if place < test + validation else "train"


def decode_image(value: Any, field: str, raw: RawObject) -> tuple[bytes, tuple[int, int, int]]:
    """Pixels `[C, H, W]` uint8 and shape of an encoded image: bytes, or a dictionary that holds them as `bytes`.

    Grey images have one channel, all others three.
    """
    import numpy as np
    from PIL import Image, UnidentifiedImageError

    encoded = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(encoded, bytes):
        raise DataError(
            f"{raw.uri} has a {type(encoded).__name__} in {field!r} where an encoded image was expected.",
            "Store PNG or JPEG files as bytes, or as {bytes, path}.",
        )
    try:
        image = Image.open(io.BytesIO(encoded))
        if image.mode[0] in "IF":  # Pillow would cut them off at 255
            raise DataError(
                f"{raw.uri} has an image in {field!r} with more than 8 bits a channel (mode {image.mode}).",
                "Scale the images to 8 bits, as their values ask for, before they are uploaded.",
            )
        pixels = np.asarray(image.convert("L" if image.mode in ("1", "L", "LA") else "RGB"))
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError) as error:
        raise DataError(
            f"{raw.uri} has an image in {field!r} that cannot be decoded: {error}.", "Replace it."
        ) from error
    planes = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    return planes.tobytes(), (planes.shape[0], planes.shape[1], planes.shape[2])


def _split_of(key: str, split: SplitName, config: TrainerSpec) -> SplitName:
    return split_of(key, _fraction(config.data.validation), _fraction(config.data.test)) if split == "train" else split


def _fraction(split: Split) -> float:
    return split.fraction or 0.0


def _text(record: dict[str, Any], field: str, raw: RawObject) -> str:
    value = record[field]
    if not isinstance(value, str):
        raise DataError(f"{raw.uri} has {value!r:.50} in {field!r} where text was expected.", "Correct it.")
    return value


def _label(value: Any, config: TrainerSpec, raw: RawObject) -> str:
    """A label as text; of a multi-label task all of them, as `label_names` reads them."""
    several = config.task.multi_label
    values = value if several and isinstance(value, list) else [value]
    for one in values:
        if not isinstance(one, int | str):
            wanted = "labels (a list of integers or strings)" if several else "a label (integer or string)"
            field = config.data.train.label_field
            raise DataError(
                f"{raw.uri} has {one!r:.50} in {field!r} where {wanted} was expected.",
                "Correct it, or set spec.task.loss to binary-cross-entropy for lists of labels.",
            )
    return json.dumps(sorted({str(one) for one in values})) if several else str(value)


def label_names(label: str) -> list[str]:
    """The labels of an example of a multi-label task."""
    names: list[str] = json.loads(label)
    return names


def _number(value: Any, field: str, raw: RawObject) -> float:
    try:
        number = float(value)
        if not math.isfinite(struct.unpack("<f", struct.pack("<f", number))[0]):
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        raise DataError(
            f"{raw.uri} has {value!r:.100} in {field!r} where a finite number was expected.",
            "Correct it, leave the row out, or take the column out of spec.data.train.features.",
        ) from None
    return number
