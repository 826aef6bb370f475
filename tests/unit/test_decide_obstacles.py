"""What the operator says of a job whose pods cannot be created or do not start: plans, played without an API server."""

from dataclasses import replace
from typing import Any

import pytest
from support.play import START, Play, spec
from trainingjob_operator.core.obstacle import Look, foreign, newest_warning, refused, told
from trainingjob_operator.kube.api import ApiError, Forbidden, Invalid, TooManyRequests

ROOM = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."
UNBOUND = "pod has unbound immediate PersistentVolumeClaims"
PREEMPTION = " no new claims to deallocate, preemption: 0/3 nodes are available: 3 Preemption is not helpful."
QUOTA = Forbidden(
    403,
    "Forbidden",
    'pods "gpt-train-0-1" is forbidden: exceeded quota: gpus, requested: pods=1, used: pods=4, limited: pods=4',
)


@pytest.mark.parametrize(
    ("changes", "reason", "message"),
    [
        (
            {"unschedulable": ROOM + PREEMPTION},
            "Unschedulable",
            "Pod gpt-prepare-0-1 finds no node: 0/3 nodes are available: 3 Insufficient nvidia.com/gpu; "
            "ask for less (spec.data.prepare), or add nodes.",
        ),
        (
            {"unschedulable": "0/3 nodes are available: 1 Insufficient cpu, 2 node(s) had untolerated taint(s)."},
            "Unschedulable",
            "Pod gpt-prepare-0-1 finds no node: 0/3 nodes are available: 1 Insufficient cpu, 2 node(s) had untolerated "
            "taint(s); tolerate the taint (spec.workers.template.tolerations), ask for less (spec.data.prepare), or "
            "add nodes.",
        ),
        (
            {"unschedulable": f"0/3 nodes are available: {UNBOUND}. not found"},
            "Unschedulable",
            f"Pod gpt-prepare-0-1 finds no node: 0/3 nodes are available: {UNBOUND}; "
            "look at the claim's events for what keeps it from being bound.",
        ),
        (
            {"unschedulable": '0/3 nodes are available: persistentvolumeclaim "corpus" not found. not found'},
            "MissingReference",
            'Pod gpt-prepare-0-1 finds no node: 0/3 nodes are available: persistentvolumeclaim "corpus" not found; '
            "create what is missing.",
        ),
        (
            {"unschedulable": "Scheduling is blocked due to non-empty scheduling gates", "gated": True},
            "Unschedulable",
            "Pod gpt-prepare-0-1 finds no node: Scheduling is blocked due to non-empty scheduling gates; "
            "whoever has put a scheduling gate on it must lift that.",
        ),
        (
            {"waiting_reason": "ErrImagePull", "waiting_message": "no such host"},
            "ImagePull",
            "Pod gpt-prepare-0-1 cannot start: the image cannot be pulled: no such host; "
            "check spec.image and the pull secrets.",
        ),
        (
            {
                "waiting_reason": "ImagePullBackOff",
                "waiting_message": 'Back-off pulling image "x:1": ErrImagePull: no such host',
            },
            "ImagePull",
            "Pod gpt-prepare-0-1 cannot start: the image cannot be pulled: no such host; "
            "check spec.image and the pull secrets.",
        ),
        (
            {"waiting_reason": "CreateContainerConfigError", "waiting_message": 'secret "s3" not found'},
            "MissingReference",
            'Pod gpt-prepare-0-1 cannot start: secret "s3" not found; create what is missing.',
        ),
        (
            {
                "waiting_reason": "CreateContainerConfigError",
                "waiting_message": "container has runAsNonRoot and image will run as root",
            },
            "PodNotStarted",
            "Pod gpt-prepare-0-1 cannot start: CreateContainerConfigError: container has runAsNonRoot and image will "
            "run as root; suspend the job, correct the image or the pod, and resume it.",
        ),
        (
            {"waiting_reason": "ContainerCreating"},
            "Pending",
            "Waiting for the pod that checks configuration and data to start.",
        ),
    ],
)
def test_the_message_says_in_one_sentence_why_a_pod_does_not_start(
    play: Play, changes: dict[str, Any], reason: str, message: str
) -> None:
    play.settle()
    play.change("gpt-prepare-0-1", **changes)
    play.settle()
    assert play.status.message == message
    assert {c.reason for c in play.status.conditions} == {reason}
    assert play.status.phase == {"Pending": "Pending", "Unschedulable": "Queued"}.get(reason, "Starting")
    assert [e.reason for e in play.events] == ([] if reason == "Pending" else [reason])


