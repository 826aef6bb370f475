"""What the operator does about failures: plans, played out without an API server."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from support.play import FINISHED, Play, policy


@pytest.mark.parametrize(
    ("changes", "message", "class_", "counted"),
    [
        ({"exit_code": 137}, None, "Killed", 1),
        ({"exit_code": 1}, None, "Crashed", 1),
        ({"exit_code": 139}, None, "Crashed", 1),
        ({"exit_code": 20}, None, "Internal", 1),
        ({"exit_code": 21}, None, "Hang", 1),
        ({"exit_code": 20}, {"class": "Storage", "cause": "S3 does not answer"}, "Storage", 1),
        ({"exit_code": 20}, {"class": "WorkerLost", "cause": "rank 1 is gone"}, "WorkerLost", 1),
        ({"exit_code": 20}, {"class": "Flood", "cause": "a class of its own"}, "Internal", 1),
        ({"exit_code": 20}, {"class": "Preempted", "cause": "not to be counted"}, "Internal", 1),
        ({"exit_code": 20}, {"class": "Resized", "cause": "not to be counted"}, "Internal", 1),
        ({"exit_code": 30}, {"class": "Fenced", "cause": "attempt 7 exists"}, "Fenced", 1),
        ({"exit_code": 30}, {"class": "Drained", "cause": "SIGTERM"}, "Drained", 0),
        ({"exit_code": 30}, None, "Drained", 0),
        ({"exit_code": 30, "deleting": True}, {"class": "Drained"}, "Deleted", 0),
        ({"exit_code": 137, "deleting": True}, None, "Deleted", 0),
        ({"exit_code": 137, "disruption": "PreemptionByScheduler"}, None, "Preempted", 0),
        ({"exit_code": 30, "disruption": "EvictionByEvictionAPI"}, {"class": "Drained"}, "Evicted", 0),
        ({"exit_code": 143, "disruption": "TerminationByKubelet"}, None, "Evicted", 0),
        ({"exit_code": None, "disruption": "DeletionByPodGC"}, None, "NodeLost", 0),
        ({"exit_code": 137, "disruption": "DeletionByTaintManager"}, {"class": "UserError"}, "NodeLost", 0),
        ({"exit_code": None, "reason": "Evicted"}, None, "Evicted", 0),
        ({"exit_code": None, "reason": "OutOfcpu"}, None, "Rejected", 1),
    ],
)
@pytest.mark.parametrize("index", [0, 1])
def test_a_failed_pod_alone_is_replaced_at_once(
    training: Play, index: int, changes: dict[str, Any], message: dict[str, Any] | None, class_: str, counted: int
) -> None:
    name = f"gpt-train-{index}-1"
    code, rest = changes["exit_code"], {k: v for k, v in changes.items() if k != "exit_code"}
    training.end(name, code, message, **rest)
    training.step(1)
    assert training.created[3:] == [f"gpt-train-{index}-2"]
    assert training.deleted == []
    (incident,) = training.status.history
    assert (incident.class_, incident.pod, incident.node, incident.step) == (class_, name, "node-1", 20)
    assert incident.cause
    assert training.status.restarts.total == counted
    assert training.status.phase == "Restarting"
    training.settle()
    assert len(training.status.history) == 1


@pytest.mark.parametrize(
    ("changes", "class_", "counted"),
    [
        ({"deleting": True, "disruption": "EvictionByEvictionAPI"}, "Evicted", 0),
        ({"phase": "Failed", "disruption": "DeletionByPodGC"}, "NodeLost", 0),
        ({"phase": "Failed", "exit_code": 20}, "Internal", 1),
        ({"phase": "Succeeded", "exit_code": 0}, "Deleted", 0),
        ({}, "Deleted", 0),
    ],
)
def test_a_pod_that_is_gone_is_judged_by_its_last_state(
    training: Play, changes: dict[str, Any], class_: str, counted: int
) -> None:
    training.change("gpt-train-1-1", **changes)
    training.vanish("gpt-train-1-1")
    training.step(1)
    (incident,) = training.status.history
    assert (incident.class_, incident.node) == (class_, "node-1")
    assert training.status.restarts.total == counted
    assert training.created[3:] == ["gpt-train-1-2"]


def test_a_pod_that_came_and_went_before_it_was_written_down_is_replaced_not_created_again() -> None:
    play = Play()
    play.step()
    assert play.status.pods[0].uid is None
    play.vanish("gpt-prepare-0-1")
    play.step(1)
    assert play.created == ["gpt-prepare-0-1", "gpt-prepare-0-2"]
    assert [incident.class_ for incident in play.status.history] == ["Deleted"]


def test_what_ends_one_pod_again_and_again_waits_longer_although_it_is_not_counted(training: Play) -> None:
    waits = []
    for incarnation in range(1, 5):
        training.run_pods()
        training.change(f"gpt-train-1-{incarnation}", disruption="EvictionByEvictionAPI")
        training.vanish(f"gpt-train-1-{incarnation}")
        plan = training.step(61)
        waits.append(plan.requeue_after if not plan.create_pods else 0)
        training.settle()
        training.step(plan.requeue_after or 0)
    assert waits == [0, 10, 20, 40]
    assert training.status.restarts.total == 0
    training.run_pods()
    training.train(30, attempt=2)
    training.settle()
    training.vanish("gpt-train-1-5")
    assert training.step(1).create_pods, "the run has gone on in between"


def test_a_pod_of_which_nothing_is_seen_is_looked_for_before_it_is_given_up(training: Play) -> None:
    uid = training.pod("gpt-train-1-1").uid
    training.vanish("gpt-train-1-1")
    (looked_for,) = training.step(1).confirm_gone
    assert (looked_for.pod.name, looked_for.pod.uid) == ("gpt-train-1-1", uid)
    assert looked_for.labels["trainingjob.io/job-uid"] == "job-uid"
    assert training.step(1).confirm_gone == ()


@pytest.mark.parametrize("edit", [{"mislabelled": True}, {"member": False}])
def test_a_working_pod_gets_its_labels_back(training: Play, edit: dict[str, bool]) -> None:
    training.change("gpt-train-1-1", **edit)
    plan = training.step(1)
    (relabel,) = plan.relabel
    assert relabel.pod.name == "gpt-train-1-1"
    assert relabel.labels == {
        "trainingjob.io/job-name": "gpt",
        "trainingjob.io/job-uid": "job-uid",
        "trainingjob.io/role": "train",
        "trainingjob.io/index": "1",
        "trainingjob.io/incarnation": "1",
        "trainingjob.io/member": "true",
    }
    assert plan.status is None
    training.change("gpt-train-1-1", member=False, deleting=True)
    assert training.step(1).relabel == (), "a pod on its way out leaves the Service for good"


def test_a_failed_head_without_last_words_is_internal(training: Play) -> None:
    training.end("gpt-train-0-1", 0)
    training.step(1)
    assert training.status.history[0].class_ == "Internal"
    assert training.created[3:] == ["gpt-train-0-2"]


def test_an_outcome_that_does_not_follow_is_a_failure(training: Play) -> None:
    training.end("gpt-train-0-1", 0, {"outcome": "Train"})
    training.step(1)
    assert training.status.stage == "Train"
    assert training.status.history[0].class_ == "Internal"


@pytest.mark.parametrize(
    ("code", "message", "changes", "class_"),
    [
        (10, {"class": "UserError", "cause": "bucket models does not exist", "nextStep": "create it"}, {}, "UserError"),
        (11, {"class": "DataError", "cause": "no documents in s3://corpus/raw.jsonl"}, {}, "DataError"),
        (12, {"class": "OutOfMemory", "cause": "CUDA out of memory"}, {}, "OutOfMemory"),
        (137, None, {"reason": "OOMKilled"}, "OutOfMemory"),
        (10, None, {}, "UserError"),
    ],
)
def test_what_no_retry_cures_fails_at_once(
    training: Play, code: int, message: dict[str, Any] | None, changes: dict[str, Any], class_: str
) -> None:
    training.end("gpt-train-0-1", code, message, **changes)
    training.settle()
    status = training.status
    assert status.phase == "Failed"
    assert status.message.startswith(f"{class_}: ")
    assert len(training.created) == 3
    assert training.deleted == ["gpt-train-1-1"], "a failed job runs nothing"
    assert status.history[-1].class_ == class_
    if message and message.get("nextStep"):
        assert status.message == "UserError: bucket models does not exist (step 20). Create it."


def test_repeated_failures_without_a_checkpoint_wait_longer_and_end_the_job(training: Play) -> None:
    waits = []
    for failure in range(1, 5):
        name = next(n for n in reversed(training.names) if n.startswith("gpt-train-1"))
        training.run_pods()
        training.end(name, 1)
        plan = training.step(61)
        waits.append(plan.requeue_after if not plan.create_pods else 0)
        if failure < 4:
            training.step((plan.requeue_after or 0) if not plan.create_pods else 0)
    assert waits[:3] == [0, 10, 20]
    assert training.status.phase == "Failed"
    assert "given up after 4 failures without a new checkpoint (maxRestarts 3)" in training.status.message
    assert training.created[3:] == ["gpt-train-1-2", "gpt-train-1-3", "gpt-train-1-4"]


def test_a_run_that_commits_between_its_failures_goes_on(training: Play) -> None:
    for failure in range(1, 20):
        training.train(20 + failure, attempt=failure, committed=10 + failure)
        training.end(f"gpt-train-1-{failure}", 1)
        training.settle()
        assert training.created[-1] == f"gpt-train-1-{failure + 1}", "replaced at once"
        training.run_pods()
        training.step(61)
    assert training.status.restarts.total == 19
    assert training.status.restarts.without_progress == 1
    assert len(training.status.history) == 10


def test_a_gang_that_falls_together_is_one_failure(training: Play) -> None:
    training.end("gpt-train-0-1", 20)
    training.step(1)
    training.end("gpt-train-1-1", 20)
    training.step(1)
    assert training.status.restarts.total == 1
    assert len(training.status.history) == 2
    assert training.created[3:] == ["gpt-train-0-2", "gpt-train-1-2"]


def test_preemptions_never_end_a_job(training: Play) -> None:
    for n in range(1, 15):
        training.end(f"gpt-train-1-{n}", 137, disruption="PreemptionByScheduler")
        training.settle()
        training.run_pods()
        training.step(90)
    assert training.status.restarts.total == 0
    assert training.status.phase == "Restarting"


def test_a_vanished_pod_is_deleted_not_an_error(training: Play) -> None:
    training.vanish("gpt-train-1-1")
    training.step(1)
    (incident,) = training.status.history
    assert (incident.class_, incident.pod) == ("Deleted", "gpt-train-1-1")
    assert training.status.restarts.total == 0
    assert training.created[-1] == "gpt-train-1-2"


def test_a_pod_that_was_never_seen_is_created_again_in_the_same_incarnation(play: Play) -> None:
    play.step()
    play.vanish("gpt-prepare-0-1")
    play.gone.clear()  # the operator died between the status and the create
    assert play.status.pods[0].uid is None
    play.step(1)
    assert play.created == ["gpt-prepare-0-1", "gpt-prepare-0-1"]


def test_a_draining_pod_is_waited_for(training: Play) -> None:
    training.change("gpt-train-1-1", deleting=True, deletion_due=training.now + timedelta(seconds=120))
    training.step(1)
    assert len(training.created) == 3
    assert training.status.phase == "Restarting"


def test_a_pod_on_a_lost_node_is_replaced_and_leaves_the_service_first(training: Play) -> None:
    training.change("gpt-train-1-1", deleting=True, disruption="DeletionByTaintManager")
    plan = training.step(1)
    assert [r.name for r in plan.drop_member] == ["gpt-train-1-1"]
    assert training.created[-1] == "gpt-train-1-2"
    assert training.status.history[0].class_ == "NodeLost"


def test_a_pod_that_outlives_its_grace_is_replaced(training: Play) -> None:
    training.change("gpt-train-1-1", deleting=True, deletion_due=training.now + timedelta(seconds=10))
    plan = training.step(1)
    assert plan.requeue_after is not None
    training.step(plan.requeue_after)
    assert training.created[-1] == "gpt-train-1-2"


def test_the_operator_down_while_the_run_finishes_and_its_pods_go(training: Play) -> None:
    training.vanish("gpt-train-0-1")
    training.vanish("gpt-train-1-1")
    training.gone.clear()
    training.progress = replace(training.progress, report=None, status_written_at=None)
    training.step(3600)
    training.run_pods()
    training.step(1)
    training.end("gpt-train-0-2", 0, FINISHED)
    training.settle()
    assert training.status.phase == "Succeeded"
    assert training.status.restarts.total == 0


def test_a_stranger_of_a_lower_incarnation_is_deleted(training: Play) -> None:
    training.end("gpt-train-1-1", 1)
    training.settle()
    late = replace(training.pod("gpt-train-1-1"), name="gpt-train-1-1", uid="late", phase="Running", exit_code=None)
    training.pods = [p for p in training.pods if p.name != "gpt-train-1-1"] + [late]
    training.step(1)
    assert training.deleted == ["gpt-train-1-1"]


def test_a_pod_of_another_job_is_left_alone(training: Play) -> None:
    foreign = replace(training.pod("gpt-train-1-1"), name="gpt-train-7-1", index=7, uid="f", job_uid="another")
    training.pods.append(foreign)
    training.settle()
    assert training.deleted == []


# --- recovery in the history


def test_the_history_tells_what_an_interruption_cost(training: Play) -> None:
    training.end("gpt-train-1-1", 137)
    training.step(1)
    training.run_pods()
    training.step(8)
    training.train(11, attempt=2, committed=10, resumed=10)
    training.step(1)
    (incident,) = training.status.history
    assert (incident.steps_lost, incident.seconds_to_recover) == (10, 8)
    assert training.status.phase == "Running"


def rank_incident(play: Play, attempt: int = 1) -> dict[str, Any]:
    return {"attempt": attempt, "class": "WorkerLost", "cause": "rank 1", "rank": 1, "step": 21, "time": play.now}


def test_a_driver_and_kubernetes_speak_of_one_incident(training: Play) -> None:
    training.train(20, attempt=1, committed=10, incidents=[rank_incident(training)])
    training.step(1)
    assert training.status.phase == "Restarting"
    training.end("gpt-train-1-1", 137)
    training.step(1)
    training.run_pods()
    training.train(11, attempt=2, committed=10, resumed=10, incidents=[rank_incident(training)])
    training.settle()
    (incident,) = training.status.history
    assert (incident.class_, incident.pod, incident.rank, incident.steps_lost) == ("Killed", "gpt-train-1-1", 1, 11)


@pytest.mark.parametrize(("node", "failures"), [("node-1", 1), ("node-2", 2)])
def test_a_pod_that_ends_long_after_its_rank_was_lost_is_the_same_failure_if_its_node_is(
    training: Play, node: str, failures: int
) -> None:
    training.change("gpt-train-1-1", node="node-1")
    training.train(20, attempt=1, committed=10, incidents=[rank_incident(training)])
    training.step(1)
    training.change("gpt-train-1-1", node=node)
    training.step(300)
    training.end("gpt-train-1-1", 20, {"class": "WorkerLost", "cause": "The head did not answer"})
    training.step(1)
    assert training.status.restarts.total == len(training.status.history) == failures
    assert training.status.history[-1].cause == "The head did not answer"
    assert training.status.resolved is not None
    assert training.status.resolved.avoided_nodes == (), "one cut is no second blow"


def test_a_rank_that_died_alone_is_told_once_and_its_pod_stays(training: Play) -> None:
    said = rank_incident(training)
    for _ in range(3):
        training.train(12, attempt=2, committed=10, resumed=10, incidents=[said])
        training.step(16)
    (incident,) = training.status.history
    assert (incident.class_, incident.pod, incident.rank, incident.steps_lost) == ("WorkerLost", None, 1, 11)
    assert len(training.created) == 3
    assert training.status.phase == "Running"


def test_ranks_that_die_again_and_again_without_a_checkpoint_end_the_job(training: Play) -> None:
    said: list[dict[str, Any]] = []
    for attempt in range(1, 5):
        assert training.status.phase != "Failed"
        said.append(rank_incident(training, attempt))
        training.train(12, attempt=attempt + 1, committed=10, resumed=10, incidents=said)
        training.step(20)
        assert training.status.restarts.without_progress == attempt
    assert training.status.phase == "Failed"
    assert training.status.message.startswith("WorkerLost: rank 1 (rank 1 in pod gpt-train-1-1, step 21). The job is")


def test_a_driver_that_gives_up_is_not_counted_twice(training: Play) -> None:
    training.train(20, attempt=1, committed=10, incidents=[rank_incident(training)])
    training.step(1)
    training.end("gpt-train-0-1", 20, {"class": "WorkerLost", "cause": "rank 1"})
    training.step(1)
    assert training.status.restarts.total == 1
    assert len(training.status.history) == 1


def test_fewer_allowed_restarts_do_not_fail_a_run_that_is_well(training: Play) -> None:
    training.end("gpt-train-1-1", 137)
    training.settle()
    training.spec = policy(maxRestarts=0)
    training.run_pods()
    training.settle()
    assert training.status.phase == "Restarting"


def test_old_incidents_do_not_come_back_when_the_history_is_full(training: Play) -> None:
    said = []
    for attempt in range(1, 14):
        said.append(rank_incident(training, attempt))
        training.train(12, attempt=attempt + 1, committed=10 + attempt, incidents=said, resumed=10)
        training.step(30)
    assert [i.attempt for i in training.status.history] == list(range(4, 14))


@pytest.mark.parametrize("ahead", [0, 600])
def test_pods_that_are_refused_in_the_second_of_their_creation_are_one_failure(starting: Play, ahead: int) -> None:
    """By the API server's clock, which may be ahead of the operator's."""
    for index in (0, 1):
        name = f"gpt-train-{index}-1"
        starting.end(name, None, reason="UnexpectedAdmissionError", created_at=starting.now + timedelta(seconds=ahead))
    starting.step()
    assert starting.status.restarts.total == 1
    assert [incident.class_ for incident in starting.status.history] == ["Rejected", "Rejected"]


WORDS = "very long words " * 4096


@pytest.mark.parametrize(
    "ends",
    [
        {"reason": WORDS, "exit_code": None},
        {"disruption": WORDS, "exit_code": None},
        {"reason": "OOMKilled", "exit_code": 137, "memory_limit": WORDS},
    ],
    ids=str,
)
def test_whatever_is_said_of_a_pod_fits_the_status(training: Play, ends: dict[str, Any]) -> None:
    training.end("gpt-train-1-1", **ends)
    training.settle()
    assert len(training.status.history[-1].cause) == 1024
    assert training.status.phase in ("Restarting", "Failed")
