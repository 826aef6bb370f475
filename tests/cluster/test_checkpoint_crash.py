"""Whatever ends a save half-way, a kill or an outage of the storage: the last committed step is what there is."""

import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from support.rank_functions import hash_commits, train_on_s3
from support.ranks import run_ranks
from support.runs import wait_until
from support.s3_proxy import Request, S3Proxy, busy, full, stall
from support.training import job, put_tokens, store_of
from trainingjob_trainer.checkpoint.checkpointer import read_progress
from trainingjob_trainer.checkpoint.commits import commits, latest
from trainingjob_trainer.config import JobConfig
from trainingjob_trainer.errors import StorageError

if TYPE_CHECKING:
    from trainingjob_local.cluster import LocalCluster

RANKS = 2


class Lab:
    """Runs of one plan through a proxy, each in a directory of its own; looked at past the proxy."""

    def __init__(self, cluster: "LocalCluster", bucket: str, directory: Path, proxy: S3Proxy) -> None:
        self.proxy, self._direct, self._bucket, self._directory = proxy, cluster.s3.endpoint, bucket, directory
        self.environment = {"AWS_ACCESS_KEY_ID": cluster.s3.access_key, "AWS_SECRET_ACCESS_KEY": cluster.s3.secret_key}

    def config(self, run: str, endpoint: str | None = None, **changes: Any) -> JobConfig:
        storage = {"endpointUrl": endpoint or self._direct, "region": "us-east-1"}
        plan = {"steps": 30, "evaluation": {"everySteps": 1000}, "checkpoint": {"everySteps": 10, "keepLast": 1}}
        return job(f"s3://{self._bucket}/{run}", **(plan | changes), storage=storage)

    def train(self, run: str, attempt: int = 1, **changes: Any) -> list[Any]:
        """Through the proxy, by real ranks."""
        self.directory(run).mkdir(exist_ok=True)
        self.proxy.seen.clear()
        if attempt == 1:
            put_tokens(store_of(self.config(run)))
        config = self.config(run, self.proxy.endpoint, **changes)
        return run_ranks(RANKS, train_on_s3, config, attempt, self.environment, self.directory(run))

    def kill(self, run: str) -> None:
        """End all ranks at once: no handler, no finally, nothing runs any more."""
        for file in self.directory(run).glob("*.pid"):
            os.kill(int(file.stem), signal.SIGKILL)

    def directory(self, run: str) -> Path:
        return self._directory / run

    def step(self, run: str) -> int:
        """The last step that the run has told of."""
        file = self.directory(run) / "step"
        return int((file.read_text() if file.exists() else "") or 0)

    def committed(self, run: str) -> list[int]:
        return [commit.step for commit in commits(store_of(self.config(run)))]

    def hashes(self, run: str) -> dict[int, str]:
        """The whole state of each checkpoint."""
        [found] = run_ranks(1, hash_commits, self.config(run), self.environment)
        return found  # type: ignore[no-any-return]

    def history(self, run: str) -> list[Any]:
        commit = latest(store_of(self.config(run)))
        assert commit is not None
        return read_progress(store_of(self.config(run)), commit).history