NO_ACCOUNT = 'error looking up service account a/b: serviceaccount "b" not found'
BASELINE = 'violates PodSecurity "baseline:latest": hostPath volumes'
POLICY = "ValidatingAdmissionPolicy 'p' with binding 'b' denied request: no"
WEBHOOK = 'Internal error occurred: failed calling webhook "w": EOF'


def forbidden(why: str) -> Forbidden:
    return Forbidden(403, "Forbidden", f'pods "gpt-train-0-1" is forbidden: {why}')


@pytest.mark.parametrize(
    ("error", "reason", "phase", "stalled"),
    [
        (QUOTA, "QuotaExceeded", "Queued", "False"),
        (forbidden("status unknown for quota: gpus, resources: pods"), "QuotaExceeded", "Queued", "False"),
        (forbidden(NO_ACCOUNT), "MissingReference", "Starting", "False"),
        (forbidden("no PriorityClass with name high was found"), "MissingReference", "Starting", "False"),
        (forbidden('pod rejected: RuntimeClass "gvisor" not found'), "MissingReference", "Starting", "False"),
        (forbidden(BASELINE), "CreateRefused", "Starting", "True"),
        (Invalid(422, "Invalid", POLICY), "CreateRefused", "Starting", "True"),
        (ApiError(400, "BadRequest", 'admission webhook "w" denied the request'), "CreateRefused", "Starting", "True"),
        (ApiError(500, "InternalError", WEBHOOK), "PodNotStarted", "Starting", "False"),
    ],
)
def test_a_refusal_of_the_api_server_is_repeated_with_what_to_do(
    starting: Play, error: ApiError, reason: str, phase: str, stalled: str
) -> None:
    starting.pods = [p for p in starting.pods if p.role == "prepare"]
    refusal = refused("Pod", "gpt-train-0-1", error)
    assert refusal is not None
    starting.refuse(refusal)
    starting.step(1)
    status = starting.status
    assert status.phase == phase
    assert status.message == refusal.message
    assert status.message.startswith("Pod gpt-train-0-1 cannot be created: ")
    assert "is forbidden: " not in status.message
    assert {c.reason for c in status.conditions} == {reason}
    assert (starting.condition("Stalled"), starting.condition("Reconciling")) == (
        stalled,
        "False" if stalled == "True" else "True",
    )
    before = len(starting.events)
    starting.settle()
    assert len(starting.events) == before
    starting.refuse(None)
    starting.step(1)
    assert (starting.status.phase, starting.condition("Reconciling")) == ("Starting", "True")


def test_a_passing_error_of_the_api_server_is_no_obstacle() -> None:
    assert refused("Pod", "p", TooManyRequests(429, "TooManyRequests", "slow down")) is None
    assert refused("Pod", "p", ApiError(500, "InternalError", "etcd has no leader")) is None


def test_a_job_is_queued_only_while_no_pod_of_the_stage_has_a_place(starting: Play) -> None:
    for name in ("gpt-train-0-1", "gpt-train-1-1"):
        starting.change(name, unschedulable=ROOM)
    starting.step(1)
    assert starting.status.phase == "Queued"
    assert starting.status.message.startswith("Pod gpt-train-0-1 finds no node: 0/3 nodes")
    starting.change("gpt-train-0-1", unschedulable=None, node="node-1")
    starting.step(1)
    assert starting.status.phase == "Starting"
    assert starting.status.message.startswith("Pod gpt-train-1-1 finds no node: 0/3 nodes")
    starting.change("gpt-train-1-1", unschedulable=None, node="node-2")
    starting.step(1)
    assert starting.status.message == "Starting training: 0 of 2 worker pods are ready."
    assert [e.reason for e in starting.events].count("Unschedulable") == 1


