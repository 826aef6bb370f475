"""What the operator does about a job: plans, played out without an API server."""

from dataclasses import replace
from typing import Any

import pytest
from support.play import FINISHED, RESULT, Play, policy
from trainingjob_operator.api.status import TrainingJobStatus
from trainingjob_operator.core.decide import decide
from trainingjob_operator.core.facts import InvalidSpec, ProgressFacts
from trainingjob_operator.core.findings import Findings
from trainingjob_operator.core.obstacle import Obstacle
from trainingjob_operator.core.plan import ObjectRef, Plan, PodRef, Settings


def test_a_new_job_gets_its_children_and_one_light_pod(play: Play) -> None:
    plan = play.step()
    assert [m["kind"] for m in plan.ensure] == ["ConfigMap", "Secret", "Service"]
    assert play.created == ["gpt-prepare-0-1"]
    assert play.status.phase == "Pending"
    assert play.status.start_time == play.now
    assert play.status.resolved is not None
    assert play.status.resolved.world_size == 2


def test_the_stages_follow_the_heads_outcomes(play: Play) -> None:
    play.settle()
    play.run_pods()
    play.step(1)
    assert (play.status.phase, play.status.stage) == ("Preparing", "Check")
    play.end("gpt-prepare-0-1", 0, {"outcome": "PrepareData"})
    play.step(1)
    assert play.created[1:] == ["gpt-prepare-0-2", "gpt-prepare-1-1"]
    play.run_pods()
    play.step(1)
    assert (play.status.phase, play.status.stage) == ("Preparing", "PrepareData")
    play.end("gpt-prepare-1-1", 0)
    play.end("gpt-prepare-0-2", 0, {"outcome": "Train"})
    play.step(1)
    assert play.created[3:] == ["gpt-train-0-1", "gpt-train-1-1"]
    assert (play.status.phase, play.status.stage) == ("Starting", "Train")
    play.run_pods()
    play.step(1)
    assert play.status.phase == "Starting"
    play.train(1, attempt=1)
    play.step(1)
    assert play.status.phase == "Running"
    assert play.status.history == ()


def test_workers_are_not_created_before_the_data_is_ready(play: Play) -> None:
    play.settle()
    play.run_pods()
    for _ in range(10):
        play.step(60)
    assert play.created == ["gpt-prepare-0-1"]


def test_a_stored_result_of_the_same_plan_needs_no_worker(play: Play) -> None:
    play.settle()
    play.run_pods()
    play.end("gpt-prepare-0-1", 0, FINISHED)
    play.settle()
    assert play.status.phase == "Succeeded"
    assert play.created == ["gpt-prepare-0-1"]


def test_success_brings_result_and_evaluation_and_stops_the_other_pods(training: Play) -> None:
    training.end("gpt-train-0-1", 0, FINISHED)
    training.settle()
    status = training.status
    assert status.phase == "Succeeded"
    assert status.result is not None
    assert status.result.model_uri == RESULT["modelUri"]
    assert status.evaluation is not None
    assert status.evaluation.split == "test"
    assert status.evaluation.metrics == {"loss": 3.1}
    assert status.progress is not None
    assert (status.progress.percent, status.progress.eta) == (100, None)
    assert status.completion_time == training.now
    assert training.deleted == ["gpt-train-1-1"]
    assert training.pod("gpt-train-0-1").phase == "Succeeded", "kept for its log"


def test_a_worker_that_ended_in_peace_is_waited_with_for_the_head(training: Play) -> None:
    training.end("gpt-train-1-1", 0)
    training.step(1)
    assert training.status.phase == "Running"
    assert training.status.history == ()
    assert len(training.created) == 3


def test_a_worker_that_ended_in_peace_comes_back_with_a_new_head(training: Play) -> None:
    training.end("gpt-train-1-1", 0)
    training.end("gpt-train-0-1", 20, {"class": "Storage", "cause": "bucket is full"})
    training.settle()
    assert training.created[3:] == ["gpt-train-0-2", "gpt-train-1-2"]
    assert [i.pod for i in training.status.history] == ["gpt-train-0-1"]


