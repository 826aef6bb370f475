"""A pod's network is gone for good while its processes go on, and Kubernetes sees nothing wrong with it."""

from collections.abc import Callable
from typing import Any

import pytest
from support.disturb import cut_off
from support.manifests import language_job
from support.runs import Run, wait_until

Object = dict[str, Any]


def long_job(*place: str) -> Object:
    job = language_job(*place)
    job["spec"]["training"]["steps"] = 1200
    return job


@pytest.mark.slow  # eight minutes, five of which the pod waits for its head
def test_a_worker_that_is_cut_off_for_good_ends_by_itself_and_has_a_successor(start_job: Callable[..., Run]) -> None:
    run = start_job(long_job, "cut-off")
    committed = run.wait_commit()
    before = run.pods()
    cut_off(before[1]["status"]["podIP"])
    wait_until("the ranks are lost", lambda: run.phase() == "Restarting", 120)
    wait_until("the worker is replaced", lambda: replaced(run, before[1]), 400)
    assert run.pods()[0]["metadata"]["uid"] == before[0]["metadata"]["uid"], "the head was replaced as well"
    run.wait_commit(after=committed)
    status = run.wait_succeeded(300)
    (lost,) = status["history"]
    assert (lost["class"], lost["pod"], lost["rank"]) == ("WorkerLost", "cut-off-train-1-1", 1)
    assert "did not answer for 5 minutes" in lost["cause"]
    assert lost["secondsToRecover"] > 300
    assert status["restarts"]["total"] == 1


@pytest.mark.slow  # minutes: it must find out that it reaches the storage no more
def test_a_head_that_is_cut_off_for_good_ends_by_itself_and_has_a_successor(start_job: Callable[..., Run]) -> None:
    run = start_job(long_job, "headless")
    committed = run.wait_commit()
    before = run.pods()
    cut_off(before[0]["status"]["podIP"])
    wait_until("the head is replaced", lambda: replaced(run, before[0]), 400)
    run.wait_commit(after=committed)
    history = run.wait_succeeded(300)["history"]
    (lost,) = [entry for entry in history if entry.get("pod") == "headless-train-0-1"]
    assert lost["class"] in ("Storage", "WorkerLost"), "it reaches neither"
    assert lost["secondsToRecover"] > 0


def replaced(run: Run, old: Object) -> bool:
    """Whether another pod lives in this one's place."""
    pod = run.pods().get(int(old["metadata"]["labels"]["trainingjob.io/index"]), old)
    return bool(pod["metadata"]["uid"] != old["metadata"]["uid"])
