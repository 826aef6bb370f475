"""A pod's network is gone for good while its processes go on, and Kubernetes sees nothing wrong with it."""

from collections.abc import Callable
from typing import Any

import pytest
from support.disturb import cut_off, is_heard, lose_on_the_way
from support.manifests import language_job
from support.runs import Run, wait_until

Object = dict[str, Any]


def long_job(*place: str) -> Object:
    job = language_job(*place)
    job["spec"]["training"]["steps"] = 1200
    return job


def unheard(head: Object, worker: Object) -> None:
    """Nothing that the worker sends to its head arrives. Both reach the storage, and the operator reaches the head."""
    lose_on_the_way(worker, head)
    assert (is_heard(worker, head), is_heard(head, worker)) == (False, True)


def deaf(head: Object, worker: Object) -> None:
    """Nothing that the head sends to its worker arrives."""
    lose_on_the_way(head, worker)
    assert (is_heard(worker, head), is_heard(head, worker)) == (True, False)


def alone(head: Object, worker: Object) -> None:
    """The worker reaches nobody, and nobody the worker."""
    cut_off(worker["status"]["podIP"])
    assert (is_heard(worker, head), is_heard(head, worker)) == (False, False)


@pytest.mark.slow  # ten minutes, five of which the workers wait for their heads
def test_a_worker_that_is_cut_off_for_good_in_one_or_both_ways_ends_by_itself_and_has_a_successor(
    start_job: Callable[..., Run],
) -> None:
    runs, committed, before = {}, {}, {}
    for cut in (alone, unheard, deaf):
        name = cut.__name__
        run = runs[name] = start_job(long_job, name)
        committed[name], before[name] = run.wait_commit(), run.pods()
        cut(*before[name].values())
        wait_until(f"the ranks of {name} are lost", lambda run=run: run.phase() == "Restarting", 120)
    for name, run in runs.items():
        wait_until(f"the worker of {name} is replaced", lambda run=run: replaced(run, before[run.name][1]), 420)
        assert run.pods()[0]["metadata"]["uid"] == before[name][0]["metadata"]["uid"], "the head was replaced as well"
        run.wait_commit(after=committed[name])
    for name, run in runs.items():
        status = run.wait_succeeded(600)
        (lost,) = status["history"]
        assert (lost["class"], lost["pod"], lost["rank"]) == ("WorkerLost", f"{name}-train-1-1", 1)
        assert "did not answer for 5 minutes" in lost["cause"]
        assert 300 < lost["secondsToRecover"] < 420
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
