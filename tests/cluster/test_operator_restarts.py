"""The operator is restarted, or upgraded, while a job runs: what was begun goes on as it was begun."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support.disturb import edit_status, place, terminating
from support.operator_process import Operator
from support.played import Object, PlayedJob
from support.runs import wait_until

if TYPE_CHECKING:
    from trainingjob_local.cluster import LocalCluster

MakeJob = Callable[..., PlayedJob]
MakeOperator = Callable[[str], Operator]
LONG_AGO = "2026-01-01T00:00:00Z"


@pytest.fixture
def install(cluster: LocalCluster, namespace: str, tmp_path: Path) -> Iterator[MakeOperator]:
    """Start an operator with a trainer image of its own; the one before it ends first."""
    running: list[Operator] = []

    def start(image: str) -> Operator:
        while running:
            running.pop().stop()
        flags = ("--namespace", namespace, "--progress-interval", "1", "--trainer-image", image)
        running.append(Operator(cluster.kubeconfig, tmp_path / "operator.log", *flags))
        running[0].start()
        return running[0]

    yield start
    while running:
        running.pop().stop()


def built_with(pod: Object) -> tuple[str, str]:
    """Image and ConfigMap of a pod."""
    (config,) = [v["configMap"]["name"] for v in pod["spec"]["volumes"] if "configMap" in v]
    return pod["spec"]["containers"][0]["image"], config


def test_a_run_keeps_image_and_configuration_over_an_upgrade_and_takes_the_new_with_a_resume(
    install: MakeOperator, played: MakeJob
) -> None:
    install("trainer:old")
    job = played()
    job.apply()
    job.run_to_training()
    job.wait("both workers are ready", lambda status: status["workers"]["ready"] == 2)
    old, uids = built_with(job.pods()["gpt-train-1-1"]), job.uids()
    assert old[0] == "trainer:old"
    install("trainer:new")
    job.patch({"runPolicy": {"maxRestarts": 9}})  # part of the configuration, and may change while the run is on
    job.end("train-1-1", 137)
    pods = job.wait_pods("train-1-2")
    assert built_with(pods["gpt-train-1-2"]) == old
    assert job.status()["resolved"]["image"] == "trainer:old"
    assert uids.items() <= job.uids().items()
    job.patch({"runPolicy": {"suspend": True}})
    job.wait_phase("Suspended")
    job.patch({"runPolicy": {"suspend": False}})
    pods = job.wait_pods("prepare-0-2")
    image, config = built_with(pods["gpt-prepare-0-2"])
    assert (image, config != old[1]) == ("trainer:new", True)
    assert f"ConfigMap/{config}" in job.leftovers()


def test_the_deadline_is_a_point_in_time_and_drains_before_it_kills(install: MakeOperator, played: MakeJob) -> None:
    operator = install("trainer:1")
    job = played(runPolicy={"activeDeadlineSeconds": 3600})
    job.apply()
    job.run_to_training()
    place(job, "train-0-1", "train-1-1")
    operator.kill()
    edit_status(job, startTime=LONG_AGO)
    operator.start()
    workers = dict.fromkeys(("gpt-train-0-1", "gpt-train-1-1"), 5)
    wait_until("the pods have their grace", lambda: terminating(job) == workers)
    status = job.wait("it is said", lambda status: "activeDeadlineSeconds" in status["message"])
    assert status["phase"] != "Failed", "the pods are still committing their checkpoint"
    for name in ("train-0-1", "train-1-1"):
        job.end(name, 30, **{"class": "Drained", "cause": "SIGTERM"})
    status = job.wait_phase("Failed")
    assert status["startTime"] == LONG_AGO
    assert [incident["class"] for incident in status["history"]] == ["DeadlineExceeded"]


def test_the_time_to_live_counts_while_the_operator_is_away(install: MakeOperator, played: MakeJob) -> None:
    operator = install("trainer:1")
    job = played(runPolicy={"podsTTLSecondsAfterFinished": 3600})
    job.apply()
    job.run_to_training()
    job.end("train-1-1")
    job.end("train-0-1", outcome="Finished", result={"modelUri": "s3://m", "step": 100})
    status = job.wait_phase("Succeeded")
    operator.kill()
    assert "gpt-train-0-1" in job.uids(), "it was removed too early"
    edit_status(job, completionTime=LONG_AGO)
    operator.start()
    secret = {f"Secret/gpt-tj-{job.get()['metadata']['uid']}"}
    wait_until("nothing is left but the Secret", lambda: job.leftovers() == secret)
    left = job.status()
    assert (left["phase"], left["result"]) == ("Succeeded", status["result"])
