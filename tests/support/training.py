"""Small runs for the trainer's tests: data that can be learnt, a model of some thousand weights, and what ranks do."""

from __future__ import annotations

import gzip
import json
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from trainingjob_trainer.checkpoint.commits import Commit, latest
from trainingjob_trainer.config import JobConfig
from trainingjob_trainer.data.manifest import MANIFEST_KEY, SPLITS, TOKENIZER_KEY, Manifest, Shard, SplitData, SplitName
from trainingjob_trainer.errors import Hang
from trainingjob_trainer.prepare import tokenizer
from trainingjob_trainer.standstill import Stand
from trainingjob_trainer.stop import Stop
from trainingjob_trainer.storage import Store, open_store

from support.runs import wait_until

VOCABULARY = 32
SEQUENCE = 16
# Of each kind, with something that is not its default.
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "adamw": {"name": "adamw", "lr": 0.01},
    "adam": {"name": "adam", "lr": 0.01, "weightDecay": 0.1},
    "sgd": {"name": "sgd", "lr": 0.05},
    "nesterov": {"name": "sgd", "lr": 0.05, "nesterov": True, "weightDecay": 0.1},
    "rmsprop": {"name": "rmsprop", "lr": 0.01, "momentum": 0.5},
    "adagrad": {"name": "adagrad", "lr": 0.05},
    "muon": {"name": "muon", "lr": 0.01},
}


def job(directory: Path | str, **changes: Any) -> JobConfig:
    """A tiny deterministic run in `directory`; `changes` replace fields of `training`, or sections of the spec.

    Several ranks share its model (FSDP2). Left to `auto` each would hold a copy, so small it is.
    """
    spec: dict[str, Any] = {
        "name": "tiny",
        "namespace": "default",
        "ranksPerPod": 1,
        "maxRestarts": 3,
        "outputUri": str(directory),
        "storage": {},
        "task": {"kind": "language-modeling"},
        "data": {"train": {"uri": f"{directory}/raw.txt", "format": "text"}},
        "model": {"transformer": {"layers": 2, "dim": 16, "heads": 4, "kvHeads": 2, "ffnDim": 32, "dropout": 0.1}},
        "checkpoint": {"everySteps": 20},
        "evaluation": {"everySteps": 20},
        "training": {
            "steps": 40,
            "globalBatchSize": 10,
            "sequenceLength": SEQUENCE,
            "microBatchSize": 2,
            "precision": "float32",
            "deterministic": True,
            "logEvery": 1,
            "optimizer": {"lr": 1e-3},
            "schedule": {"warmupSteps": 5},
            "clipNorm": 0.5,
            "parallelism": {"fsdp": "full"},
        },
    }
    for name, value in changes.items():
        if name in spec:
            spec[name] = value
        else:
            spec["training"][name] = value
    return JobConfig.model_validate(spec)


def without_dropout() -> dict[str, Any]:
    """The tiny model, for comparisons between world sizes."""
    return {"transformer": {"layers": 2, "dim": 16, "heads": 4, "kvHeads": 2, "ffnDim": 32}}


def store_of(config: JobConfig) -> Store:
    """The run directory."""
    return open_store(config.output_uri, config.storage)


def newest(config: JobConfig) -> Commit:
    """The run's newest checkpoint; there must be one."""
    commit = latest(store_of(config))
    assert commit is not None
    return commit


def contents(commit: Commit) -> dict[str, str]:
    """Checksums of a checkpoint's objects: weights, moments, position, every logged loss and every evaluation.

    The index names keys, which carry the attempt's number; it is the only one that differs between attempts.
    """
    names = {stored.key.removeprefix(commit.prefix): stored.sha256 for stored in commit.objects}
    return {name: digest for name, digest in names.items() if name != "index.json"}


def traces_of(config: JobConfig) -> dict[str, list[dict[str, Any]]]:
    """The events of each of the profiler's traces, by key."""
    store = store_of(config)
    traces = {info.key: json.loads(gzip.decompress(store.get(info.key))) for info in store.list("profiles/")}
    return {key: trace["traceEvents"] for key, trace in traces.items()}


