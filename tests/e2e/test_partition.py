"""A node falls silent and its pods go on: the run goes on elsewhere, and they are fenced."""

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
from support.disturb import silent_node
from support.manifests import language_job
from support.runs import RUN_PATIENCE, Run, wait_until
from trainingjob_local.crash import runs_here

if TYPE_CHECKING:
    from trainingjob_local.cluster import LocalCluster

Object = dict[str, Any]
HERE, ELSEWHERE = "node-1", "node-0"


@pytest.fixture
def one_node(cluster: "LocalCluster") -> Iterator[None]:
    """Nothing is placed elsewhere."""
    cluster.kubectl("cordon", ELSEWHERE)
    yield
    cluster.kubectl("uncordon", ELSEWHERE)


def endless_job(*place: str) -> Object:
    """Ended by its fence or with the test. Its node is given up as soon as Kubernetes allows; all checkpoints stay."""
    job = language_job(*place)
    job["spec"]["training"]["steps"] = 50_000
    job["spec"]["checkpoint"] |= {"everySteps": 100, "keepLast": 1000}
    soon = {"operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 1}
    job["spec"]["workers"]["template"] = {"tolerations": [{"key": "node.kubernetes.io/unreachable", **soon}]}
    return job


@pytest.mark.slow  # minutes: two gangs of real ranks, at the same time for a while
@pytest.mark.usefixtures("one_node")
def test_a_gang_on_a_partitioned_node_is_fenced_and_its_run_goes_on_elsewhere(
    cluster: "LocalCluster", start_job: Any
) -> None:
    run: Run = start_job(endless_job, "partitioned")
    run.wait_commit()
    old = {index: pod["metadata"]["uid"] for index, pod in run.pods().items()}
    with silent_node(cluster, HERE, seconds=15):
        cluster.kubectl("uncordon", ELSEWHERE)
        wait_until("the run has a second attempt", lambda: "attempts/2.json" in run.keys("attempts/"), RUN_PATIENCE)
        assert runs_here(old[0]), "the node's processes ended with its kubelet: nothing had to be fenced"
        wait_until("the old driver ends by itself", lambda: not runs_here(old[0]), RUN_PATIENCE)
        left = committed_objects(run)
        assert left
        wait_until("the new gang commits twice", lambda: len(commits_of(run, attempt=2)) > 1, RUN_PATIENCE)
        assert {pod["spec"]["nodeName"] for pod in run.pods().values()} == {ELSEWHERE}
        status = wait_until("the status says what it cost", lambda: recovered(run))
    now = run.etags("checkpoints/")
    assert {key: now.get(key) for key in left} == left, "a committed object was changed or is gone"
    assert {entry["class"] for entry in status["history"]} == {"NodeLost"}
    assert status["restarts"]["total"] == 0
    assert sorted(run.keys("attempts/")) == ["attempts/1.json", "attempts/2.json"], "the old driver went on"
    newest = commits_of(run, attempt=2)[-1]
    (progress,) = [item["key"] for item in newest["objects"] if item["key"].endswith("/trainer.json")]
    steps = [point["step"] for point in json.loads(run.read(progress))["history"]]
    assert steps == list(range(1, newest["step"] + 1)), "a step is missing or was taken twice"
    run.kubectl("delete", "tj", run.name)


def recovered(run: Run) -> Object | None:
    """The status, once all its incidents are over."""
    status = run.status()
    return status if all("secondsToRecover" in entry for entry in status["history"]) else None


def commits(run: Run) -> list[Object]:
    """All COMMITs that there are, by step."""
    keys = sorted(key for key in run.keys("checkpoints/") if key.endswith("/COMMIT.json"))
    return [json.loads(run.read(key)) for key in keys]


def commits_of(run: Run, attempt: int) -> list[Object]:
    return [commit for commit in commits(run) if commit["attempt"] == attempt]


def committed_objects(run: Run) -> dict[str, str]:
    """ETags of what COMMITs name, and of the COMMITs."""
    found = run.etags("checkpoints/")
    named = {item["key"] for commit in commits(run) for item in commit["objects"]}
    return {key: etag for key, etag in found.items() if key in named or key.endswith("/COMMIT.json")}
