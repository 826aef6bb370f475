"""A pod's network is gone, or a part of it, while its processes go on, and Kubernetes sees nothing wrong with it."""

from collections.abc import Callable
from typing import Any

import pytest
from support.disturb import cut_apart, cut_off, is_heard, lose_on_the_way
from support.manifests import language_job
from support.runs import RUN_PATIENCE, Run, wait_until

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
        wait_until(f"the ranks of {name} are lost", lambda run=run: run.phase() == "Restarting", RUN_PATIENCE)
    for name, run in runs.items():
        wait_until(
            f"the worker of {name} is replaced", lambda run=run: replaced(run, before[run.name][1]), RUN_PATIENCE
        )
        assert run.pods()[0]["metadata"]["uid"] == before[name][0]["metadata"]["uid"], "the head was replaced as well"
        run.wait_commit(after=committed[name])
    for name, run in runs.items():
        status = run.wait_succeeded()
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
    wait_until("the head is replaced", lambda: replaced(run, before[0]), RUN_PATIENCE)
    run.wait_commit(after=committed)
    history = run.wait_succeeded()["history"]
    (lost,) = [entry for entry in history if entry.get("pod") == "headless-train-0-1"]
    assert lost["class"] in ("Storage", "WorkerLost"), "it reaches neither"
    assert lost["secondsToRecover"] > 0


def impatient_job(*place: str) -> Object:
    """Three workers, of which two do not see each other through the third. A hang is told after 15 s."""
    job = language_job(*place)
    spec = job["spec"]
    training = {**spec["training"], "steps": 600, "globalBatchSize": 12, "hangSeconds": 15}
    return job | {"spec": {**spec, "workers": {**spec["workers"], "replicas": 3}, "training": training}}


@pytest.mark.slow  # four to six minutes; nine more until ranks have given up to come together
@pytest.mark.parametrize("attempts", [1, 2])
def test_workers_that_do_not_reach_each_other_are_named_and_none_is_blamed_or_replaced(
    start_job: Callable[..., Run], attempts: int
) -> None:
    """Both reach the head, the API server and the storage. The run goes on when they reach each other again."""
    run = start_job(impatient_job, f"apart-{attempts}")
    committed, before = run.wait_commit(), run.pods()
    with cut_apart(before[1], before[2]):
        heard = [(a, b) for a, b in ((1, 2), (2, 1), (0, 1), (2, 0)) if is_heard(before[a], before[b])]
        assert heard == [(0, 1), (2, 0)]
        wait_until("the attempts hang", lambda: len(run.status()["history"]) == attempts, RUN_PATIENCE)
        status = run.status()
        logs = run.kubectl("logs", before[0]["metadata"]["name"])
    hung, *apart = status["history"]
    assert hung["cause"].startswith("No pass began for 15 s after step ")
    assert " wait in " in hung["cause"]
    assert logs.count("No pass for 15 s. The stacks of all threads:") == 3
    assert all(entry["cause"].startswith("The ranks did not come together within ") for entry in apart)
    for entry in status["history"]:
        assert entry["class"] == "Hang"
        assert entry["cause"].endswith("; train-1 and train-2 do not reach each other.")
        assert entry.keys().isdisjoint({"rank", "pod", "node"}), "somebody is blamed"
    assert status["history"][-1]["cause"] in status["message"]
    run.wait_commit(after=committed)
    status = run.wait_succeeded()
    assert len(status["history"]) == status["restarts"]["total"] == attempts
    assert all(entry["secondsToRecover"] > 0 for entry in status["history"])
    assert not status["resolved"].get("avoidedNodes")
    attempted = {pod["metadata"]["uid"] for pod in before.values()}
    assert {member["uid"] for member in status["pods"] if member["role"] == "train"} == attempted


def replaced(run: Run, old: Object) -> bool:
    """Whether another pod lives in this one's place."""
    pod = run.pods().get(int(old["metadata"]["labels"]["trainingjob.io/index"]), old)
    return bool(pod["metadata"]["uid"] != old["metadata"]["uid"])
