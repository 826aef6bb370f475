"""What the operator does about an elastic job: its gang follows the spec, and the run goes on with what is there."""

from datetime import timedelta
from typing import Any

import pytest
from support.play import Play, spec


def elastic(replicas: int, least: int = 1, **fields: Any) -> dict[str, Any]:
    return spec(workers={"replicas": replicas, "minReplicas": least}, **fields)


@pytest.fixture
def three() -> Play:
    """Three workers train in attempt 1."""
    play = Play(spec=elastic(3))
    play.to_training()
    trains(play, 1, [0, 1, 2], committed=20)
    return play


def trains(play: Play, attempt: int, pods: list[int], committed: int = 0, **fields: Any) -> None:
    """The head reports that attempt's first step, taken by the ranks of these pods."""
    play.train(committed + 1, attempt, committed=committed, resumed=committed, pods=pods, **fields)
    play.settle()


def scale(play: Play, replicas: int) -> None:
    play.spec = {**play.spec, "workers": {**play.spec["workers"], "replicas": replicas}}
    play.generation += 1
    play.settle()


def sizes(play: Play) -> tuple[int, int, int]:
    assert play.status.resolved is not None
    return play.status.resolved.replicas, play.status.resolved.world_size, play.status.workers.desired


def resized(attempt: int, play: Play, step: int = 20) -> dict[str, Any]:
    cause, time = "pods joined the 2 that trained", play.now.isoformat()
    return {"attempt": attempt, "class": "Resized", "cause": cause, "step": step, "time": time}


# --- the size follows the spec


def test_shrinking_drains_the_highest_indexes_and_never_the_head(three: Play) -> None:
    created = len(three.created)
    scale(three, 1)
    assert three.deleted == ["gpt-train-1-1", "gpt-train-2-1"]
    assert sizes(three) == (1, 1, 1)
    assert three.status.history == ()
    assert len(three.created) == created
    assert three.status.observed_generation == 2
    for index in (1, 2):
        three.end(f"gpt-train-{index}-1", 30, {"class": "Drained"}, deleting=True)
    trains(three, 2, [0], committed=25)
    assert (three.status.phase, three.status.history) == ("Running", ())
    assert three.status.restarts.total == 0


def test_growing_licenses_new_pods_and_leaves_the_others(three: Play) -> None:
    scale(three, 5)
    assert three.created[-2:] == ["gpt-train-3-1", "gpt-train-4-1"]
    assert three.deleted == []
    assert sizes(three) == (5, 5, 5)
    assert three.status.phase == "Running", "three go on until the next checkpoint"
    three.run_pods()
    three.step(15)
    assert three.status.message == "Training on 3 of 5 workers. Pod gpt-train-3-1 has yet to join."


def test_an_index_that_comes_back_has_another_incarnation(three: Play) -> None:
    scale(three, 2)
    three.vanish("gpt-train-2-1")
    three.settle()
    scale(three, 3)
    assert three.created[-1] == "gpt-train-2-2"


def test_growing_does_not_wait_for_what_is_being_drained(three: Play) -> None:
    scale(three, 2)
    scale(three, 3)
    assert three.created[-1] == "gpt-train-2-2"
    assert not three.pod("gpt-train-2-1").member, "its successor has the name in DNS"


def test_the_configuration_is_the_same_at_every_size(three: Play) -> None:
    before = three.status.resolved
    config_maps = [m for m in three.children if m["kind"] == "ConfigMap"]
    scale(three, 5)
    assert three.status.resolved is not None
    assert before is not None
    assert three.status.resolved.config_hash == before.config_hash
    assert [m for m in three.children if m["kind"] == "ConfigMap"] == config_maps


def test_a_size_that_changes_before_training_is_the_one_that_training_begins_with() -> None:
    play = Play(spec=elastic(3))
    play.settle()
    scale(play, 2)
    assert play.created == ["gpt-prepare-0-1"]
    play.run_pods()
    play.end("gpt-prepare-0-1", 0, {"outcome": "Train"})
    play.settle()
    assert play.created[1:] == ["gpt-train-0-1", "gpt-train-1-1"]


def test_the_size_of_a_job_that_is_not_elastic_waits_for_the_next_start(training: Play) -> None:
    training.spec = spec(workers={"replicas": 5})
    training.settle()
    assert sizes(training) == (2, 2, 2)


# --- going on with what is there


def lose_for_long(play: Play, index: int = 2) -> None:
    """A worker crashes; its successor finds no node."""
    play.end(f"gpt-train-{index}-1", 137)
    play.settle()
    play.change(f"gpt-train-{index}-2", unschedulable="0/2 nodes are available: 2 Insufficient cpu.")
    play.settle()