def test_a_job_that_loses_its_place_is_queued_and_restarts_from_there(training: Play) -> None:
    for name in ("gpt-train-0-1", "gpt-train-1-1"):
        training.end(name, None, disruption="PreemptionByScheduler")
    training.settle()
    for name in ("gpt-train-0-2", "gpt-train-1-2"):
        training.change(name, unschedulable=ROOM)
    training.settle()
    assert training.status.phase == "Queued"
    for name in ("gpt-train-0-2", "gpt-train-1-2"):
        training.change(name, unschedulable=None)
    training.run_pods()
    training.settle()
    assert training.status.phase == "Restarting"


def test_a_running_job_stays_running_while_a_child_of_it_is_refused(training: Play) -> None:
    training.refuse(foreign("Service", "gpt-tj"))
    training.step(20)
    assert (training.status.phase, training.condition("Ready"), training.condition("Stalled")) == (
        "Running",
        "True",
        "False",
    )
    assert training.status.message.startswith("Service gpt-tj exists and does not belong to this job")
    assert training.events[-1].reason == "NameTaken"
    assert told(training.status) == foreign("Service", "gpt-tj"), "so that it is no news to another process"


@pytest.mark.parametrize("why", ["suspended", "overdue"])
def test_a_job_whose_pods_may_not_be_deleted_says_so_while_it_waits_for_their_end(training: Play, why: str) -> None:
    policy = {"suspend": True} if why == "suspended" else {"activeDeadlineSeconds": 3600}
    training.spec = spec(runPolicy=policy)
    refusal = refused("Pod", "gpt-train-0-1", Invalid(422, "Invalid", POLICY), "deleted")
    assert refusal is not None
    training.refuse(refusal)
    training.step(3600)
    assert training.status.phase == {"suspended": "Suspending", "overdue": "Running"}[why]
    assert training.status.message == refusal.message
    assert {c.reason for c in training.status.conditions} == {"DeleteRefused"}
    training.refuse(None)
    training.step(1)
    for name in ("gpt-train-0-1", "gpt-train-1-1"):
        training.vanish(name)
    training.step(1)
    assert training.status.phase == {"suspended": "Suspended", "overdue": "Failed"}[why]


def test_a_finished_job_whose_pods_may_not_be_deleted_says_so_until_they_may(training: Play) -> None:
    training.end("gpt-train-0-1", 0, {"outcome": "Finished", "result": {"modelUri": "s3://m"}})
    training.step(1)
    before, told_before = training.status, len(training.events)
    refusal = refused("Pod", "gpt-train-1-1", Invalid(422, "Invalid", POLICY), "deleted")
    assert refusal is not None
    training.refuse(refusal)
    training.step(1)
    (said,) = set(training.status.conditions) - set(before.conditions)
    assert (said.type, said.status, said.reason) == ("CleanupRefused", "True", "DeleteRefused")
    assert said.message == f"Pod gpt-train-1-1 cannot be deleted: {POLICY}; have the policy changed."
    assert (training.status.phase, training.condition("Ready")) == ("Succeeded", "True")
    assert told(training.status) == refusal, "so that it is no news to another process"
    training.step(60)
    assert [event.reason for event in training.events[told_before:]] == ["DeleteRefused"]
    training.refuse(None)
    training.step(1)
    assert training.status == before


def test_a_finished_job_does_not_tell_of_pods_that_it_wants_no_more(training: Play) -> None:
    training.refuse(refused("Pod", "gpt-train-1-2", QUOTA))
    training.end("gpt-train-0-1", 0, {"outcome": "Finished", "result": {}})
    training.step(1)
    training.step(1)
    assert training.condition("CleanupRefused") is None


