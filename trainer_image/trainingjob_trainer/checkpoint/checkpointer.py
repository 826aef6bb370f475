"""Save and load, by all ranks together."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from trainingjob_trainer.checkpoint.attempt import Attempt
from trainingjob_trainer.checkpoint.commits import Commit, StoredObject, attempt_prefix, publish, read_verified
from trainingjob_trainer.checkpoint.retention import retain
from trainingjob_trainer.checkpoint.state import Progress
from trainingjob_trainer.checkpoint.storage import StoreReader, StoreWriter
from trainingjob_trainer.config import Checkpoint
from trainingjob_trainer.errors import TrainerError
from trainingjob_trainer.parallel import World
from trainingjob_trainer.storage import Store

PROGRESS_NAME = "trainer.json"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpointer:
    """Checkpoints of one attempt. Its methods are collective: every rank calls them, every rank gets the same error."""

    attempt: Attempt
    world: World
    identity_hash: str
    policy: Checkpoint

    def save(self, tensors: Mapping[str, Tensor], progress: Progress) -> None:
        """Commit the state after `progress.step` steps, then drop what is not kept. Raises `Fenced`, `StorageError`."""
        prefix = attempt_prefix(progress.step, self.attempt.number)
        writer = StoreWriter(self.attempt.store, prefix, self.world.rank)
        with _errors():
            save(
                dict(tensors),
                storage_writer=writer,
                process_group=self.world.control,
                no_dist=self.world.control is None,
            )
        self.world.on_first(lambda: self._commit(prefix, progress, writer.objects))

    def _commit(self, prefix: str, progress: Progress, objects: list[StoredObject]) -> None:
        data = progress.model_dump_json(by_alias=True).encode()
        record = StoredObject.of(prefix + PROGRESS_NAME, data)
        self.attempt.store.put(record.key, data)
        commit = Commit(
            step=progress.step,
            attempt=self.attempt.number,
            world_size=self.world.size,
            identity_hash=self.identity_hash,
            metrics=next((e.metrics for e in progress.evaluations if e.step == progress.step), {}),
            objects=[*objects, record],
        )
        if not publish(commit, self.attempt):
            log.warning("step %d was committed by another attempt already; that checkpoint stands", progress.step)
        retain(self.attempt, self.policy)

    def load(self, commit: Commit, tensors: Mapping[str, Tensor]) -> Progress:
        """Fill `tensors` in place from a checkpoint, written at whatever world size. Raises `StorageError`."""
        with _errors():
            load(
                dict(tensors),
                storage_reader=StoreReader(self.attempt.store, commit),
                process_group=self.world.control,
                no_dist=self.world.control is None,
            )
        return self.world.on_first(lambda: read_progress(self.attempt.store, commit))


def read_progress(store: Store, commit: Commit) -> Progress:
    """`trainer.json` of a checkpoint. Raises `StorageError`."""
    record = next(stored for stored in commit.objects if stored.key == commit.prefix + PROGRESS_NAME)
    return Progress.model_validate_json(read_verified(store, record))


@contextmanager
def _errors() -> Iterator[None]:
    """DCP gathers the ranks' errors into a BaseException of its own: raise the first of ours instead."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)  # one rank is no accident
            yield
    except CheckpointException as gathered:
        errors = [error for error, _ in gathered.failures.values()]
        ours = next((error for error in errors if isinstance(error, TrainerError)), None)
        raise ours or TrainerError.internal(errors[0]) from gathered
