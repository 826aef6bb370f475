"""Data: how fast batches come out of S3, and how long training waits for them.

- *bare reads*: boto3's own ranged GETs of all shards, 8 MiB each, with as many threads; the bytes are thrown away.
- *loader*: an epoch of shuffled batches, from the same shards: read, verified, put together. Counted are the bytes of
  its samples. The two take turns.
- *wait*: the share of the time of steps on this machine's CPU that goes to waiting for the next batch, the first one
  left out: it comes when the first blocks have been read.
"""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from statistics import median

import numpy as np
from trainingjob_trainer.data.batches import training_rows
from trainingjob_trainer.data.manifest import Manifest, Shard
from trainingjob_trainer.data.order import Order
from trainingjob_trainer.data.prefetch import READS_AT_ONCE, prefetch
from trainingjob_trainer.data.reader import Reader
from trainingjob_trainer.storage import open_store

from benchmarks.trainer import subject
from benchmarks.trainer.figures import Figure, Lab

ROUNDS = 5
SHARDS, SHARD_BYTES, PART_BYTES = 6, 64 * 2**20, 8 * 2**20
BATCH, LENGTH = 256, 1024  # of the loader's epochs: half a MiB
STEPS = 40
BUCKET = "data"
VOCABULARY = 2048


def measure(lab: Lab) -> list[Figure]:
    """About two minutes."""
    bench = _Bench(lab)
    bench.read_bare()
    bench.load()
    bare, loaded = [], []
    for number in range(ROUNDS):
        bare.append(bench.read_bare())
        loaded.append(bench.load())
        lab.say(f"loader, round {number + 1} of {ROUNDS}: {loaded[-1]:.0f} of {bare[-1]:.0f} MiB/s")
    lab.say("loader, steps")
    first, wait, step = bench.train()
    ratio = [one / other for one, other in zip(loaded, bare, strict=True)]
    return [
        Figure("boto3_mib_per_s", "loader: bare ranged reads", median(bare), "MiB/s", runs=bare),
        Figure("loader_mib_per_s", "loader: shuffled batches", median(loaded), "MiB/s", runs=loaded),
        Figure("loader_vs_boto3", "loader: batches / bare reads", median(ratio), "", ">= 0.9", ratio),
        Figure("first_batch_s", "loader: the first batch takes", first, "s"),
        Figure("data_step_s", "loader: a step that waits for none", step, "s"),
        Figure("data_wait_share", "loader: share of a step that waits for data", wait, "", "< 0.01"),
    ]


class _Bench:
    """384 MiB of random tokens in shards of 64 MiB: three groups of blocks."""

    def __init__(self, lab: Lab) -> None:
        lab.s3.ensure_bucket(BUCKET)
        self._client = lab.s3.client()
        os.environ |= {"AWS_ACCESS_KEY_ID": lab.s3.access_key, "AWS_SECRET_ACCESS_KEY": lab.s3.secret_key}
        model = {"layers": 2, "dim": 64, "heads": 4}
        self._config = subject.job(lab.s3.endpoint, BUCKET, model, globalBatchSize=8, sequenceLength=256)
        self._store = open_store(self._config.output_uri, self._config.storage)
        self._manifest = self._put_shards()

    def read_bare(self) -> float:
        """MiB a second of boto3's ranged reads."""
        keys = [shard.key for shard in self._manifest.splits["train"].shards]
        parts = [(key, start) for key in keys for start in range(0, SHARD_BYTES, PART_BYTES)]

        def read(part: tuple[str, int]) -> int:
            key, start = part
            span = f"bytes={start}-{start + PART_BYTES - 1}"
            return len(self._client.get_object(Bucket=BUCKET, Key=f"run/{key}", Range=span)["Body"].read())

        begun = time.perf_counter()
        with ThreadPoolExecutor(READS_AT_ONCE) as pool:
            read_bytes = sum(pool.map(read, parts))
        return read_bytes / 2**20 / (time.perf_counter() - begun)

    def load(self) -> float:
        """MiB a second of the loader over an epoch, from its start."""
        reader = Reader(self._store, self._manifest, "train", LENGTH)
        steps = range(len(reader) // BATCH)
        rows = training_rows(steps, BATCH, Order(reader.blocks, seed=1), world_size=1, rank=0)
        begun = time.perf_counter()
        with prefetch(reader, rows) as read:
            samples = sum(len(batch.inputs) for batch in read)
            seconds = time.perf_counter() - begun
        return samples * LENGTH * self._manifest.item_bytes / 2**20 / seconds

    def train(self) -> tuple[float, float, float]:
        """Seconds until the first batch, the share of the others' time that is waiting, and seconds of a step."""
        training = self._config.training
        stepper = subject.stepper(self._config, self._manifest)
        reader = Reader(self._store, self._manifest, "train", training.sequence_length)
        rows = training_rows(range(STEPS + 1), training.global_batch_size, Order(reader.blocks, seed=1), 1, 0)
        waits, steps = [], []
        with prefetch(reader, rows) as read:
            for step in range(STEPS + 1):
                begun = time.perf_counter()
                batch = next(read)
                got = time.perf_counter()
                stepper(step, batch)
                waits.append(got - begun)
                steps.append(time.perf_counter() - got)
        share = sum(waits[1:]) / (sum(waits[1:]) + sum(steps[1:]))
        return waits[0], share, median(steps[1:])

    def _put_shards(self) -> Manifest:
        random, shards = np.random.default_rng(0), []
        for number in range(SHARDS):
            data = random.integers(VOCABULARY, size=SHARD_BYTES // 2, dtype=np.uint16).tobytes()
            shard = Shard.of(f"data/{number}.bin", data, SHARD_BYTES // 2, 1, "bench")
            self._store.put(shard.key, data)
            shards.append(shard)
        return subject.tokens(VOCABULARY, shards, SHARDS * SHARD_BYTES)