def put_tokens(store: Store, tokens: int = 4000, vocabulary: int = VOCABULARY) -> Manifest:
    """Three splits of one walk in which the next token mostly follows from the last: there is something to learn."""
    random = np.random.default_rng(0)
    walk = [0]
    for noise in random.random(tokens):
        walk.append((walk[-1] * 5 + 3) % vocabulary if noise < 0.9 else int(random.integers(vocabulary)))
    data = np.asarray(walk, dtype="<u2").tobytes()
    splits = {}
    for split in SPLITS:
        shard = Shard.of(f"data/{split}-test-0.bin", data, len(data) // 2, 1, "test")
        store.put(shard.key, data)
        splits[split] = SplitData(shards=[shard], documents=1, bytes=len(data))
    words = WordLevel({f"word{i}": i for i in range(vocabulary)}, unk_token="word0")
    stored = tokenizer.to_json(Tokenizer(words))
    manifest = Manifest(
        kind="tokens",
        dtype="uint16",
        splits=splits,
        vocab_size=vocabulary,
        tokenizer_digest=tokenizer.digest(stored),
        eos_id=0,
    )
    store.put(TOKENIZER_KEY, stored)
    store.put(MANIFEST_KEY, manifest.to_json())
    return manifest


def in_two_shards(store: Store, split: SplitName = "train") -> Manifest:
    """Have the tokens of `put_tokens` for a split in `data/a.bin` and `data/b.bin`, half of them in each."""
    manifest = Manifest.model_validate_json(store.get(MANIFEST_KEY))
    data = store.get(f"data/{split}-test-0.bin")
    parts = {"data/a.bin": data[: len(data) // 2], "data/b.bin": data[len(data) // 2 :]}
    shards = [Shard.of(key, part, len(part) // 2, 1, "test") for key, part in parts.items()]
    for key, part in parts.items():
        store.put(key, part)
    changed = SplitData(shards=shards, documents=2, bytes=len(data))
    manifest = manifest.model_copy(update={"splits": {**manifest.splits, split: changed}})
    store.put(MANIFEST_KEY, manifest.to_json())
    return manifest


def prepared(directory: Path | str, **changes: Any) -> JobConfig:
    """A tiny run whose data is in place."""
    config = job(directory, **changes)
    put_tokens(store_of(config))
    return config


def between_steps() -> bool:
    """Where a hook is asked whether to stop; else in an evaluation."""
    return torch.is_grad_enabled()


class Hooks:
    """Hooks that record, stop after some steps or, of evaluations, passes, or kill the process: no signal handler, no
    finally, nothing runs.

    With a store the kill waits until there is a commit: saves go on in the background.
    """

    def __init__(
        self,
        stop_after: int | None = None,
        kill_after: int | None = None,
        stop: Stop = Stop.NOW,
        store: Store | None = None,
        stop_after_passes: int | None = None,
    ) -> None:
        self.reports: list[Mapping[str, Any]] = []
        self._stop_after, self._kill_after, self._stop, self._asked = stop_after, kill_after, stop, 0
        self._store = store
        self._stop_after_passes, self._passes = stop_after_passes, 0

    def report(self, fields: Mapping[str, Any]) -> None:
        self.reports.append(fields)

    def stop_requested(self) -> Stop:
        steps = between_steps()
        if steps and self._kill_after is not None and self._asked >= self._kill_after:
            if (store := self._store) is not None:
                wait_until("a commit", lambda: latest(store), every=0.01)
            os.kill(os.getpid(), signal.SIGKILL)
        self._asked += steps
        self._passes += not steps
        counted = (self._asked, self._stop_after), (self._passes, self._stop_after_passes)
        return self._stop if any(last is not None and count >= last for count, last in counted) else Stop.NO

    def stands(self, stand: Stand | None) -> None:
        pass

    def hung(self, error: Hang) -> NoReturn:
        os._exit(error.exit_code)
