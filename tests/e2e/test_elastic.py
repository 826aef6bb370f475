"""An elastic run on real Ray: it loses a worker, goes on without, grows back, and is scaled down."""

import json
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
from support.manifests import elastic_job
from support.runs import RUN_PATIENCE, Run, wait_until
from trainingjob_local.crash import crash

if TYPE_CHECKING:
    from trainingjob_local.cluster import LocalCluster

Object = dict[str, Any]


@pytest.fixture
def no_room(cluster: "LocalCluster") -> Iterator[Callable[[bool], None]]:
    """Let no node take a new pod, or all of them again."""

    def cordon(closed: bool) -> None:
        for node in cluster.nodes:
            cluster.kubectl("cordon" if closed else "uncordon", node)

    yield cordon
    cordon(False)


@pytest.mark.slow  # three minutes: four attempts, each of which starts ranks
def test_a_run_goes_on_with_fewer_workers_grows_back_and_follows_the_scale(
    start_job: Callable[..., Run], no_room: Callable[[bool], None]
) -> None:
    run = start_job(elastic_job, "elastic")
    committed = run.wait_commit()
    began = {index: pod["metadata"]["uid"] for index, pod in run.pods().items()}
    assert sorted(began) == [0, 1, 2]

    no_room(True)
    crash(began[2])
    wait_for(run, "it trains on two", lambda s: s["phase"] == "Running" and "on 2 of 3 workers" in s["message"])
    assert "Pod elastic-train-2-2 finds no node: 0/2 nodes are available" in run.status()["message"]
    assert resumed(run) >= committed
    run.wait_commit(after=resumed(run))

    no_room(False)
    wait_for(run, "it trains on three again", lambda s: recovered(s, "Resized") and s["phase"] == "Running")
    assert run.status()["workers"] == {"desired": 3, "ready": 3}

    before = run.committed_steps()[-1]
    run.kubectl("scale", "tj/elastic", "--replicas=1")
    status = wait_for(run, "it trains alone", lambda s: recovered(s, "Drained") and s["phase"] == "Running")
    assert status["resolved"]["worldSize"] == 1
    assert {index: pod["metadata"]["uid"] for index, pod in run.pods().items()} == {0: began[0]}
    assert resumed(run) >= before

    status = run.wait_succeeded()
    history = status["history"]
    assert [entry["pod"] for entry in history if "pod" in entry] == ["elastic-train-2-1"]
    assert [entry["class"] for entry in history[1:]] == ["Resized", "Drained"]
    assert [entry["stepsLost"] for entry in history[1:]] == [0, 0]
    assert status["restarts"]["total"] == 1
    losses = run.report()["history"]["train"]
    steps = run.manifest["spec"]["training"]["steps"]
    assert [point["step"] for point in losses] == list(range(1, steps + 1)), "a step is missing or was taken twice"
    assert len(run.keys("attempts/")) == 4


def wait_for(run: Run, what: str, holds: Callable[[Object], Any]) -> Object:
    """The status, once `holds` of it; the job must not end before."""
    status: Object = {}

    def seen() -> bool:
        nonlocal status
        status = run.status()
        assert status["phase"] not in ("Succeeded", "Failed"), f"over before {what}: {json.dumps(status, indent=1)}"
        return bool(holds(status))

    try:
        wait_until(what, seen, RUN_PATIENCE)
    except AssertionError as late:
        raise AssertionError(f"{late}\n{json.dumps(status, indent=1)}") from None
    return status


def recovered(status: Object, class_: str) -> bool:
    """Whether the newest incident is of this class, and over."""
    newest = status["history"][-1]
    return newest["class"] == class_ and "secondsToRecover" in newest


def resumed(run: Run) -> int:
    """The step that the newest attempt began with."""
    newest = max(run.keys("attempts/"), key=lambda key: int(key.removesuffix(".json").rpartition("/")[2]))
    step: int = json.loads(run.read(newest))["resumesFromStep"]
    return step