def test_a_worker_that_cannot_be_replaced_at_once_leaves_the_job_running(three: Play) -> None:
    lose_for_long(three)
    assert three.status.phase == "Restarting", "until the next attempt trains"
    three.step(30)
    trains(three, 2, [0, 1], committed=20)
    assert three.status.phase == "Running"
    assert three.condition("Ready") == "True"
    message = three.status.message
    assert message.startswith("Training on 2 of 3 workers. Pod gpt-train-2-2 finds no node: 0/2 nodes are available")
    assert three.status.workers.desired == 3
    assert three.status.workers.ready == 2
    (incident,) = three.status.history
    assert (incident.class_, incident.seconds_to_recover) == ("Killed", 30)


def test_it_grows_back_at_a_checkpoint_and_that_is_no_failure(three: Play) -> None:
    lose_for_long(three)
    trains(three, 2, [0, 1], committed=20)
    counted = three.status.restarts.total, three.status.restarts.without_progress
    three.change("gpt-train-2-2", unschedulable=None)
    three.run_pods()
    three.step(15)
    assert "Pod gpt-train-2-2 has yet to join." in three.status.message
    three.report(three.head(), attempt=2, state="Starting", incidents=[resized(2, three, 40)])
    three.settle()
    assert three.status.phase == "Restarting"
    assert three.status.message == "Going on with another number of workers: pods joined the 2 that trained."
    three.now += timedelta(seconds=12)
    trains(three, 3, [0, 1, 2], committed=40, incidents=[resized(2, three, 40)])
    assert three.status.phase == "Running"
    assert (three.status.restarts.total, three.status.restarts.without_progress) == counted
    last = three.status.history[-1]
    assert (last.class_, last.steps_lost, last.seconds_to_recover) == ("Resized", 0, 12)
    assert [(event.type, event.reason) for event in three.events][-2:] == [("Normal", "Resized"), ("Normal", "Running")]


def test_too_few_workers_stop_the_run(three: Play) -> None:
    three.spec = elastic(3, least=2)
    lose_for_long(three, 1)
    trains(three, 2, [0, 2], committed=20)
    assert three.status.phase == "Running"
    three.change("gpt-train-2-1", deleting=True)
    three.settle()
    assert three.status.phase != "Running"


def test_an_elastic_job_without_its_head_does_not_run(three: Play) -> None:
    three.change("gpt-train-0-1", deleting=True)
    three.settle()
    assert three.status.phase == "Restarting"


def test_a_worker_that_takes_no_part_fails_without_consequences_for_the_run(three: Play) -> None:
    """Its node is bad: it crashes again and again before it joins. The run goes on, and it is tried ever less often."""
    three.end("gpt-train-2-1", 137)
    three.settle()
    trains(three, 2, [0, 1], committed=20)
    counted = three.status.restarts.total, three.status.restarts.without_progress
    waits = []
    for incarnation in range(2, 9):
        three.run_pods()
        three.end(f"gpt-train-2-{incarnation}", 1)
        plan = three.settle()
        assert three.status.phase == "Running"
        waits.append(plan.requeue_after if three.created[-1] == f"gpt-train-2-{incarnation}" else 0)
        three.step(300)
        assert three.created[-1] == f"gpt-train-2-{incarnation + 1}"
    assert waits == [0, 10, 20, 40, 80, 160, 300]
    assert (three.status.restarts.total, three.status.restarts.without_progress) == counted
    last = three.status.history[-1]
    assert (last.class_, last.steps_lost, last.seconds_to_recover) == ("Crashed", 0, 0)


def test_the_message_says_when_a_worker_is_tried_again(three: Play) -> None:
    trains(three, 2, [0, 1], committed=20)
    for incarnation in (1, 2):
        three.run_pods()
        three.end(f"gpt-train-2-{incarnation}", 1)
        three.settle()
    assert "Training on 2 of 3 workers. Pod gpt-train-2-3 is tried again at 00:00:1" in three.status.message


def test_a_driver_s_incident_is_never_taken_for_that_of_a_worker_that_took_no_part(three: Play) -> None:
    lose_for_long(three)
    trains(three, 2, [0, 1], committed=20)
    three.vanish("gpt-train-2-2")
    three.settle()
    three.report(three.head(), attempt=2, pods=[0, 1], state="Starting", incidents=[resized(2, three)])
    three.settle()
    assert [i.class_ for i in three.status.history] == ["Killed", "Deleted", "Resized"]


def test_what_no_retry_cures_ends_an_elastic_job_too(three: Play) -> None:
    trains(three, 2, [0, 1], committed=20)
    three.end("gpt-train-2-1", 12, {"class": "OutOfMemory", "cause": "pod limit"})
    three.settle()
    assert three.status.phase == "Failed"


def test_ranks_are_those_of_the_pods_that_take_part(three: Play) -> None:
    trains(three, 2, [0, 2], committed=20)
    said = {"attempt": 2, "class": "Hang", "cause": "no answer", "rank": 1, "time": three.now.isoformat()}
    three.change("gpt-train-2-1", node="node-9")
    three.train(21, 2, committed=20, pods=[0, 2], incidents=[said])
    three.settle()
    assert three.status.history[-1].node == "node-9"
    three.end("gpt-train-2-1", 137, reason="OOMKilled")
    three.settle()
    assert "rank 1" in three.status.message
