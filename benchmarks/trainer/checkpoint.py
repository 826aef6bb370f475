"""Checkpoints: how long training stands still for one, and how fast it gets to S3.

All on one rank. The two ways to save, and the bare upload, take turns, so that what disturbs the machine disturbs all.

- *blocked*: what the training thread spends in the call and in waiting for the save before. A save in the background is
  followed by steps until it is committed, as it is in a run whose saves are further apart than an upload takes.
- *synchronous*: the call, and then nothing but waiting for the COMMIT.
- *bare upload*: boto3's own multipart upload of as many bytes from one buffer in memory, with parts of the same size,
  as many threads, and the SHA-256 that a COMMIT has to name.
"""

import hashlib
import os
import time
from io import BytesIO
from statistics import median

import torch
from boto3.s3.transfer import TransferConfig
from torch import Tensor
from trainingjob_trainer.checkpoint.attempt import Attempt
from trainingjob_trainer.checkpoint.checkpointer import Checkpointer
from trainingjob_trainer.checkpoint.state import Progress, state_tensors
from trainingjob_trainer.checkpoint.storage import OBJECT_BYTES, OBJECTS_AT_ONCE
from trainingjob_trainer.data.reader import Batch
from trainingjob_trainer.storage import open_store

from benchmarks.trainer import subject
from benchmarks.trainer.figures import Figure, Lab

ROUNDS = 7
VOCABULARY = 16_384
BUCKET = "checkpoints"


def measure(lab: Lab) -> list[Figure]:
    """About three minutes."""
    bench = _Bench(lab)
    bench.warm_up()
    blocked, synchronous, bare, calm, busy = [], [], [], [], []
    for number in range(ROUNDS):
        lab.say(f"checkpoint, round {number + 1} of {ROUNDS}")
        calm += [bench.step() for _ in range(4)]
        seconds, during = bench.save_in_background()
        blocked.append(seconds)
        busy += during
        synchronous.append(bench.save_and_wait())
        bare.append(bench.upload_bare())
    stall = [one / other for one, other in zip(blocked, synchronous, strict=True)]
    upload = [one / other for one, other in zip(bare, synchronous, strict=True)]
    return [
        Figure("checkpoint_mib", "checkpoint: size", bench.bytes / 2**20, "MiB"),
        Figure.of("async_blocked_s", "checkpoint: training is blocked for", blocked, "s"),
        Figure.of("sync_save_s", "checkpoint: a synchronous save takes", synchronous, "s"),
        Figure.of("bare_upload_s", "checkpoint: a bare upload takes", bare, "s"),
        Figure.of("async_stall_vs_sync", "checkpoint: blocked / synchronous", stall, "", "< 0.1"),
        Figure.of("upload_vs_boto3", "checkpoint: bare / synchronous", upload, "", ">= 0.75"),
        Figure.of("step_s", "checkpoint: a step", calm, "s"),
        Figure.of("step_during_upload_s", "checkpoint: a step during an upload", busy, "s"),
        Figure("step_slowdown", "checkpoint: steps during an upload take longer by", median(busy) / median(calm)),
    ]


class _Bench:
    """A model of 17 million weights that trains, with AdamW's moments: 200 MB of state."""

    def __init__(self, lab: Lab) -> None:
        lab.s3.ensure_bucket(BUCKET)
        self._client = lab.s3.client()
        os.environ |= {"AWS_ACCESS_KEY_ID": lab.s3.access_key, "AWS_SECRET_ACCESS_KEY": lab.s3.secret_key}
        model = {"layers": 4, "dim": 512, "heads": 8}
        config = subject.job(lab.s3.endpoint, BUCKET, model, globalBatchSize=1, sequenceLength=128)
        self._stepper = subject.stepper(config, subject.tokens(VOCABULARY, [], 0))
        store = open_store(config.output_uri, config.storage)
        attempt = Attempt.take(store, 0)
        self._checkpointer = Checkpointer(attempt, self._stepper.world, config.identity_hash(), config.checkpoint)
        rows, length = config.training.global_batch_size, config.training.sequence_length
        tokens = torch.randint(VOCABULARY, (rows, length + 1), generator=torch.Generator().manual_seed(1))
        self._batch = Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())
        self._steps = 0
        self.bytes = sum(tensor.nbytes for tensor in self._tensors().values())
        self._data = os.urandom(self.bytes)

    def warm_up(self) -> None:
        """What is done once only: buffers, connections, SeaweedFS' volumes."""
        self.step()
        self.save_and_wait()
        self.save_in_background()
        self.upload_bare()

    def step(self) -> float:
        """Seconds of a step."""
        begun = time.perf_counter()
        self._stepper(self._steps, self._batch)
        self._steps += 1
        return time.perf_counter() - begun

    def save_in_background(self) -> tuple[float, list[float]]:
        """Seconds that training was blocked by a save, and those of each step meanwhile."""
        self.step()
        begun = time.perf_counter()
        self._save()
        blocked = time.perf_counter() - begun
        steps = []
        while self._checkpointer.committed_step != self._checkpointer.saved_step:
            steps.append(self.step())
        begun = time.perf_counter()
        self._checkpointer.wait()
        return blocked + time.perf_counter() - begun, steps

    def save_and_wait(self) -> float:
        """Seconds of a save with nothing going on meanwhile."""
        self.step()
        begun = time.perf_counter()
        self._save()
        self._checkpointer.wait()
        return time.perf_counter() - begun

    def upload_bare(self) -> float:
        """Seconds of boto3's own upload of the same bytes, and of their hash."""
        how = TransferConfig(
            multipart_threshold=OBJECT_BYTES, multipart_chunksize=OBJECT_BYTES, max_concurrency=OBJECTS_AT_ONCE
        )
        begun = time.perf_counter()
        hashlib.sha256(self._data).hexdigest()
        self._client.upload_fileobj(BytesIO(self._data), BUCKET, "bare", Config=how)
        seconds = time.perf_counter() - begun
        self._client.delete_object(Bucket=BUCKET, Key="bare")
        return seconds

    def _save(self) -> None:
        self._checkpointer.save(self._tensors(), Progress(step=self._steps))

    def _tensors(self) -> dict[str, Tensor]:
        return state_tensors(self._stepper.model, self._stepper.optimizer, self._stepper.average)