@pytest.fixture
def lab(cluster: "LocalCluster", bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    with S3Proxy(cluster.s3.endpoint) as proxy:
        lab = Lab(cluster, bucket, tmp_path, proxy)
        for name, value in lab.environment.items():
            monkeypatch.setenv(name, value)
        yield lab


def second_save(requests: list[Request]) -> list[str]:
    """The requests of the save at step 20, which ends with the deletion of the checkpoint of step 10."""
    begin, end = (next(n for n, r in enumerate(requests) if f"step-000000{s}" in r.path) for s in (20, 30))
    return [f"{request.method} {request.path}" for request in requests[begin:end]]


def at(proxy: S3Proxy, number: int, act: Callable[[], None]) -> Callable[[Request], None]:
    """Do `act` at the `number`-th request, from 0, of the save at step 20."""

    def look(request: Request) -> None:
        first = next((seen.number for seen in proxy.seen if "step-00000020" in seen.path), None)
        if first is not None and request.number == first + number:
            act()

    return look


def crash(lab: Lab, run: str, number: int, answered: bool) -> int:
    """Kill all ranks at a request of the second save, before it reaches the storage or when it has been carried out.

    The step that is committed then.
    """

    def kill() -> None:
        lab.kill(run)
        if not answered:
            raise ConnectionAbortedError("this request is lost with its sender")

    look = at(lab.proxy, number, kill)
    lab.proxy.before, lab.proxy.after = (lambda request: None, look) if answered else (look, lambda request: None)
    assert lab.train(run) == [-signal.SIGKILL] * RANKS
    lab.proxy.before = lab.proxy.after = lambda request: None
    newest = latest(store_of(lab.config(run)))
    assert newest is not None
    return newest.step


def test_a_kill_around_the_commit_leaves_the_last_committed_step(lab: Lab) -> None:
    lab.train("baseline", checkpoint={"everySteps": 10, "keepLast": 3})
    expected = lab.hashes("baseline")
    assert list(expected) == [10, 20, 30]
    requests = second_save(lab.proxy.seen)
    commit = next(n for n, request in enumerate(requests) if request.startswith("PUT") and "COMMIT.json" in request)
    for run, answered, step in (("before", False, 10), ("after", True, 20)):
        assert crash(lab, run, commit, answered) == step
        assert lab.hashes(run)[step] == expected[step]


@pytest.mark.slow
def test_a_kill_at_any_request_of_a_save_leaves_the_last_committed_step_from_which_the_run_goes_on(lab: Lab) -> None:
    """For each request of a save, deletion of the old checkpoint included: before it is carried out, and after that."""
    lab.train("baseline", checkpoint={"everySteps": 10, "keepLast": 3})
    expected, history = lab.hashes("baseline"), lab.history("baseline")
    lab.train("counted")
    requests = second_save(lab.proxy.seen)
    commit = next(n for n, request in enumerate(requests) if request.startswith("PUT") and "COMMIT.json" in request)
    assert any(request.startswith("POST") for request in requests[commit:]), "the old checkpoint is not deleted"
    for number, request in enumerate(requests):
        for answered in (False, True):
            run = f"killed-{number}-{answered}"
            step = crash(lab, run, number, answered)
            where = f"{'after' if answered else 'before'} request {number}, {request}"
            assert step == (20 if (number, answered) >= (commit, True) else 10), where
            assert lab.hashes(run)[step] == expected[step], where
            [(_, reports), _] = lab.train(run, attempt=2)
            assert reports[0]["resumedFromStep"] == step, where
            assert lab.hashes(run)[30] == expected[30], where
            assert lab.history(run) == history, where


@pytest.mark.parametrize(
    "seconds", [4, pytest.param(60, marks=pytest.mark.slow)], ids=["a-short-outage", "a-minute-long"]
)
def test_steps_go_on_through_an_outage_and_nothing_is_lost(lab: Lab, seconds: float) -> None:
    """Refused, stalled in the middle of a body and 503 in turn, from the first request of a save on."""
    changes: dict[str, Any] = {"steps": 60, "checkpoint": {"everySteps": 20, "keepLast": 3}}
    lab.train("baseline", **changes)
    begun: list[Request] = []

    def outage(request: Request) -> None:
        if "step-00000020" in request.path and not begun:
            begun.append(request)
            lab.proxy.fault = stall

    lab.proxy.before = outage
    with ThreadPoolExecutor(1) as pool:
        run = pool.submit(lab.train, "disturbed", **changes)
        wait_until("the save", lambda: begun or run.done(), every=0.01)
        wait_until("steps up to the next save", lambda: lab.step("disturbed") >= 39, every=0.01)
        for fault in (stall, busy, None):
            lab.proxy.fault = fault
            if fault is None:
                lab.proxy.over.set()
                lab.proxy.refuse()
            with pytest.raises(TimeoutError):
                run.result(timeout=seconds / 3)
        assert lab.committed("disturbed") == []
        lab.proxy.listen()
        results = run.result()
    assert all(isinstance(result, tuple) for result in results), results
    assert lab.committed("disturbed") == [20, 40, 60]
    assert lab.hashes("disturbed") == lab.hashes("baseline")


def test_a_full_bucket_ends_the_attempt_and_says_so(lab: Lab) -> None:
    """SeaweedFS knows no quota, so the proxy says it, in MinIO's words. The checkpoint before stays."""
    lab.proxy.before = at(lab.proxy, 0, lambda: setattr(lab.proxy, "fault", full))
    for error in lab.train("full"):
        assert isinstance(error, StorageError)
        assert "is full: the test wants it so (XMinioAdminBucketQuotaExceeded)" in error.cause
        assert "raise its quota" in error.next_step
    assert lab.committed("full") == [10]