# --- suspend, resume


def test_suspend_drains_and_resume_begins_at_check_in_new_incarnations(training: Play) -> None:
    training.spec = policy(suspend=True)
    training.generation = 2
    training.settle()
    assert training.status.phase == "Suspending"
    assert training.deleted == ["gpt-train-0-1", "gpt-train-1-1"]
    for index in (0, 1):
        training.end(f"gpt-train-{index}-1", 30, {"class": "Drained"}, deleting=True)
        training.vanish(f"gpt-train-{index}-1")
    training.settle()
    assert training.status.phase == "Suspended"
    assert training.condition("Suspended") == "True"
    assert training.status.history == ()
    assert training.status.observed_generation == 2
    training.spec = policy(suspend=False)
    training.generation = 3
    training.settle()
    assert training.created[3:] == ["gpt-prepare-0-2"]
    training.run_pods()
    training.step(1)
    training.end("gpt-prepare-0-2", 0, {"outcome": "Train"})
    training.settle()
    assert training.created[4:] == ["gpt-train-0-2", "gpt-train-1-2"]


def test_a_job_that_is_created_suspended_gets_nothing() -> None:
    play = Play(spec=policy(suspend=True))
    play.settle()
    assert (play.status.phase, play.created) == ("Suspended", [])
    assert play.plan.ensure == ()


def test_resume_while_suspending_waits_for_the_old_pods(training: Play) -> None:
    training.spec = policy(suspend=True)
    training.settle()
    training.spec = policy(suspend=False)
    training.settle()
    assert training.status.phase == "Suspending"
    assert len(training.created) == 3
    training.vanish("gpt-train-0-1")
    training.vanish("gpt-train-1-1")
    training.settle()
    assert training.created[3:] == ["gpt-prepare-0-2"]


def test_a_resume_takes_new_workers_a_replacement_does_not(training: Play) -> None:
    other = Settings(trainer_image="registry.example/trainer:2")
    training.end("gpt-train-1-1", 137)
    plan = decide(training.job, training.pods, training.progress, training.now, other)
    assert plan.create_pods[0]["spec"]["containers"][0]["image"] == "registry.example/trainer:1"
    assert plan.status is not None
    suspended = training.status.model_copy(update={"phase": "Suspended", "resolved": None, "stage": None})
    job = replace(training.job, status=suspended)
    plan = decide(job, [], training.progress, training.now, other)
    assert plan.create_pods[0]["spec"]["containers"][0]["image"] == "registry.example/trainer:2"


def test_a_pod_that_is_stuck_on_a_lost_node_does_not_keep_a_job_from_being_suspended(training: Play) -> None:
    training.spec = policy(suspend=True)
    training.settle()
    training.end("gpt-train-0-1", 30, {"class": "Drained"})
    training.change("gpt-train-1-1", disruption="DeletionByTaintManager")
    training.settle()
    assert training.status.phase == "Suspended"
    training.spec = policy(suspend=False)
    plan = training.step(1)
    assert training.status.phase == "Pending"
    assert plan.relabel == ()
    assert training.deleted == ["gpt-train-0-1", "gpt-train-1-1"], "it was deleted a second time"


def test_a_deadline_does_not_wait_for_a_pod_that_outlives_its_grace(training: Play) -> None:
    training.spec = policy(activeDeadlineSeconds=60)
    training.step(60)
    assert training.status.phase == "Running"
    assert "drained" in training.status.message
    training.end("gpt-train-0-1", 30, {"class": "Drained"})
    plan = training.step(1)
    assert plan.requeue_after is not None
    training.step(plan.requeue_after)
    assert training.status.phase == "Failed"


def test_a_head_that_finishes_while_suspending_has_finished(training: Play) -> None:
    training.spec = policy(suspend=True)
    training.settle()
    training.end("gpt-train-0-1", 0, FINISHED)
    training.settle()
    assert training.status.phase == "Succeeded"


# --- limits in time