# --- events of pending pods


def test_the_events_of_a_pending_pod_are_read_after_thirty_seconds_and_then_less_and_less_often(play: Play) -> None:
    play.settle()
    looks = []
    for _ in range(7):
        while not play.step(play.plan.requeue_after or 0).look_at:
            assert play.plan.requeue_after is not None
        assert play.look(("FailedMount", 'configmap "c" not found')) == ["gpt-prepare-0-1"]
        looks.append((play.now - START).total_seconds())
    assert [b - a for a, b in zip([0, *looks], looks, strict=False)] == [30, 60, 120, 240, 480, 480, 480]
    assert play.status.message == 'Pod gpt-prepare-0-1 cannot start: configmap "c" not found; create what is missing.'
    play.run_pods()
    assert play.step(20).look_at == ()
    assert play.status.phase == "Preparing"


def test_the_events_of_a_pod_that_has_been_pending_for_weeks_are_still_read(play: Play) -> None:
    play.settle()
    (pod,) = play.pods
    play.findings = replace(play.findings, looks={pod.uid: Look(play.now, 5000)})
    assert play.step(479).look_at == ()
    assert play.step(1).look_at == (pod,)


def test_a_pod_of_which_no_scheduler_says_a_word_is_spoken_of_after_ninety_seconds(play: Play) -> None:
    play.settle()
    for seconds, phase in ((30, "Pending"), (60, "Queued")):
        while not play.step(play.plan.requeue_after or 0).look_at:
            assert play.plan.requeue_after is not None
        play.look()
        play.settle()
        assert (play.status.phase, (play.now - START).total_seconds()) == (phase, seconds + 30 * (phase == "Queued"))
    assert play.status.message == (
        "Pod gpt-prepare-0-1 finds no node: its scheduler has said nothing of it since 00:00:00 UTC; see that it runs, "
        "or suspend the job, correct spec.workers.template.schedulerName, and resume it."
    )
    play.change("gpt-prepare-0-1", node="node-1")
    play.settle()
    assert play.status.phase == "Pending"


def test_a_pod_that_says_itself_why_it_waits_costs_no_look(play: Play) -> None:
    play.settle()
    play.change("gpt-prepare-0-1", unschedulable=ROOM)
    play.step(31)
    assert play.plan.look_at == ()


def test_a_large_gang_costs_three_looks_at_a_time(starting: Play) -> None:
    starting.spec = spec(workers={"replicas": 5})
    starting.status = starting.status.model_copy(update={"resolved": None})
    starting.to_workers()
    starting.step(31)
    assert [pod.name for pod in starting.plan.look_at] == ["gpt-train-0-2", "gpt-train-1-2", "gpt-train-2-1"]


def event(kind: str, reason: str, last: str | None = None, **times: Any) -> dict[str, Any]:
    return {"type": kind, "reason": reason, "message": f"{reason}!", "lastTimestamp": last, **times}


MOUNT = event("Warning", "FailedMount", "2026-01-01T00:00:05Z")
PULLING = event("Normal", "Pulling", "2026-01-01T00:00:07Z")
SCHEDULED = event("Normal", "Scheduled", eventTime="2026-01-01T00:00:05.500000Z")
AGAIN = event("Warning", "Again", series={"lastObservedTime": "2026-01-01T00:01:00.250000Z"})


@pytest.mark.parametrize(
    ("events", "found"),
    [
        ([], None),
        ([MOUNT, PULLING], None),
        ([SCHEDULED, MOUNT], ("FailedMount", "FailedMount!")),
        ([AGAIN, MOUNT, PULLING], ("Again", "Again!")),
    ],
)
def test_only_a_warning_that_nothing_followed_explains_a_pod(
    events: list[dict[str, Any]], found: tuple[str, str] | None
) -> None:
    assert newest_warning(events) == found
