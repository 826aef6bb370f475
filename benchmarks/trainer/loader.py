"""Data: how fast batches come out of S3, and how long training waits for them.

- *bare reads*: boto3's own ranged GETs of all shards, 8 MiB each, with as many threads; the bytes are thrown away. A
  body is asked for by its size: without one, `http.client` puts it together from pieces, which takes thrice the CPU
  (gh-119451).
- *loader*: shuffled batches from the same shards: read, verified, put together. Counted are as many as an epoch has,
  from the third of its eight groups of blocks on: before, memory for blocks is filled. As much is read meanwhile. The
  two take turns.
- *wait*: the share of the time of steps on this machine's CPU that goes to waiting for the next batch, the first one
  left out: it comes when the first blocks have been read.
"""

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from statistics import median
from typing import NamedTuple

from trainingjob_trainer.data.batches import training_rows
from trainingjob_trainer.data.manifest import Manifest
from trainingjob_trainer.data.prefetch import READS_AT_ONCE, prefetch
from trainingjob_trainer.data.reader import Reader
from trainingjob_trainer.storage import open_store

from benchmarks.operator_scale.processes import cpu_seconds
from benchmarks.trainer import subject
from benchmarks.trainer.figures import Figure, Lab

ROUNDS = 9
SHARDS, SHARD_BYTES, PART_BYTES = 32, 64 * 2**20, 8 * 2**20
BATCH, LENGTH = 256, 1024  # of the loader's epochs: half a MiB
STEPS = 40
BUCKET = "data"
VOCABULARY = 2048


def measure(lab: Lab) -> list[Figure]:
    """A minute and a half on two CPUs."""
    bench = _Bench(lab)
    bench.read_bare()
    bench.load()
    bare, loaded = [], []
    for number in range(ROUNDS):
        bare.append(bench.timed(bench.read_bare))
        loaded.append(bench.load())
        lab.say(f"loader, round {number + 1} of {ROUNDS}: {loaded[-1].rate:.0f} of {bare[-1].rate:.0f} MiB/s")
    lab.say("loader, steps")
    first, wait, step = bench.train()
    ratio = [one.rate / other.rate for one, other in zip(loaded, bare, strict=True)]
    return [
        Figure.of("boto3_mib_per_s", "loader: bare ranged reads", [timed.rate for timed in bare], "MiB/s"),
        Figure.of("loader_mib_per_s", "loader: shuffled batches", [timed.rate for timed in loaded], "MiB/s"),
        Figure.of("loader_vs_boto3", "loader: batches / bare reads", ratio, "", ">= 0.9"),
        Figure.of("boto3_cpu_s_per_gib", "loader: CPU of bare reads", [timed.cpu for timed in bare], "s/GiB"),
        Figure.of("loader_cpu_s_per_gib", "loader: CPU of batches", [timed.cpu for timed in loaded], "s/GiB"),
        Figure.of("boto3_server_s_per_gib", "loader: the server's, of bare reads", [t.server for t in bare], "s/GiB"),
        Figure.of("loader_server_s_per_gib", "loader: the server's, of batches", [t.server for t in loaded], "s/GiB"),
        Figure("first_batch_s", "loader: the first batch takes", first, "s"),
        Figure("data_step_s", "loader: a step that waits for none", step, "s"),
        Figure("data_wait_share", "loader: share of a step that waits for data", wait, "", "< 0.01"),
    ]


class _Timed(NamedTuple):
    rate: float  # MiB/s
    cpu: float  # seconds of all of this process's threads, a GiB
    server: float  # seconds of the S3 server, a GiB


class _Bench:
    """2 GiB of random tokens in shards of 64 MiB: eight groups of blocks, four times what prefetching may hold."""

    def __init__(self, lab: Lab) -> None:
        lab.s3.ensure_bucket(BUCKET)
        self._client = lab.s3.client()
        self._server = lab.s3.pid
        os.environ |= {"AWS_ACCESS_KEY_ID": lab.s3.access_key, "AWS_SECRET_ACCESS_KEY": lab.s3.secret_key}
        model = {"layers": 2, "dim": 64, "heads": 4}
        self._config = subject.job(lab.s3.endpoint, BUCKET, model, globalBatchSize=8, sequenceLength=256)
        self._store = open_store(self._config.output_uri, self._config.storage)
        self._manifest = self._put_shards()

    def timed(self, read: Callable[[], int]) -> _Timed:
        """How fast something reads that tells how many bytes it got, and at what cost."""
        begun, cpu, server = time.perf_counter(), time.process_time(), cpu_seconds(self._server)
        gib = read() / 2**30
        seconds = time.perf_counter() - begun
        return _Timed(
            gib * 1024 / seconds, (time.process_time() - cpu) / gib, (cpu_seconds(self._server) - server) / gib
        )

    def read_bare(self) -> int:
        """Bytes that boto3's ranged reads got."""
        keys = [shard.key for shard in self._manifest.splits["train"].shards]
        parts = [(key, start) for key in keys for start in range(0, SHARD_BYTES, PART_BYTES)]

        def read(part: tuple[str, int]) -> int:
            key, start = part
            span = f"bytes={start}-{start + PART_BYTES - 1}"
            return len(self._client.get_object(Bucket=BUCKET, Key=f"run/{key}", Range=span)["Body"].read(PART_BYTES))

        with ThreadPoolExecutor(READS_AT_ONCE) as pool:
            return sum(pool.map(read, parts))

    def load(self) -> _Timed:
        """How fast the loader gives samples, an epoch of them."""
        reader = Reader(self._store, self._manifest, "train", LENGTH)
        steps = len(reader) // BATCH
        before = 2 * steps // reader.blocks.groups
        rows = training_rows(range(2 * steps), BATCH, reader.order(seed=1), world_size=1, rank=0)
        row_bytes = LENGTH * self._manifest.item_bytes
        with prefetch(reader, rows) as read:
            for _ in islice(read, before):
                pass
            return self.timed(lambda: sum(len(batch.inputs) * row_bytes for batch in islice(read, steps)))

    def train(self) -> tuple[float, float, float]:
        """Seconds until the first batch, the share of the others' time that is waiting, and seconds of a step."""
        training = self._config.training
        stepper = subject.stepper(self._config, self._manifest)
        reader = Reader(self._store, self._manifest, "train", training.sequence_length)
        rows = training_rows(range(STEPS + 1), training.global_batch_size, reader.order(seed=1), 1, 0)
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
        shards = [subject.put_shard(self._store, number, SHARD_BYTES, VOCABULARY) for number in range(SHARDS)]
        return subject.tokens(VOCABULARY, shards, SHARDS * SHARD_BYTES)
