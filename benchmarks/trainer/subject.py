"""What is measured on: a small language model, whose run directory is in a bucket of the lab's server or on a disk."""

from typing import Any

import numpy as np
from trainingjob_trainer.config import JobConfig
from trainingjob_trainer.data.manifest import SPLITS, Manifest, Shard, SplitData
from trainingjob_trainer.learner import Learner
from trainingjob_trainer.parallel import World
from trainingjob_trainer.step import Stepper
from trainingjob_trainer.storage import Store

LONG = 1_000_000  # steps


def job(endpoint: str, bucket: str, transformer: dict[str, int], **training: Any) -> JobConfig:
    """A run without an end, and so without an evaluation, in a bucket."""
    storage = {"endpointUrl": endpoint, "region": "us-east-1"}
    return run_in(f"s3://{bucket}/run", storage, transformer, **training)


def run_in(uri: str, storage: dict[str, str], transformer: dict[str, int], **training: Any) -> JobConfig:
    """Such a run in a run directory."""
    spec: dict[str, Any] = {
        "name": "bench",
        "namespace": "default",
        "ranksPerPod": 1,
        "maxRestarts": 0,
        "storage": storage,
        "outputUri": uri,
        "data": {"train": {"uri": f"{uri}/none"}},
        "model": {"transformer": transformer},
        "checkpoint": {"keepLast": 1, "keepBest": 0},
        "evaluation": {"everySteps": LONG},
        "training": {"steps": LONG, "precision": "float32", **training},
    }
    return JobConfig.model_validate(spec)


def put_shard(store: Store, number: int, size: int, vocabulary: int) -> Shard:
    """A shard of `size` bytes of random tokens, put where a manifest can name it."""
    random = np.random.default_rng(number)
    data = random.integers(vocabulary, size=size // 2, dtype=np.uint16).tobytes()
    shard = Shard.of(f"data/{number}.bin", data, size // 2, 1, "bench")
    store.put(shard.key, data)
    return shard


def tokens(vocabulary: int, shards: list[Shard], size: int) -> Manifest:
    """Data of `size` bytes in these shards, one document each; all splits are the same."""
    return Manifest(
        kind="tokens",
        dtype="uint16",
        splits=dict.fromkeys(SPLITS, SplitData(shards=shards, documents=len(shards), bytes=size)),
        vocab_size=vocabulary,
        tokenizer_digest="0" * 64,
        eos_id=0,
    )


def stepper(config: JobConfig, manifest: Manifest) -> Stepper:
    """The model and its optimizer at their first step."""
    learner = Learner.of(config, manifest, World.join())
    learner.begin()
    return learner.stepper
