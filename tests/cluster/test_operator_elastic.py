"""The operator and an elastic job on a real API server, with pods that the test plays."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from support.disturb import find_no_node, place
from support.operator_process import Operator
from support.played import PlayedJob
from support.played_head import Head
from support.runs import wait_until

WORKERS = {"replicas": 3, "minReplicas": 1, "template": {"schedulerName": "played-by-the-test"}}
PREPARE = {"prepare": {"replicas": 1}, "train": {"uri": "s3://corpus/raw.jsonl"}}


@pytest.fixture
def job(operator: Operator, played: Callable[..., PlayedJob]) -> PlayedJob:
    """A job whose three workers run."""
    job = played(workers=WORKERS, data=PREPARE)
    job.apply()
    job.wait_pods("prepare-0-1")
    job.run("prepare-0-1")
    job.end("prepare-0-1", outcome="Train")
    names = [f"train-{index}-1" for index in range(3)]
    job.wait_pods(*names)
    place(job, *names)  # a pod without a node would be deleted without grace
    job.run(names[0], address=Head.address)
    job.run(*names[1:])
    job.wait("all are ready", lambda status: status["workers"] == {"desired": 3, "ready": 3})
    return job


def scale(job: PlayedJob, replicas: int) -> None:
    job.cluster.kubectl("-n", job.namespace, "scale", f"tj/{job.name}", f"--replicas={replicas}")


def deleting(job: PlayedJob) -> set[str]:
    return {name for name, pod in job.pods().items() if "deletionTimestamp" in pod["metadata"]}


def test_kubectl_scale_drains_the_highest_indexes_and_grows_again(job: PlayedJob) -> None:
    before = job.uids()
    scale(job, 1)
    wait_until("two workers are drained", lambda: deleting(job) == {"gpt-train-1-1", "gpt-train-2-1"})
    for name in ("train-1-1", "train-2-1"):
        job.end(name, 30, **{"class": "Drained"})
        job.remove_pod(name)
    status = job.wait("the size follows", lambda status: status["workers"] == {"desired": 1, "ready": 1})
    assert (status["resolved"]["replicas"], status["resolved"]["worldSize"]) == (1, 1)
    assert "history" not in status or status["history"] == []
    scale(job, 2)
    job.wait_pods("train-1-2")
    job.run("train-1-2")
    job.wait("it has grown", lambda status: status["workers"] == {"desired": 2, "ready": 2})
    assert job.uids()["gpt-train-0-1"] == before["gpt-train-0-1"], "the head was not touched"
    seen = json.loads(job.cluster.kubectl("-n", job.namespace, "get", "--raw", path_of_scale(job)))
    assert seen["spec"]["replicas"] == seen["status"]["replicas"] == 2
    assert seen["status"]["selector"] == "trainingjob.io/job-name=gpt,trainingjob.io/role=train"


def test_an_operator_that_dies_while_it_shrinks_a_gang_goes_on_where_it_was(job: PlayedJob, operator: Operator) -> None:
    operator.kill()
    scale(job, 2)
    operator.start()
    wait_until("the third is drained", lambda: deleting(job) == {"gpt-train-2-1"})
    operator.restart()
    job.wait("the size follows", lambda status: status["workers"]["desired"] == 2)
    assert deleting(job) == {"gpt-train-2-1"}
    assert set(job.pods()) == {"gpt-prepare-0-1", "gpt-train-0-1", "gpt-train-1-1", "gpt-train-2-1"}


def test_a_run_goes_on_without_a_worker_that_finds_no_node_and_takes_it_in_again(job: PlayedJob, head: Head) -> None:
    before = job.uids()
    head.trains(job.get()["metadata"]["uid"], before["gpt-train-0-1"])
    head.says(pods=[0, 1, 2], worldSize=3)
    job.wait_phase("Running")
    job.end("train-2-1", 20, **{"class": "Internal", "cause": "it broke"})
    job.wait_pods("train-2-2")
    find_no_node(job, "train-2-2")
    head.says(attempt=2, pods=[0, 1], worldSize=2)
    said = ("on 2 of 3 workers", "Pod gpt-train-2-2 finds no node: 0/2 nodes are available")
    status = job.wait("it trains on two", lambda status: all(words in status["message"] for words in said))
    assert status["phase"] == "Running"
    job.run("train-2-2")
    head.says(attempt=3, pods=[0, 1, 2], worldSize=3)
    status = job.wait("it trains on three", lambda status: status["workers"]["ready"] == 3)
    job.wait("and says so", lambda status: status["message"] == "Training on 3 ranks.")
    assert [(incident["class"], incident["pod"]) for incident in status["history"]] == [("Internal", "gpt-train-2-1")]
    assert status["restarts"]["total"] == 1
    assert before.items() <= job.uids().items(), "a pod that was not lost was replaced"


def path_of_scale(job: PlayedJob) -> str:
    return f"/apis/trainingjob.io/v1alpha1/namespaces/{job.namespace}/trainingjobs/{job.name}/scale"
