"""Pods that an admission webhook has put another container into: only the trainer's end counts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from support.memory_api import owner
from support.play import FINISHED, Play, custom, policy
from trainingjob_operator.core.facts import PodFacts
from trainingjob_operator.core.failures import classify
from trainingjob_operator.core.kueue import Queued

RUNS: dict[str, Any] = {"running": {"startedAt": "2026-01-01T00:00:00Z"}}


def seen(phase: str, trainer: dict[str, Any], proxy: dict[str, Any] | None = None, **status: Any) -> PodFacts:
    """A pod in whose status the other container stands first."""
    states = {"proxy": proxy, "trainer": trainer}
    containers = [{"name": name, "state": state} for name, state in states.items() if state is not None]
    meta = {"name": "gpt-train-0-1", "uid": "p", "ownerReferences": [owner("job-uid")]}
    return PodFacts.from_object(
        {"metadata": meta, "status": {"phase": phase, "containerStatuses": containers, **status}}
    )


def ended(code: int) -> dict[str, Any]:
    return {"terminated": {"exitCode": code}}


@pytest.mark.parametrize(
    ("pod", "phase", "lingering"),
    [
        (seen("Running", ended(0), RUNS), "Succeeded", True),
        (seen("Running", ended(20), RUNS), "Failed", True),
        (seen("Failed", ended(0), ended(137)), "Succeeded", False),
        (seen("Running", RUNS, ended(1)), "Running", False),
        (seen("Succeeded", ended(0)), "Succeeded", False),
        (seen("Running", ended(0)), "Succeeded", False),
        (seen("Failed", ended(0), ended(0), reason="Evicted"), "Failed", False),
        (seen("Pending", {"waiting": {}}, RUNS), "Pending", False),
    ],
)
def test_a_pod_is_as_its_trainer(pod: PodFacts, phase: str, lingering: bool) -> None:
    assert (pod.phase, pod.lingering) == (phase, lingering)


def test_an_init_container_that_fails_is_named() -> None:
    before = [{"name": "mesh-init", "state": ended(0)}, {"name": "mesh-certs", "state": ended(3)}]
    pod = seen("Failed", {"waiting": {"reason": "PodInitializing"}}, initContainerStatuses=before)
    failure = classify(pod, "rank 0")
    assert failure.class_ == "Crashed"
    assert failure.cause == "pod gpt-train-0-1 ended: its init container mesh-certs ended with exit code 3"


def test_a_pod_that_its_trainer_has_left_is_deleted_with_the_others(training: Play) -> None:
    training.end("gpt-train-0-1", 0, FINISHED, lingering=True)
    training.end("gpt-train-1-1", 0, lingering=True)
    training.settle()
    assert training.status.phase == "Succeeded"
    assert training.deleted == ["gpt-train-0-1", "gpt-train-1-1"]


def test_a_failed_pod_that_lingers_goes_when_it_has_a_successor(training: Play) -> None:
    training.end("gpt-train-1-1", 20, lingering=True)
    training.step(1)
    assert training.deleted == ["gpt-train-1-1"]
    assert "gpt-train-1-2" in training.created
    assert training.status.restarts.total == 1


def test_a_worker_that_is_done_before_its_head_stays_as_long_as_that() -> None:
    play = Play(spec=custom())
    play.settle()
    play.run_pods()
    play.step(1)
    play.end("gpt-train-1-1", 0, lingering=True)
    play.settle()
    assert (play.deleted, play.created) == ([], ["gpt-train-0-1", "gpt-train-1-1"])
    play.end("gpt-train-0-1", 0, FINISHED)
    play.settle()
    assert (play.status.phase, play.deleted) == ("Succeeded", ["gpt-train-1-1"])


def test_in_a_queue_the_successor_waits_until_the_whole_pod_has_ended() -> None:
    play = Play(spec=policy(queueName="team"))
    play.to_training()
    for pod in play.pods:
        play.change(pod.name, queued=replace(pod.queued or Queued("g"), held=True))
    play.end("gpt-train-1-1", 20, lingering=True)
    play.step(1)
    assert play.deleted == ["gpt-train-1-1"]
    assert "gpt-train-1-2" not in play.created
    play.change("gpt-train-1-1", lingering=False)
    play.step(1)
    assert "gpt-train-1-2" in play.created