def test_the_deadline_drains_and_fails(play: Play) -> None:
    play.spec = policy(activeDeadlineSeconds=100)
    play.to_training()
    plan = play.settle()
    assert plan.requeue_after is not None
    play.step(100)
    assert play.deleted == ["gpt-train-0-1", "gpt-train-1-1"]
    assert play.status.phase == "Running"
    for index in (0, 1):
        play.end(f"gpt-train-{index}-1", 30, {"class": "Drained"}, deleting=True)
    play.settle()
    assert play.status.phase == "Failed"
    assert play.status.message.startswith("DeadlineExceeded: ")
    assert play.status.history[-1].class_ == "DeadlineExceeded"
    assert len(play.created) == 3


def test_workers_that_do_not_run_in_time_are_given_up_with_the_obstacle() -> None:
    play = Play(spec=policy(startDeadlineSeconds=60))
    play.to_workers()
    play.change("gpt-train-0-1", unschedulable="0/3 nodes are available: 3 Insufficient nvidia.com/gpu.")
    play.change("gpt-train-1-1", phase="Running", ready=True, node="node-1")
    plan = play.step()
    assert plan.requeue_after is not None
    assert plan.requeue_after <= 58
    play.step(58)
    assert play.deleted == ["gpt-train-0-1", "gpt-train-1-1"]
    assert play.status.phase == "Starting"
    why = (
        "the workers did not all run after 60 seconds (runPolicy.startDeadlineSeconds): Pod gpt-train-0-1 finds no "
        "node: 0/3 nodes are available: 3 Insufficient nvidia.com/gpu; ask for less (spec.workers.resources, "
        "nodeSelector), or add nodes"
    )
    assert play.status.message == f"The pods are drained, because {why}."
    play.vanish("gpt-train-0-1")
    play.end("gpt-train-1-1", 30, {"class": "Drained"}, deleting=True)
    play.settle()
    assert play.status.phase == "Failed"
    assert play.status.message.startswith(f"StartDeadlineExceeded: {why}. Create the job again when that is cured")
    assert [(i.class_, i.cause) for i in play.status.history] == [("StartDeadlineExceeded", why)]
    assert [e.reason for e in play.events][-2:] == ["StartDeadlineExceeded", "Failed"]


def test_a_refused_job_that_has_no_pods_fails_at_its_start_deadline() -> None:
    play = Play(spec=policy(startDeadlineSeconds=60))
    play.refuse(Obstacle("QuotaExceeded", "Pod p cannot be created: exceeded quota; ask for less.", room=True))
    plan = play.step()
    play.pods = []
    assert plan.requeue_after == 60
    play.step(60)
    assert play.status.phase == "Failed"
    assert "Pod p cannot be created: exceeded quota" in play.status.message


def test_a_job_that_has_started_may_restart_for_longer_than_its_start_deadline() -> None:
    play = Play(spec=policy(startDeadlineSeconds=60))
    play.to_training()
    assert play.status.training_start_time is not None
    play.end("gpt-train-1-1", 137, disruption="PreemptionByScheduler")
    play.settle()
    play.change("gpt-train-1-2", unschedulable="no room")
    play.step(1000)
    assert play.status.phase == "Restarting"
    assert play.deleted == []


def test_a_resume_starts_the_start_deadline_anew() -> None:
    play = Play(spec=policy(startDeadlineSeconds=60))
    play.to_training()
    play.spec = policy(startDeadlineSeconds=60, suspend=True)
    play.settle()
    play.pods = []
    play.step(1000)
    play.spec = policy(startDeadlineSeconds=60)
    play.settle()
    play.step(59)
    assert play.status.phase == "Pending"
    play.step(1)
    play.pods = []
    play.step()
    assert play.status.phase == "Failed"


def test_time_in_suspension_does_not_count(training: Play) -> None:
    training.spec = policy(suspend=True, activeDeadlineSeconds=1000)
    training.settle()
    training.pods = []
    training.settle()
    training.step(10_000)
    training.spec = policy(activeDeadlineSeconds=1000)
    training.settle()
    assert training.status.phase == "Pending"
    assert training.status.start_time == training.now


