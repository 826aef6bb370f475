"""A job in a queue of Kueue's: its pods are admitted and end as groups."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.play import FINISHED, Play, custom, policy
from trainingjob_operator.core.kueue import Queued

QUEUE = {"queueName": "team"}


@pytest.fixture
def queued() -> Play:
    """A training job in the queue; Kueue has admitted its pods and holds them."""
    play = Play(spec=policy(**QUEUE))
    play.to_training()
    hold(play)
    return play


def hold(play: Play, role_hash: str = "abc") -> None:
    """What Kueue's webhook adds to new pods, once they are admitted."""
    for pod in play.pods:
        if pod.queued is not None and not pod.queued.held:
            play.change(pod.name, queued=replace(pod.queued, held=True, role_hash=pod.queued.role_hash or role_hash))


def groups(play: Play) -> dict[str, str | None]:
    return {pod.name: pod.queued.group if pod.queued is not None else None for pod in play.pods}


def evict(play: Play, name: str, why: str = "Preempted to accommodate a workload") -> None:
    pod = play.pod(name)
    assert pod.queued is not None
    play.change(name, deleting=True, queued=replace(pod.queued, stopped=why))


def test_each_role_and_admission_has_a_group_of_its_own(queued: Play) -> None:
    assert groups(queued) == {
        "gpt-prepare-0-1": "gpt-prepare-1",
        "gpt-train-0-1": "gpt-train-2",
        "gpt-train-1-1": "gpt-train-2",
    }


