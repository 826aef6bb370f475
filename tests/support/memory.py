"""Runs that take memory, each of another kind of model, and what a rank of theirs is seen to take."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
import torch
from trainingjob_trainer.checkpoint.attempt import Attempt
from trainingjob_trainer.config import JobConfig
from trainingjob_trainer.data.manifest import MANIFEST_KEY, SPLITS, Manifest, Shard
from trainingjob_trainer.loop import train

from support.training import Hooks, job, put_tokens, store_of

M_MMAP_THRESHOLD = -3  # of malloc.h
MILD = {"steps": 3, "microBatchSize": "auto", "deterministic": False, "parallelism": {}}
OFTEN = {"checkpoint": {"everySteps": 2}, "evaluation": {"everySteps": 2, "maxSamples": 2}}


def texts(directory: Path, model: dict[str, Any], vocabulary: int = 8000, **training: Any) -> JobConfig:
    """A language model's run, its data in place."""
    changes = {**MILD, **OFTEN, "globalBatchSize": 2, "sequenceLength": 128, **training}
    config = job(directory, model=model, **changes)
    put_tokens(store_of(config), 10_000, vocabulary)
    return config


def images(directory: Path, model: dict[str, Any], shape: tuple[int, int, int], **training: Any) -> JobConfig:
    """A classifier's of images."""
    data = {"train": {"uri": "/raw", "format": "parquet"}}
    changes = {**MILD, **OFTEN, "task": {"kind": "image-classification"}, "data": data, **training}
    config = job(directory, model=model, **changes)
    put_rows(config, shape, "images", "uint8", np.int32, classes=["a", "b", "c"])
    return config


def columns(directory: Path, model: dict[str, Any], **training: Any) -> JobConfig:
    """A regression's."""
    data = {"train": {"uri": "/raw", "format": "csv", "labelField": "y", "features": [f"x{n}" for n in range(16)]}}
    config = job(directory, model=model, **{**MILD, **OFTEN, "task": {"kind": "regression"}, "data": data, **training})
    put_rows(config, (16,), "tables", "float32", np.float32, scales=[{"mean": 0, "deviation": 1}] * 17)
    return config


def put_rows(config: JobConfig, shape: tuple[int, ...], kind: str, dtype: str, label: Any, **facts: Any) -> None:
    """300 rows of noise."""
    noise = np.random.default_rng(0).integers(0, 255, (300, *shape)).astype(dtype)
    data = b"".join(row.tobytes() + label(number % 3).tobytes() for number, row in enumerate(noise))
    shard = Shard.of("data/rows.bin", data, len(noise), len(noise), "w")
    store_of(config).put(shard.key, data)
    split = {"shards": [shard], "documents": len(noise), "bytes": len(noise)}
    fields = {"kind": kind, "dtype": dtype, "shape": shape, "splits": dict.fromkeys(SPLITS, split), **facts}
    store_of(config).put(MANIFEST_KEY, Manifest.model_validate(fields).to_json())


def growth(config: JobConfig) -> int:
    """Bytes by which a rank grows at the most in a whole run, libraries' files left out.

    What is freed goes back to the system at once, if it is a MiB or more: glibc would keep as much as it likes.
    """
    assert ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 2**20) == 1
    torch.set_num_threads(1)
    before = _status("RssAnon")
    train(config, Attempt(1, store_of(config)), Hooks())
    return _status("VmHWM") - _status("RssFile") - before


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))
