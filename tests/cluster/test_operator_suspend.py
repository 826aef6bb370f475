"""Suspend and resume on a real API server, with pods that the test plays: at any phase, and to and fro."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from kubernetes import client
from support.disturb import find_no_node, place, terminating
from support.operator_process import Operator
from support.played import PlayedJob
from support.played_head import Head
from support.runs import wait_until

if TYPE_CHECKING:
    from trainingjob_local.cluster import LocalCluster

MakeJob = Callable[[str], PlayedJob]


@pytest.fixture(scope="module")
def make_job(
    cluster: LocalCluster, make_namespace: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[MakeJob]:
    """Jobs of one namespace with one operator: every test has a job of its own."""
    namespace = make_namespace("suspend")
    log: Path = tmp_path_factory.mktemp("operator") / "operator.log"
    operator = Operator(cluster.kubeconfig, log, "--namespace", namespace, "--progress-interval", "1")
    operator.start()
    yield lambda name: PlayedJob(cluster, namespace, name)
    operator.stop()
    cluster.kubectl("delete", "namespace", namespace, "--wait=false")


def pending(job: PlayedJob, head: Head) -> None:
    job.apply()
    job.wait_pods("prepare-0-1")
    place(job, "prepare-0-1")


def queued(job: PlayedJob, head: Head) -> None:
    job.apply()
    job.wait_pods("prepare-0-1")
    find_no_node(job, "prepare-0-1")


def preparing(job: PlayedJob, head: Head) -> None:
    pending(job, head)
    job.run("prepare-0-1")


def preparing_data(job: PlayedJob, head: Head) -> None:
    preparing(job, head)
    job.end("prepare-0-1", outcome="PrepareData")
    job.wait_pods("prepare-0-2", "prepare-1-1")
    place(job, "prepare-0-2", "prepare-1-1")
    job.run("prepare-0-2", "prepare-1-1")


def starting(job: PlayedJob, head: Head) -> None:
    preparing(job, head)
    job.end("prepare-0-1", outcome="Train")
    job.wait_pods("train-0-1", "train-1-1")
    place(job, "train-0-1", "train-1-1")
    job.run("train-1-1")


def running(job: PlayedJob, head: Head) -> None:
    starting(job, head)
    head.trains(job.get()["metadata"]["uid"], job.uids()[f"{job.name}-train-0-1"])
    job.run("train-0-1", address=head.address)
    job.wait_phase("Running")


def restarting(job: PlayedJob, head: Head) -> None:
    running(job, head)
    job.end("train-1-1", 20, **{"class": "Internal", "cause": "the worker crashed"})


PHASES = {
    pending: "Pending",
    queued: "Queued",
    preparing: "Preparing",
    preparing_data: "Preparing",
    starting: "Starting",
    running: "Running",
    restarting: "Restarting",
}


@pytest.mark.parametrize(("reach", "phase"), PHASES.items(), ids=lambda value: getattr(value, "__name__", ""))
def test_a_job_can_be_suspended_at_any_phase_and_goes_on(
    make_job: MakeJob, head: Head, reach: Callable[[PlayedJob, Head], None], phase: str
) -> None:
    job = make_job(reach.__name__.replace("_", "-"))
    reach(job, head)
    job.wait_phase(phase)
    restarts = job.status()["restarts"]
    job.patch({"runPolicy": {"suspend": True}})
    bound = [name for name, pod in living(job).items() if pod["spec"].get("nodeName")]
    if bound:
        job.wait_phase("Suspending")
        wait_until("pods have their grace", lambda: terminating(job) == dict.fromkeys(bound, 5))
        for name in bound:
            job.end(name.removeprefix(f"{job.name}-"), 30, **{"class": "Drained", "cause": "SIGTERM", "step": 27})
    status = job.wait_phase("Suspended")
    assert living(job) == {}
    assert status["restarts"] == restarts, "a drained pod is no failure"
    assert {c["type"] for c in status["conditions"] if c["status"] == "True"} == {"Suspended"}
    assert "resolved" not in status
    job.patch({"runPolicy": {"suspend": False}})
    job.wait_phase("Pending")
    (again,) = wait_until("it begins at the check again", lambda: living(job))
    incarnation = int(again.rpartition("-")[2])
    assert again == f"{job.name}-prepare-0-{incarnation}"
    assert incarnation > 1
    job.delete()


@pytest.mark.parametrize("seed", range(4))
def test_of_many_flips_the_last_wish_counts(make_job: MakeJob, seed: int) -> None:
    dice = random.Random(seed)
    job = make_job(f"flip-{seed}")
    job.apply()
    for _ in range(12):
        wish = dice.random() < 0.5
        job.patch({"runPolicy": {"suspend": wish}})
        for _ in range(dice.randrange(3)):
            play_on(job, dice)
        if dice.random() < 0.3:
            generation = job.get()["metadata"]["generation"]
            job.wait("it is seen", lambda status, g=generation: status["observedGeneration"] >= g)
    if wish:
        wait_until("it is suspended", lambda: stay_still(job) and job.status()["phase"] == "Suspended")
        assert living(job) == {}
    else:
        wait_until("it goes on", lambda: stay_still(job) and healthy(job))
    job.delete()


def living(job: PlayedJob) -> dict[str, dict]:  # type: ignore[type-arg]
    """Pods that have not ended."""
    return {name: pod for name, pod in job.pods().items() if pod["status"]["phase"] not in ("Succeeded", "Failed")}


def play_on(job: PlayedJob, dice: random.Random) -> None:
    """One pod goes one step on: it finds a node, starts, ends, or is removed by its node."""
    pods = job.pods()
    if not pods:
        return
    name = dice.choice(sorted(pods))
    pod, short = pods[name], name.removeprefix(f"{job.name}-")
    with_luck = dice.random()
    with unless_gone():
        if "deletionTimestamp" in pod["metadata"]:
            job.remove_pod(short)
        elif pod["status"]["phase"] == "Pending" and not pod["spec"].get("nodeName") and with_luck < 0.5:
            place(job, short)
        elif pod["status"]["phase"] == "Pending":
            job.run(short)
        elif pod["status"]["phase"] == "Running" and short.startswith("prepare-0"):
            job.end(short, outcome="Train")


@contextmanager
def unless_gone() -> Iterator[None]:
    """The operator may have deleted the pod in the meantime, or Kubernetes, which finds no such node."""
    try:
        yield
    except client.ApiException as error:
        if error.status not in (404, 409):
            raise


def stay_still(job: PlayedJob) -> bool:
    """Nodes remove the pods that they were told to end; nothing else happens."""
    for name, pod in job.pods().items():
        if "deletionTimestamp" in pod["metadata"]:
            with unless_gone():
                job.remove_pod(name.removeprefix(f"{job.name}-"))
    return True


def healthy(job: PlayedJob) -> bool:
    """All pods of the current stage are there, none of them on its way out, none twice."""
    status, pods = job.status(), living(job)
    wanted = status.get("workers", {}).get("desired")
    indexes = {name.rpartition("-")[0] for name in pods}
    return status["phase"] in ("Pending", "Preparing", "Starting") and len(pods) == wanted == len(indexes)