def test_the_ttl_removes_pods_and_children_once(training: Play) -> None:
    training.spec = policy(podsTTLSecondsAfterFinished=60)
    training.end("gpt-train-0-1", 0, FINISHED)
    training.end("gpt-train-1-1", 0)
    plan = training.settle()
    assert plan.requeue_after == 60
    assert training.pods
    training.step(60)
    training.settle()
    assert training.pods == []
    assert training.status.phase == "Succeeded"
    assert training.status.result is not None
    assert training.settle() == Plan()


def test_the_ttl_names_the_children(training: Play) -> None:
    training.spec = policy(podsTTLSecondsAfterFinished=0)
    training.end("gpt-train-0-1", 0, FINISHED)
    training.step(1)
    plan = training.step(1)
    config_hash = training.status.resolved.config_hash if training.status.resolved else ""
    assert plan.delete_children == (
        ObjectRef("Service", "gpt-tj"),
        ObjectRef("ConfigMap", f"gpt-tj-{config_hash}"),
    )


def test_without_a_ttl_a_finished_job_is_left_alone(training: Play) -> None:
    training.end("gpt-train-0-1", 0, FINISHED)
    training.end("gpt-train-1-1", 0)
    training.settle()
    training.step(10**6)
    assert training.plan == Plan()


def test_at_most_three_ended_pods_of_an_index_are_kept(training: Play) -> None:
    for n in range(1, 8):
        training.end(f"gpt-train-1-{n}", 137, disruption="PreemptionByScheduler")
        training.settle()
        training.step(300)  # the longest that a successor waits
        training.run_pods()
    kept = [n for n in training.names if n.startswith("gpt-train-1-")]
    assert kept == ["gpt-train-1-5", "gpt-train-1-6", "gpt-train-1-7", "gpt-train-1-8"]


# --- what people read


def test_progress_is_written_once_in_an_interval(training: Play) -> None:
    before = len(training.statuses)
    for second in range(60):
        training.train(21 + second, attempt=1, committed=10)
        plan = training.step(1)
        assert plan.status is not None or plan.requeue_after is not None
    assert len(training.statuses) - before == 4


@pytest.mark.parametrize(
    "news",
    [
        {"committed": 20},
        {"evaluation": {"split": "validation", "step": 20, "metrics": {"loss": 3.2}}},
        {"incidents": [{"attempt": 1, "class": "Hang", "time": "2026-01-01T00:01:00Z"}]},
    ],
)
def test_what_a_person_cares_about_is_written_at_once(training: Play, news: dict[str, Any]) -> None:
    training.train(21, attempt=1, **{"committed": 10, **news})
    assert training.step(1).status is not None


def test_children_are_wanted_without_new_pods_when_they_are_due(training: Play) -> None:
    made = training.children
    training.findings = Findings(children_due=True)
    assert training.step(1).ensure == made
    training.findings = Findings()
    assert training.step(1).ensure == ()


def test_a_quiet_cluster_gets_no_writes(training: Play) -> None:
    for _ in range(100):
        plan = training.step(60)
        assert plan == replace(Plan(), wants_progress=plan.wants_progress)


def test_a_silent_head_is_no_failure(training: Play) -> None:
    training.progress = replace(training.progress, unreachable_since=training.now)
    plan = training.step(30)
    assert training.condition("ProgressUnknown") is None
    assert plan.requeue_after == 30
    training.step(30)
    assert training.condition("ProgressUnknown") == "True"
    assert training.status.phase == "Running"
    condition = next(c for c in training.status.conditions if c.type == "ProgressUnknown")
    assert "NetworkPolicy" in condition.message
    training.progress = replace(training.progress, unreachable_since=None)
    training.step(1)
    assert training.condition("ProgressUnknown") is None


