"""What watches bring goes into the cache, and exactly the jobs that it concerns are queued."""

from __future__ import annotations

from typing import Any

import pytest
from support.memory_api import owner
from trainingjob_operator.core.cache import Cache, Key
from trainingjob_operator.core.names import job_labels, place_labels
from trainingjob_operator.core.queue import WorkQueue
from trainingjob_operator.stores import JobStore, PodStore

KEY = Key("team", "job")


class World:
    """Stores over one cache and one queue that nobody works off."""

    def __init__(self) -> None:
        self.cache = Cache()
        self.queue: WorkQueue[Key] = WorkQueue()
        self.jobs = JobStore(self.cache, self.queue.add)
        self.ended: list[str] = []
        self.pods = PodStore(self.cache, lambda key, within: self.queue.add(key), self.ended.append)


def job(version: int, **status: Any) -> dict[str, Any]:
    meta = {"name": "job", "namespace": "team", "uid": "job-1", "resourceVersion": str(version)}
    return {"metadata": meta, "spec": {}, "status": status}


def pod(version: int, born: str = "2030-01-01T00:00:00Z") -> dict[str, Any]:
    labels = job_labels("job", "job-1") | place_labels("train", 0, 1)
    meta = {"name": "job-train-0-1", "namespace": "team", "uid": "p-1", "resourceVersion": str(version)}
    return {"metadata": {**meta, "labels": labels, "creationTimestamp": born, "ownerReferences": [owner("job-1")]}}


async def test_an_event_that_says_nothing_new_queues_nothing() -> None:
    world = World()
    world.cache.put_job(job(5))
    world.jobs.take("MODIFIED", job(5))
    assert len(world.queue) == 0
    world.jobs.take("MODIFIED", job(6))
    assert len(world.queue) == 1


async def test_a_deleted_job_is_queued_so_that_it_is_forgotten() -> None:
    world = World()
    world.cache.put_job(job(5))
    world.jobs.take("DELETED", job(6))
    assert world.cache.job(KEY) is None
    assert len(world.queue) == 1


async def test_a_watch_that_begins_anew_asks_for_a_list_because_it_does_not_tell_what_vanished() -> None:
    world = World()
    world.jobs.take("ADDED", job(5))
    assert not world.jobs.relist.is_set()
    world.jobs.take(None, job(5))
    assert world.jobs.relist.is_set()
    world.jobs.retain(None, set(), "9")
    assert world.cache.job(KEY) is None


async def test_pods_queue_their_job_when_it_is_known() -> None:
    world = World()
    world.pods.put(pod(7))
    assert len(world.queue) == 0, "the job itself will come and find its pods"
    world.cache.put_job(job(5))
    world.pods.remove(pod(8))
    assert len(world.queue) == 1


async def test_pods_that_vanished_unseen_queue_their_job() -> None:
    world = World()
    world.cache.put_job(job(5))
    world.cache.put_pod(pod(7))
    world.pods.retain(None, set(), "9")
    assert world.cache.pods("job-1") == []
    assert len(world.queue) == 1


async def test_it_is_told_where_a_pod_has_ended_or_is_gone() -> None:
    world = World()
    for version, phase in ((7, "Pending"), (8, "Running")):
        world.pods.put({**pod(version), "status": {"phase": phase}})
    assert world.ended == []
    world.pods.put({**pod(9), "status": {"phase": "Failed"}})
    assert world.ended == ["team"]
    world.pods.remove(pod(10))
    assert world.ended == ["team"] * 2
    world.pods.put({**pod(11), "metadata": {**pod(11)["metadata"], "uid": "p-2"}})
    world.pods.retain(None, set(), "12")
    assert world.ended == ["team"] * 3


async def test_what_cannot_be_read_is_logged_and_ignored(caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    world.cache.put_job(job(5))
    world.pods.put(pod(7, born="yesterday"))
    world.pods.remove(pod(8, born="yesterday"))
    undated = job(9)
    undated["metadata"]["creationTimestamp"] = "yesterday"
    world.jobs.take("MODIFIED", undated)
    assert [entry.levelname for entry in caplog.records] == ["ERROR"] * 3
    assert len(world.queue) == 0
