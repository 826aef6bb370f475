"""Specs whose data is not as it must be; see `bad_specs`."""

from __future__ import annotations

from typing import Any

from support.merge_patch import Json

INVALID, FORBIDDEN = "Invalid value", "Forbidden"


def _mixture(*names: str, **source: Any) -> Json:
    mixture = [{"name": name, "uri": f"s3://corpus/{name}/", "weight": 1} for name in names]
    return {"data": {"train": {"uri": None, "mixture": mixture, **source}}}


DATA: list[tuple[Json, str, str, str]] = [
    (
        {"model": {"preset": None, "rnn": {}}, "data": {"packing": True}},
        "data.packing",
        FORBIDDEN,
        "data.packing is not for model.rnn, whose state goes from document to document: remove it",
    ),
    (
        {"model": {"preset": None, "huggingface": {"config": "{}"}}, "data": {"packing": True}},
        "data.packing",
        FORBIDDEN,
        "data.packing is not for model.huggingface: remove it",
    ),
    (
        {"task": {"kind": "text-classification"}, "data": {"packing": True}},
        "data.packing",
        FORBIDDEN,
        "data.packing is not for task.kind text-classification, whose samples are apart: remove it",
    ),
    (
        {"data": {"augmentation": {"horizontalFlip": 0.5}}},
        "data.augmentation",
        FORBIDDEN,
        "data.augmentation is not for task.kind language-modeling, whose samples are no images: remove it",
    ),
    (
        {"task": {"kind": "image-classification"}},
        "data.train.format",
        INVALID,
        "data.train.format is jsonl: image-classification reads parquet, with a column of encoded images",
    ),
    (
        {"task": {"kind": "text-classification"}, "data": {"train": {"format": "text"}}},
        "data.train.format",
        INVALID,
        "data.train.format is text: text-classification reads jsonl, csv or parquet, with labels",
    ),
    (
        {"data": {"train": {"uri": None}}},
        "data.train",
        INVALID,
        "exactly one of uri and mixture must be set, not none",
    ),
    (
        _mixture("web", "code", uri="s3://corpus/raw/"),
        "data.train",
        INVALID,
        "exactly one of uri and mixture must be set, not both",
    ),
    (
        _mixture("web", "code", "web"),
        "data.train.mixture",
        INVALID,
        "mixture has the name web more than once: names must differ",
    ),
    (
        {"task": {"kind": "text-classification"}, **_mixture("web", "code")},
        "data.train.mixture",
        FORBIDDEN,
        "data.train.mixture is not for task.kind text-classification: give one uri",
    ),
    (
        {"training": {"steps": None, "epochs": 2}, **_mixture("web", "code")},
        "training.epochs",
        FORBIDDEN,
        "training.epochs is not for data.train.mixture, each source of which has epochs of its own: give steps or "
        "tokens",
    ),
]

DATA_BY_SCHEMA: list[tuple[Json, str]] = [
    (_mixture("web"), "spec.data.train.mixture in body should have at least 2 items"),
    (
        {"data": {"augmentation": {"horizontalFlip": 1.5}}},
        "spec.data.augmentation.horizontalFlip in body should be less than or equal to 1",
    ),
    (
        {"data": {"augmentation": {"shift": -1}}},
        "spec.data.augmentation.shift in body should be greater than or equal to 0",
    ),
    (_mixture("web", "Code"), 'spec.data.train.mixture[1].name: Invalid value: "Code"'),
]