def test_a_new_operator_lets_silence_stand_until_the_head_answers(training: Play) -> None:
    training.progress = replace(training.progress, unreachable_since=training.now)
    training.step(60)
    heard = training.progress
    training.progress = ProgressFacts()
    assert training.step().status is None
    training.progress = ProgressFacts(unreachable_since=training.now)
    assert training.step(1).status is None
    training.progress = replace(heard, fetched_at=training.now, unreachable_since=None)
    training.step(1)
    assert training.condition("ProgressUnknown") is None


def test_the_head_that_runs_is_polled(play: Play) -> None:
    assert play.settle().wants_progress is None
    play.run_pods()
    polled = play.settle().wants_progress
    assert polled is not None
    assert polled.name == "gpt-prepare-0-1"


def test_a_report_of_another_pod_changes_nothing(training: Play) -> None:
    assert training.progress.report is not None
    stale = training.progress.report.model_copy(update={"pod_uid": "gone", "attempt": 9})
    before = training.status
    training.progress = replace(training.progress, report=stale, fetched_at=training.now)
    training.step(100)
    assert training.status == before


def test_events_tell_the_story_once(training: Play) -> None:
    training.end("gpt-train-1-1", 137)
    training.settle()
    training.run_pods()
    training.train(12, attempt=2, resumed=10)
    training.settle()
    training.end("gpt-train-0-1", 0, FINISHED)
    training.settle()
    reasons = [e.reason for e in training.events]
    assert reasons == ["Preparing", "Starting", "Running", "Killed", "Running", "Succeeded"]


def test_a_job_that_is_being_deleted_is_not_touched(training: Play) -> None:
    training.deleting = True
    training.vanish("gpt-train-1-1")
    assert training.step(1) == Plan()


UNREADABLE = InvalidSpec("spec.training.steps: Field required")


@pytest.mark.parametrize("name", ["play", "training"])
def test_a_job_whose_spec_cannot_be_read_is_left_as_it_is(name: str, request: pytest.FixtureRequest) -> None:
    """Another version's CRD has let it through: what runs goes on, and nothing is lost by waiting for that version."""
    here: Play = request.getfixturevalue(name)
    job = replace(here.job, spec=UNREADABLE, generation=2)
    plan = decide(job, here.pods, here.progress, here.now, here.settings)
    assert plan.status is not None
    assert plan == Plan(status=plan.status, events=plan.events)
    assert [e.reason for e in plan.events] == ["SpecNotUnderstood"]
    assert plan.status.phase == ("Running" if name == "training" else "Pending")
    assert plan.status.message == (
        "This operator cannot read the job and leaves it as it is: spec.training.steps: Field required; create a new "
        "TrainingJob with a valid spec, or, if the CRD is of a newer version, upgrade the operator."
    )
    assert {c.type for c in plan.status.conditions if c.status == "True"} == {
        "Ready" if name == "training" else "Stalled"
    }
    assert plan.status.observed_generation == 2
    assert decide(replace(job, status=plan.status), here.pods, here.progress, here.now, here.settings) == Plan()


def test_of_a_job_that_is_done_and_cannot_be_read_the_pods_end(training: Play) -> None:
    training.end("gpt-train-0-1", 0, FINISHED)
    job = replace(training.job, spec=UNREADABLE, status=TrainingJobStatus(phase="Succeeded"))
    plan = decide(job, training.pods, training.progress, training.now, training.settings)
    assert plan == Plan(delete_pods=(PodRef("gpt-train-1-1", training.pod("gpt-train-1-1").uid),))


def test_a_lost_status_never_lets_incarnations_fall(training: Play) -> None:
    training.status = type(training.status)()
    training.step(1)
    assert training.created[-1] == "gpt-prepare-0-2"
    assert set(training.deleted) == {"gpt-train-0-1", "gpt-train-1-1"}


@pytest.mark.parametrize("left", [0, 2])
def test_a_run_whose_status_has_lost_pods_is_begun_anew(training: Play, left: int) -> None:
    """It would wait for ever for those of which the status has nothing."""
    training.status = training.status.model_copy(update={"pods": training.status.pods[:left]})
    training.step(1)
    assert training.status.stage == "Check"
    assert training.created[-1] == "gpt-prepare-0-2"
