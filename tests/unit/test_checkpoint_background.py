"""Saves in the background: what is committed is the state at the call, and a save that fails ends the attempt."""

import os
import threading
from pathlib import Path

import pytest
import torch
from support.rank_functions import save_often, train_run, train_without_space
from support.ranks import run_ranks
from support.training import prepared, store_of
from trainingjob_trainer.checkpoint.attempt import Attempt
from trainingjob_trainer.checkpoint.checkpointer import Checkpointer
from trainingjob_trainer.checkpoint.commits import commits, latest
from trainingjob_trainer.checkpoint.patience import PatientStore
from trainingjob_trainer.checkpoint.state import Progress
from trainingjob_trainer.checkpoint.storage import UPLOADS_NICE
from trainingjob_trainer.config import Checkpoint, Storage
from trainingjob_trainer.errors import StorageError
from trainingjob_trainer.parallel import World
from trainingjob_trainer.storage import LocalStore, NotFound, Unavailable


@pytest.mark.parametrize(
    ("steps", "seconds"), [(40, 0.2), pytest.param(200, 1.0, marks=pytest.mark.slow)], ids=["short", "long"]
)
def test_what_is_committed_is_the_state_at_the_call_however_slow_the_upload(
    tmp_path: Path, steps: int, seconds: float
) -> None:
    config = prepared(tmp_path, steps=steps, checkpoint={"keepLast": 1000})
    ranks = run_ranks(2, save_often, config, 5, seconds)
    assert ranks[0][0] != ranks[1][0], "each rank has shards of its own"
    for at_call, loaded, overlapped in ranks:
        assert list(at_call) == list(range(5, steps + 1, 5))
        assert loaded == at_call
        assert overlapped >= steps / 5 - 1, "no step was taken while a save was under way"
    assert [commit.world_size for commit in commits(store_of(config))] == [2] * (steps // 5)


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_save_that_fails_ends_the_attempt_at_a_later_step_and_loses_no_commit(
    tmp_path: Path, world_size: int
) -> None:
    """The second save of the last rank finds no space. Its commit is never written; all ranks end for that reason."""
    config = prepared(tmp_path, steps=1000, checkpoint={"everySteps": 10}, evaluation={"everySteps": 1000})
    for error in run_ranks(world_size, train_without_space, config, 1, "step-00000020"):
        assert isinstance(error, StorageError)
        assert "No space is left" in error.cause
    newest = latest(store_of(config))
    assert newest is not None
    assert newest.step == 10
    [resumed] = run_ranks(1, train_run, config, 2, 3)
    assert resumed.step == 13


def test_a_save_that_failed_ends_the_attempt_before_the_next_one(tmp_path: Path) -> None:
    config = prepared(tmp_path, steps=1000, checkpoint={"everySteps": 60}, evaluation={"everySteps": 1000})
    first, _ = run_ranks(2, train_without_space, config, 1, "step-00000060")
    assert isinstance(first, StorageError)
    assert first.step is not None
    assert 60 <= first.step < 120


class Watched(LocalStore):
    """A directory that notes how nice the threads are that write to it."""

    niceness: dict[str, int]

    def put(self, key: str, data: bytes, *, if_none_match: bool = False, if_match: str | None = None) -> str:
        self.niceness[key] = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
        return super().put(key, data, if_none_match=if_none_match, if_match=if_match)


def test_steps_come_before_the_upload_where_both_want_the_same_cores(tmp_path: Path) -> None:
    store = Watched(str(tmp_path), Storage())
    store.niceness = {}
    with Checkpointer(Attempt.take(store, 0), World.join(), "hash", Checkpoint()) as checkpointer:
        checkpointer.save({"weights": torch.ones(8)}, Progress(step=1))
        checkpointer.wait()
    own = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    [bulk] = [key for key in store.niceness if key.endswith(".bin")]
    assert store.niceness[bulk] == min(own + UPLOADS_NICE, 19)
    assert store.niceness["attempts/1.json"] == own < 19


class Outage(LocalStore):
    """A directory that cannot be reached for its next few requests."""

    def __init__(self, root: str, requests: int) -> None:
        super().__init__(root, Storage())
        self.requests = requests

    def put(self, key: str, data: bytes, *, if_none_match: bool = False, if_match: str | None = None) -> str:
        self.requests -= 1
        if self.requests >= 0:
            raise Unavailable(f"{self.uri(key)} cannot be reached.")
        return super().put(key, data, if_none_match=if_none_match, if_match=if_match)


def test_an_outage_is_waited_out(tmp_path: Path) -> None:
    store = PatientStore(Outage(str(tmp_path), requests=1))
    store.put("a", b"1")
    assert store.get("a") == b"1"


def test_nothing_is_waited_for_once_the_attempt_has_failed_or_when_waiting_is_in_vain(tmp_path: Path) -> None:
    outage = Outage(str(tmp_path), requests=1000)
    with pytest.raises(Unavailable):
        PatientStore(outage, seconds=0).put("a", b"1")
    store = PatientStore(outage)
    store.give_up()
    with pytest.raises(Unavailable):
        store.put("a", b"1")
    with pytest.raises(NotFound):
        PatientStore(outage).get("a")
    assert outage.requests == 998
