"""A job in a queue, with Kueue played at the real API."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest
from support.idle_nodes import IdleNodes, check, finish, idle_job, wait_placed, workers
from support.kueue import GROUP, HASH, TOTAL, Kueue
from support.operator_process import Operator
from support.played import Object, PlayedJob
from support.runs import wait_until

if TYPE_CHECKING:
    from trainingjob_local.cluster import LocalCluster

MakeJob = Callable[[str], PlayedJob]


@pytest.fixture
def kueue(cluster: LocalCluster, namespace: str) -> Iterator[Kueue]:
    with Kueue(cluster, namespace) as kueue:
        yield kueue


@pytest.fixture
def queued(cluster: LocalCluster, namespace: str, kueue: Kueue) -> Iterator[MakeJob]:
    """Make a job of three workers in the queue; there are nodes for two such gangs."""
    with IdleNodes(cluster, namespace) as nodes:
        nodes.add(6)
        yield lambda name: idle_job(cluster, nodes, namespace, name, {}, runPolicy={"queueName": "team"})


def gated(job: PlayedJob) -> bool:
    return all(pod["spec"].get("schedulingGates") for pod in workers(job).values())


def marks(pods: dict[str, Object], *, of: str) -> set[str]:
    """Values of a label or annotation."""
    metas = [pod["metadata"] for pod in pods.values()]
    return {(meta["labels"] | meta["annotations"])[of] for meta in metas}


def test_a_gang_is_admitted_as_a_whole_and_gives_its_quota_back(
    operator: Operator, queued: MakeJob, kueue: Kueue
) -> None:
    kueue.quota = 3
    first, second = queued("first"), queued("second")
    first.apply()
    check(first)
    wait_placed(first, 3)
    assert marks(workers(first), of=GROUP) == {"first-train-2"}
    assert marks(workers(first), of=TOTAL) == {"3"}
    second.apply()
    wait_until("it waits in the queue", lambda: second.pods())
    status = second.wait("Kueue's reason", lambda status: "insufficient unused quota" in status.get("message", ""))
    assert status["phase"] == "Queued"
    finish(first)
    check(second)
    wait_placed(second, 3)
    finish(second)
    wait_until("all groups are over", lambda: all(w.finished for w in kueue.workloads.values()))
    assert kueue.offences == []


def test_a_replacement_joins_its_group_and_keeps_the_quota(operator: Operator, queued: MakeJob, kueue: Kueue) -> None:
    kueue.quota = 3
    job = queued("hurt")
    job.apply()
    check(job)
    wait_placed(job, 3)
    job.run(*workers(job))
    job.end("train-1-1", 20, **{"class": "Internal", "cause": "the driver crashed"})
    job.wait_pods("train-1-2")
    wait_placed(job, 3)
    assert marks(workers(job), of=GROUP) == {"hurt-train-2"}
    assert len(marks(workers(job), of=HASH)) == 1
    assert kueue.offences == []


def test_an_evicted_gang_queues_again_in_a_new_group_and_is_not_blamed(
    operator: Operator, queued: MakeJob, kueue: Kueue
) -> None:
    job = queued("evicted")
    job.apply()
    check(job)
    wait_placed(job, 3)
    job.run(*workers(job))
    kueue.quota = 0
    kueue.evict("evicted-train-2", "Preempted to accommodate a workload of higher priority")
    job.wait_pods("train-0-2", "train-1-2", "train-2-2")
    wait_until("the old ones are told to end", lambda: marks(workers(job), of=GROUP) == {"evicted-train-3"})
    assert gated(job)
    status = job.wait("it says why", lambda status: status["history"])
    assert [incident["class"] for incident in status["history"]] == ["Preempted"]
    assert "workload of higher priority" in status["history"][0]["cause"]
    assert status["restarts"]["total"] == 0
    wait_until("Kueue lets go of the old group", lambda: "evicted-train-2" not in old_groups(job))
    kueue.quota = 3
    wait_placed(job, 3)
    assert kueue.offences == []


def old_groups(job: PlayedJob) -> set[str]:
    """Groups of pods that Kueue holds."""
    held = [pod["metadata"] for pod in job.pods().values() if pod["metadata"].get("finalizers")]
    return {meta["labels"][GROUP] for meta in held}


def test_a_suspended_job_leaves_no_pod_and_no_quota_behind_and_resumes_in_new_groups(
    operator: Operator, queued: MakeJob, kueue: Kueue
) -> None:
    job = queued("paused")
    job.apply()
    check(job)
    wait_placed(job, 3)
    job.run(*workers(job))
    job.patch({"runPolicy": {"suspend": True}})
    job.wait_phase("Suspended")
    wait_until("no worker pod is left", lambda: not [name for name in job.pods() if "-train-" in name])
    assert not any(workload.admitted for workload in kueue.workloads.values())
    job.patch({"runPolicy": {"suspend": False}})
    check(job, incarnation=2)
    wait_placed(job, 3)
    assert marks(workers(job), of=GROUP) == {"paused-train-4"}
    assert kueue.offences == []


def test_a_job_that_is_deleted_leaves_nothing_behind(operator: Operator, queued: MakeJob, kueue: Kueue) -> None:
    job = queued("gone")
    job.apply()
    check(job)
    wait_placed(job, 3)
    job.run(*workers(job))
    job.delete()
    wait_until("no pod is left", lambda: not job.pods())


def test_jobs_that_are_deleted_while_the_operator_is_down_are_let_go_when_it_comes_back(
    operator: Operator, queued: MakeJob, kueue: Kueue
) -> None:
    job = queued("orphan")
    job.apply()
    check(job)
    wait_placed(job, 3)
    job.run(*workers(job))
    operator.kill()
    job.delete()
    wait_until("its pods have ended", lambda: not workers(job))
    operator.start()
    wait_until("no pod is left", lambda: not job.pods())
