"""Specs whose task has not the data, the model or the loss that they name; see `bad_specs`."""

from __future__ import annotations

from support.merge_patch import Json, merged

INVALID, REQUIRED, FORBIDDEN = "Invalid value", "Required value", "Forbidden"

_REGRESSION: Json = {
    "task": {"kind": "regression"},
    "data": {"train": {"format": "csv", "features": ["a", "b"]}},
    "model": {"preset": None, "mlp": {}},
}

TASKS: list[tuple[Json, str, str, str]] = [
    (
        merged(_REGRESSION, {"data": {"train": {"format": "text"}}}),
        "data.train.format",
        INVALID,
        "data.train.format is text: regression reads columns, of csv, jsonl or parquet",
    ),
    (
        merged(_REGRESSION, {"data": {"train": {"features": None}}}),
        "data.train.features",
        REQUIRED,
        "data.train.features is required for task.kind regression: name the columns",
    ),
    *(
        (
            merged(_REGRESSION, {"model": {"mlp": None, name: model}}),
            "model",
            FORBIDDEN,
            f"model.{name} is not for task.kind regression: set one of mlp",
        )
        for name, model in (
            ("preset", "gpt-nano"),
            ("transformer", {"layers": 1, "dim": 64, "heads": 4, "context": None}),
        )
    ),
    (
        {"model": {"preset": None, "mlp": {}}},
        "model",
        FORBIDDEN,
        "model.mlp is not for task.kind language-modeling: set one of preset, transformer, rnn, huggingface",
    ),
    *(
        (
            merged(changes, {"task": {"loss": loss}}),
            "task.loss",
            INVALID,
            f"loss {loss} is not for kind {kind}, whose losses are: {allowed}",
        )
        for changes, kind, loss, allowed in (
            ({}, "language-modeling", "mse", "cross-entropy"),
            (_REGRESSION, "regression", "cross-entropy", "mse, mae, huber"),
            (
                {"task": {"kind": "text-classification"}},
                "text-classification",
                "huber",
                "cross-entropy, binary-cross-entropy",
            ),
            (
                {"task": {"kind": "image-classification"}, "data": {"train": {"format": "parquet"}}},
                "image-classification",
                "mae",
                "cross-entropy, binary-cross-entropy",
            ),
            (
                {
                    "task": {"kind": "custom", "custom": {"command": ["true"]}},
                    "data": None,
                    "model": None,
                    "training": None,
                },
                "custom",
                "mse",
                "none",
            ),
        )
    ),
    (
        {"model": {"preset": None, "cnn": {}}},
        "model",
        FORBIDDEN,
        "model.cnn is not for task.kind language-modeling: set one of preset, transformer, rnn, huggingface",
    ),
    (
        {"model": {"preset": None, "rnn": {}}, "task": {"kind": "text-classification"}},
        "model",
        FORBIDDEN,
        "model.rnn is not for task.kind text-classification: set one of preset, transformer, huggingface",
    ),
    (
        {"model": {"preset": None, "timm": {"name": "resnet18"}}},
        "model",
        FORBIDDEN,
        "model.timm is not for task.kind language-modeling: set one of preset, transformer, rnn, huggingface",
    ),
    (
        {
            "model": {"preset": None, "huggingface": {"config": "{}"}},
            "task": {"kind": "image-classification"},
            "data": {"train": {"format": "parquet"}},
        },
        "model",
        FORBIDDEN,
        "model.huggingface is not for task.kind image-classification: set one of preset, transformer, cnn, timm",
    ),
    *(
        (
            {
                "model": {"preset": None, name: model},
                "task": {"kind": "image-classification"},
                "data": {"train": {"format": "parquet"}},
                "training": {"optimizer": {"name": "muon"}},
            },
            "training.optimizer.name",
            INVALID,
            f"training.optimizer.name is muon, which is for matrices in blocks: it is not for model.{name}",
        )
        for name, model in (("cnn", {}), ("timm", {"name": "resnet18"}))
    ),
]