def test_a_pod_carries_queue_group_and_total_count_and_the_templates_labels_cannot_change_them() -> None:
    play = Play(spec=policy(**QUEUE))
    play.spec["workers"]["template"] = {"labels": {"kueue.x-k8s.io/queue-name": "other", "team": "a"}}
    play.settle()
    (manifest,) = [m for m in play.manifests if m["metadata"]["name"] == "gpt-prepare-0-1"]
    assert manifest["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team"
    assert manifest["metadata"]["labels"]["kueue.x-k8s.io/pod-group-name"] == "gpt-prepare-1"
    assert manifest["metadata"]["labels"]["team"] == "a"
    assert manifest["metadata"]["annotations"]["kueue.x-k8s.io/pod-group-total-count"] == "1"
    assert "kueue.x-k8s.io/role-hash" not in manifest["metadata"]["annotations"]


def test_a_job_without_a_queue_has_nothing_of_it() -> None:
    play = Play()
    play.to_training()
    assert set(groups(play).values()) == {None}
    assert play.status.admissions == 0
    assert "kueue" not in str(play.manifests)


def test_a_replacement_joins_the_group_with_its_role_hash(queued: Play) -> None:
    queued.end("gpt-train-1-1", 137)
    queued.settle()
    successor = queued.pod("gpt-train-1-2")
    assert successor.queued == Queued("gpt-train-2", role_hash="abc")
    assert queued.status.admissions == 2


def test_a_successor_waits_until_its_predecessor_has_ended(queued: Play) -> None:
    queued.change("gpt-train-1-1", deleting=True, disruption="DeletionByTaintManager", node="lost")
    queued.settle()
    assert queued.status.history[-1].class_ == "NodeLost"
    assert "gpt-train-1-2" not in queued.names
    queued.end("gpt-train-1-1", 137, deleting=True)
    queued.settle()
    assert "gpt-train-1-2" in queued.names


def test_an_eviction_is_one_preemption_that_is_not_counted_and_a_new_group(queued: Play) -> None:
    evict(queued, "gpt-train-0-1")
    evict(queued, "gpt-train-1-1")
    queued.settle()
    (incident,) = queued.status.history
    assert incident.class_ == "Preempted"
    assert "Preempted to accommodate a workload" in incident.cause
    assert queued.status.restarts.total == 0
    assert queued.status.phase == "Restarting"
    assert len(queued.created) == 3
    queued.end("gpt-train-0-1", 30, {"class": "Drained"})
    queued.end("gpt-train-1-1", 30, {"class": "Drained"})
    queued.settle()
    assert groups(queued)["gpt-train-0-2"] == groups(queued)["gpt-train-1-2"] == "gpt-train-3"
    assert queued.pod("gpt-train-0-2").queued == Queued("gpt-train-3")
    assert len(queued.status.history) == 1


def test_an_eviction_that_reaches_one_pod_first_takes_the_others_along(queued: Play) -> None:
    evict(queued, "gpt-train-1-1")
    queued.settle()
    assert queued.deleted == ["gpt-train-0-1"]


def test_an_eviction_is_known_from_pods_that_are_gone(queued: Play) -> None:
    evict(queued, "gpt-train-1-1")
    queued.vanish("gpt-train-1-1")
    queued.settle()
    assert [incident.class_ for incident in queued.status.history] == ["Preempted"]
    assert queued.status.admissions == 3


def test_a_group_that_is_over_is_given_up_once_by_one_of_its_pods(queued: Play) -> None:
    queued.spec = policy(suspend=True, **QUEUE)
    queued.settle()
    assert queued.given_up == ["gpt-train-0-1"]
    queued.end("gpt-train-0-1", 30, {"class": "Drained"}, deleting=True)
    queued.end("gpt-train-1-1", 30, {"class": "Drained"}, deleting=True)
    queued.settle()
    assert queued.status.phase == "Suspended"
    assert queued.given_up == ["gpt-train-0-1"]


def test_after_a_suspension_the_groups_are_new_ones(queued: Play) -> None:
    queued.spec = policy(suspend=True, **QUEUE)
    queued.settle()
    queued.pods = []
    queued.settle()
    queued.spec = policy(suspend=False, **QUEUE)
    queued.settle()
    assert groups(queued) == {"gpt-prepare-0-2": "gpt-prepare-3"}


def test_a_failed_job_gives_its_group_up_a_succeeded_one_need_not(queued: Play) -> None:
    queued.end("gpt-train-1-1", 10, {"class": "UserError", "cause": "no such column"})
    queued.settle()
    assert queued.status.phase == "Failed"
    assert queued.given_up == ["gpt-train-0-1"]
    other = Play(spec=policy(**QUEUE))
    other.to_training()
    hold(other)
    other.end("gpt-train-1-1", 0)
    other.end("gpt-train-0-1", 0, FINISHED)
    other.settle()
    assert other.status.phase == "Succeeded"
    assert other.given_up == []


def test_a_pod_that_is_deleted_before_it_was_admitted_is_not_waited_for() -> None:
    play = Play(spec=policy(**QUEUE))
    play.settle()
    pod = play.pod("gpt-prepare-0-1")
    assert pod.queued is not None
    play.change(pod.name, queued=replace(pod.queued, gated=True, held=True))
    play.spec = policy(suspend=True, **QUEUE)
    play.settle()
    assert play.status.phase == "Suspended"
    assert play.given_up == ["gpt-prepare-0-1"]


def test_a_gang_whose_workers_were_done_when_the_head_failed_begins_in_a_new_group(queued: Play) -> None:
    """Kueue gives the quota of a pod that succeeded away: its successor would never be admitted in the old group."""
    queued.end("gpt-train-1-1", 0)
    queued.end("gpt-train-0-1", 20, {"class": "Internal", "cause": "the export failed"})
    queued.settle()
    assert groups(queued)["gpt-train-0-2"] == groups(queued)["gpt-train-1-2"] == "gpt-train-3"
    assert queued.given_up == ["gpt-train-0-1"]
    assert queued.status.restarts.total == 1


def test_a_custom_gang_that_starts_anew_keeps_its_group_and_its_quota() -> None:
    play = Play(spec=custom(runPolicy=QUEUE))
    play.settle()
    hold(play)
    play.run_pods()
    play.end("gpt-train-1-1", 1)
    play.settle()
    assert play.deleted == ["gpt-train-0-1"]
    play.end("gpt-train-0-1", 143, deleting=True)
    play.settle()
    assert groups(play)["gpt-train-0-2"] == groups(play)["gpt-train-1-2"] == "gpt-train-1"
    assert play.given_up == []


def test_an_eviction_is_told_however_many_words_kueue_has_for_it(queued: Play) -> None:
    evict(queued, "gpt-train-0-1", "Preempted, because " * 2000)
    queued.settle()
    assert queued.status.history[-1].class_ == "Preempted"
    assert queued.status.admissions == 3
