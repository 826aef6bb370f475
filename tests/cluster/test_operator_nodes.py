"""The operator on a real API server when nodes fail, or are emptied: what becomes of the pods that were on them."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

import pytest
from support.disturb import addresses, delete_pod, evict, node_of, place, silent_node, terminating
from support.operator_process import Operator
from support.played import Object, PlayedJob
from support.runs import wait_until

MakeJob = Callable[..., PlayedJob]


def training(played: MakeJob, **template: object) -> PlayedJob:
    """A job with two ready worker pods."""
    job = played(workers={"replicas": 2, "template": {"schedulerName": "played-by-the-test", **template}})
    job.apply()
    job.run_to_training()
    job.wait("both workers are ready", lambda status: status["workers"]["ready"] == 2)
    return job


def incidents(job: PlayedJob) -> list[tuple[str, str, str | None]]:
    """Class, pod and node of each."""
    return [(i["class"], i["pod"], i.get("node")) for i in job.status()["history"]]


@pytest.mark.parametrize(("disturb", "name"), [(evict, "Evicted"), (delete_pod, "Deleted")])
def test_a_pod_that_is_evicted_or_deleted_has_its_grace_and_is_replaced_alone(
    operator: Operator, played: MakeJob, disturb: Callable[[PlayedJob, str], None], name: str
) -> None:
    job = training(played)
    place(job, "train-1-1")
    head = job.uids()["gpt-train-0-1"]
    disturb(job, "train-1-1")
    job.wait("it is noticed", lambda status: status["workers"]["ready"] == 1)
    assert terminating(job) == {"gpt-train-1-1": 5}
    assert "gpt-train-1-2" not in job.uids(), "the pod is still committing its checkpoint"
    job.end("train-1-1", 30, **{"class": "Drained", "cause": "SIGTERM", "step": 27})
    job.wait_pods("train-1-2")
    assert incidents(job) == [(name, "gpt-train-1-1", node_of(job))]
    assert successor(job) == (2, timedelta(0))
    place(job, "train-1-2")
    job.run("train-1-2")
    job.wait("the successor is seen", lambda status: status["workers"]["ready"] == 2)
    disturb(job, "train-1-2")
    job.end("train-1-2", 30, **{"class": "Drained", "cause": "SIGTERM", "step": 27})
    job.wait("the second one is noticed", lambda status: len(status["history"]) == 2)
    assert successor(job) == (3, timedelta(seconds=10))
    made = job.pods().get("gpt-train-1-3")
    assert made is None or waited_for(made, job) >= timedelta(seconds=10), "the second successor did not wait"
    assert job.status()["restarts"]["total"] == 0
    assert job.uids()["gpt-train-0-1"] == head


def successor(job: PlayedJob) -> tuple[int, timedelta]:
    """Incarnation that the worker has in the status, and for how long it was told to wait."""
    status = job.status()
    (member,) = [m for m in status["pods"] if (m["role"], m["index"]) == ("train", 1)]
    last = datetime.fromisoformat(status["history"][-1]["time"])
    return member["incarnation"], datetime.fromisoformat(member.get("notBefore", status["history"][-1]["time"])) - last


def waited_for(pod: Object, job: PlayedJob) -> timedelta:
    """How long after the job's last incident it was created."""
    created: str = pod["metadata"]["creationTimestamp"]
    return datetime.fromisoformat(created) - datetime.fromisoformat(job.status()["history"][-1]["time"])


def test_a_pod_that_vanishes_with_its_eviction_is_known_to_be_evicted(operator: Operator, played: MakeJob) -> None:
    job = training(played)
    evict(job, "train-1-1")  # on no node: it goes at once
    job.wait_pods("train-1-2")
    assert incidents(job) == [("Evicted", "gpt-train-1-1", None)]


def test_a_pod_on_a_silent_node_is_replaced_and_waited_for_by_nobody(operator: Operator, played: MakeJob) -> None:
    soon = {"operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 1}
    job = training(played, tolerations=[{"key": "node.kubernetes.io/unreachable", **soon}])
    before = job.uids()
    with silent_node(job.cluster, "node-1"):
        job.bind("train-1-1", "node-1")
        wait_until("the pod is replaced", lambda: "gpt-train-1-2" in job.uids())
        old = job.pods()["gpt-train-1-1"]
        assert "deletionTimestamp" in old["metadata"], "it is stuck: its node says nothing"
        assert "trainingjob.io/member" not in old["metadata"]["labels"]
        job.run("train-1-2", address="10.99.1.1")
        wait_until("the name leads to the successor alone", lambda: addresses(job, "train-1") == ["10.99.1.1"])
        assert incidents(job) == [("NodeLost", "gpt-train-1-1", "node-1")]
        assert job.status()["restarts"]["total"] == 0
        assert before.items() <= job.uids().items(), "a pod was replaced that was not lost"
        job.patch({"runPolicy": {"suspend": True}})
        job.wait_phase("Suspended")
        assert set(terminating(job)) == {"gpt-train-1-1"}
        job.patch({"runPolicy": {"suspend": False}})
        job.wait_pods("prepare-0-2")
    wait_until("the node removes what it was told to", lambda: "gpt-train-1-1" not in job.uids())
    assert "gpt-prepare-0-2" in job.uids()


@pytest.mark.slow
def test_a_pod_whose_node_is_gone_is_replaced(operator: Operator, played: MakeJob) -> None:
    """Kubernetes waits 40 s for the node to come back, and looks every 20 s."""
    job = training(played)
    place(job, "train-1-1")
    pods: dict[str, Object] = {}
    wait_until("the pod is replaced", lambda: pods.update(job.pods()) or "gpt-train-1-2" in pods, every=0.5)
    assert incidents(job) == [("NodeLost", "gpt-train-1-1", node_of(job))]
    assert job.status()["restarts"]["total"] == 0
