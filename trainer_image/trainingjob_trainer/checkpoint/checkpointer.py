"""Save and load, by all ranks together."""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from types import TracebackType
from typing import Self

from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from trainingjob_trainer.checkpoint.attempt import Attempt
from trainingjob_trainer.checkpoint.commits import Commit, StoredObject, attempt_prefix, publish, read_verified
from trainingjob_trainer.checkpoint.patience import PatientStore
from trainingjob_trainer.checkpoint.retention import retain
from trainingjob_trainer.checkpoint.staging import Staged, Staging
from trainingjob_trainer.checkpoint.state import Progress
from trainingjob_trainer.checkpoint.storage import StoreReader, StoreWriter, read_index
from trainingjob_trainer.config import Checkpoint
from trainingjob_trainer.errors import TrainerError
from trainingjob_trainer.parallel import World
from trainingjob_trainer.storage import Store

PROGRESS_NAME = "trainer.json"
LAST_WAIT = 10.0  # seconds that a failed attempt leaves its last upload to end

log = logging.getLogger(__name__)


class Checkpointer:
    """Checkpoints of one attempt. Every rank calls `save`, `wait` and `load` at the same step, and gets the same error.

    A save copies the state and has the copy uploaded by a thread, one at a time. The threads of all ranks talk over a
    group that nothing else uses: collectives of several threads on one group would be matched with each other.
    """

    def __init__(
        self, attempt: Attempt, world: World, identity_hash: str, policy: Checkpoint, encoding: str | None = None
    ) -> None:
        self._store = PatientStore(attempt.store)
        self._attempt = replace(attempt, store=self._store)
        self._world, self._uploaders = world, world.apart()
        self.identity_hash, self._policy, self._encoding = identity_hash, policy, encoding
        self._staging = Staging(world.device)
        self._upload: Future[None] | None = None
        self._committed_step = 0
        self.saved_step = 0  # of the newest state that was copied or loaded, the same on every rank
        if world.size == 1:
            warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)  # it is no accident

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """An upload still under way has a moment to end; it waits no outage out any more."""
        self._store.give_up()
        if self._upload is not None:
            wait_for([self._upload], timeout=LAST_WAIT)

    @property
    def committed_step(self) -> int:
        """The newest step that this rank knows to be committed."""
        if self._upload is not None and self._upload.done() and not self.failed:
            self.wait()
        return self._committed_step

    @property
    def idle(self) -> bool:
        """Whether no save is under way, as far as this rank knows."""
        return self.committed_step == self.saved_step

    @property
    def failed(self) -> bool:
        """Whether the save under way has failed, as far as this rank knows: `wait` raises."""
        return self._upload is not None and self._upload.done() and self._upload.exception() is not None

    def save(self, tensors: Mapping[str, Tensor], progress: Progress) -> None:
        """Copy the state after `progress.step` steps; it is committed in the background, then what is not kept deleted.

        Waits for the save before, and raises its failure.
        """
        self.wait()
        staged = self._staging.copy(tensors)
        record = progress.model_dump_json(by_alias=True).encode() if self._world.rank == 0 else b""
        metrics = next((e.metrics for e in progress.evaluations if e.step == progress.step), {})
        step = self.saved_step = progress.step
        self._upload = _in_background(lambda: self._write(staged, step, record, metrics))

    def wait(self) -> None:
        """Wait for the save under way, if there is one. Raises its failure: `Fenced`, `StorageError`."""
        if self._upload is not None:
            self._upload.result()
            self._upload, self._committed_step = None, self.saved_step

    def load(self, commit: Commit, tensors: Mapping[str, Tensor]) -> Progress:
        """Go on from a checkpoint: fill `tensors` in place, and give the progress. Raises as `read_tensors` does."""
        self.fill(commit, tensors)
        self.saved_step = self._committed_step = commit.step
        return self._world.on_first(lambda: read_progress(self._store, commit))

    def fill(self, commit: Commit, tensors: Mapping[str, Tensor]) -> None:
        """Read these tensors of a checkpoint in place. Raises as `read_tensors` does."""
        read_tensors(self._store, commit, tensors, self._world)

    def _write(self, staged: Staged, step: int, record: bytes, metrics: dict[str, float]) -> None:
        prefix = attempt_prefix(step, self._attempt.number)
        writer = StoreWriter(self._store, prefix, self._uploaders.rank)
        staged.wait()
        with _errors():
            save(
                staged.tensors,
                storage_writer=writer,
                process_group=self._uploaders.control,
                no_dist=self._uploaders.control is None,
            )

        def commit() -> None:
            """All ranks' objects are there."""
            progress = StoredObject.of(prefix + PROGRESS_NAME, record)
            self._store.put(progress.key, record)
            self._commit(step, metrics, [*writer.objects, progress])

        self._uploaders.on_first(commit)

    def _commit(self, step: int, metrics: dict[str, float], objects: list[StoredObject]) -> None:
        commit = Commit(
            step=step,
            attempt=self._attempt.number,
            world_size=self._world.size,
            identity_hash=self.identity_hash,
            encoding=self._encoding,
            metrics=metrics,
            versions={name: version(name) for name in ("trainingjob", "torch")},
            objects=objects,
        )
        if not publish(commit, self._attempt):
            log.warning("step %d was committed by another attempt already; that checkpoint stands", step)
        retain(self._attempt, self._policy)


def read_tensors(store: Store, commit: Commit, tensors: Mapping[str, Tensor], world: World) -> None:
    """Fill tensors in place from a checkpoint, written at whatever world size. Collective.

    Raises `StorageError`; `UserError` if it does not have them all.
    """
    index = world.on_first(lambda: read_index(store, commit, tensors.keys()))
    with _errors():
        load(
            dict(tensors),
            storage_reader=StoreReader(store, commit, index),
            process_group=world.control,
            no_dist=world.control is None,
        )


def read_progress(store: Store, commit: Commit) -> Progress:
    """`trainer.json` of a checkpoint. Raises `StorageError`."""
    record = next(stored for stored in commit.objects if stored.key == commit.prefix + PROGRESS_NAME)
    return Progress.model_validate_json(read_verified(store, record))


def _in_background(action: Callable[[], None]) -> Future[None]:
    """Do `action` in a thread that the end of the process does not wait for."""
    future: Future[None] = Future()

    def work() -> None:
        try:
            action()
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(None)

    threading.Thread(target=work, name="checkpoint", daemon=True).start()
    return future


@contextmanager
def _errors() -> Iterator[None]:
    """DCP gathers the ranks' errors into a BaseException of its own: raise the first of ours instead."""
    try:
        yield
    except CheckpointException as gathered:
        errors = [error for error, _ in gathered.failures.values()]
        ours = next((error for error in errors if isinstance(error, TrainerError)), None)
        raise ours or TrainerError.internal(errors[0]) from gathered
