"""The executor makes a plan's writes in an order that stays safe when the world changes in between."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from support.executing import CHILDREN, KEY, Think, World, child, pod, service, start_one_pod
from trainingjob_operator.api.status import Phase, TrainingJobStatus
from trainingjob_operator.core import labels
from trainingjob_operator.core.facts import Job, PodFacts
from trainingjob_operator.core.names import (
    ANNOTATION_FIXED,
    LABEL_MEMBER,
)
from trainingjob_operator.core.plan import EventFact, ObjectRef, Plan, PodRef, Relabel
from trainingjob_operator.core.queue import Retry
from trainingjob_operator.kube.api import (
    CONFIG_MAPS,
    POD_GROUPS,
    PODS,
    SECRETS,
    SERVICES,
    TRAINING_JOBS,
    Conflict,
    Unreachable,
)


async def test_the_status_is_written_before_children_and_children_before_pods() -> None:
    world = World(start_one_pod)
    assert await world.executor.reconcile(KEY) == 7.0
    assert world.api.writes() == [
        ("update", "trainingjobs", "job"),
        ("create", "configmaps", "job-tj-1"),
        ("create", "secrets", "job-tj-uid"),
        ("create", "services", "job-tj"),
        ("create", "pods", "job-train-0-1"),
    ]
    assert world.status()["phase"] == "Starting"


async def test_a_settled_job_causes_no_request() -> None:
    world = World(start_one_pod)
    await world.executor.reconcile(KEY)
    world.api.calls.clear()
    await world.executor.reconcile(KEY)
    assert world.api.calls == []


@pytest.mark.parametrize(
    ("phase", "head", "starting"), [("Starting", False, True), ("Starting", True, False), ("Suspended", False, False)]
)
async def test_what_starts_and_is_not_polled_counts_among_those_that_are_written_about(
    phase: Phase, head: bool, starting: bool
) -> None:
    world = World(
        lambda job, pods: Plan(status=TrainingJobStatus(phase=phase), wants_progress=pods[0] if head else None)
    )
    world.api.put(PODS, pod())
    world.cache.put_pod(world.api.objects[("pods", "team", "job-train-0-1")])
    await world.executor.reconcile(KEY)
    assert world.told.starting == [starting]


async def test_the_secret_gets_a_random_token_and_is_never_read() -> None:
    tokens = set()
    for _ in range(2):
        world = World(start_one_pod)
        await world.executor.reconcile(KEY)
        data = world.api.objects[("secrets", "team", "job-tj-uid")]["data"]
        assert set(data) == {"token"}
        tokens.add(base64.b64decode(data["token"]))
        assert ("get", "secrets", "job-tj-uid") not in world.api.calls
    assert len(tokens) == 2
    assert all(len(token) == 64 for token in tokens)


async def test_a_pod_is_not_created_from_a_watched_job_before_a_quorum_read() -> None:
    world = World(start_one_pod)
    world.api.put(
        TRAINING_JOBS,
        {"metadata": {"name": "job", "uid": "job-1"}, "status": TrainingJobStatus(phase="Starting").wire()},
    )
    world.see()  # the licence is in the status, but another process may have used it
    world.api.put(PODS, {**pod(), "status": {"phase": "Running"}})
    await world.executor.reconcile(KEY)
    assert world.api.calls[:2] == [("get", "trainingjobs", "job"), ("list", "pods", "")]
    assert ("create", "pods", "job-train-0-1") not in world.api.calls


async def test_a_stale_status_write_creates_nothing_and_is_decided_again_on_the_live_job() -> None:
    world = World(start_one_pod)
    suspended = TrainingJobStatus(phase="Suspended")
    live = world.api.put(
        TRAINING_JOBS, {"metadata": {"name": "job", "uid": "job-1", "generation": 2}, "status": suspended.wire()}
    )
    decided_on: list[str] = []

    def think(job: Job, pods: Sequence[PodFacts]) -> Plan:
        decided_on.append(job.resource_version)
        return Plan() if job.status == suspended else start_one_pod(job, pods)

    world.think = think
    await world.executor.reconcile(KEY)
    assert decided_on[-1] == live["metadata"]["resourceVersion"]
    assert world.api.writes() == [("update", "trainingjobs", "job")]


async def test_a_job_of_the_same_name_but_another_uid_gets_nothing_of_its_predecessor() -> None:
    world = World(start_one_pod)
    world.api.put(TRAINING_JOBS, {"metadata": {"name": "job", "uid": "job-2"}, "spec": {}})
    uids: list[str] = []

    def think(job: Job, pods: Sequence[PodFacts]) -> Plan:
        uids.append(job.uid)
        return start_one_pod(job, pods) if job.uid == "job-1" else Plan()

    world.think = think
    await world.executor.reconcile(KEY)
    assert uids == ["job-1", "job-2"]
    assert not [call for call in world.api.calls if call[0] == "create"]


async def test_nothing_is_written_for_a_job_that_is_being_deleted_or_is_gone() -> None:
    world = World(start_one_pod)
    await world.executor.reconcile(KEY)
    world.api.put(TRAINING_JOBS, {"metadata": {"name": "job", "uid": "job-1", "deletionTimestamp": "x"}})
    world.see()
    world.api.calls.clear()
    assert await world.executor.reconcile(KEY) is None
    assert world.api.calls == []
    assert world.told.forgotten == ["job-1"]


async def test_after_an_unanswered_create_the_pods_are_read_before_it_is_asked_again() -> None:
    world = World(start_one_pod)

    def lose_the_answer(verb: str, plural: str, name: str) -> None:
        if (verb, plural) == ("create", "pods"):
            world.api.before = lambda verb, plural, name: None
            raise Unreachable(0, "Unreachable", "no answer")

    world.api.before = lose_the_answer
    with pytest.raises(Retry):
        await world.executor.reconcile(KEY)
    world.api.calls.clear()
    await world.executor.reconcile(KEY)
    reads = [("get", "trainingjobs", "job"), ("list", "pods", "")]
    assert world.api.calls[:2] == reads
    assert world.api.calls[-1] == ("create", "pods", "job-train-0-1")


async def test_a_member_leaves_the_service_before_its_successor_is_created_and_only_with_its_uid() -> None:
    ref: list[PodRef] = []

    def think(job: Job, pods: Sequence[PodFacts]) -> Plan:
        if any(known.incarnation == 2 for known in pods):
            return Plan()
        return Plan(status=TrainingJobStatus(phase="Restarting"), drop_member=tuple(ref), create_pods=(pod(2),))

    world = World(think)
    uid = world.api.put(PODS, pod())["metadata"]["uid"]
    ref.append(PodRef("job-train-0-1", uid))
    await world.executor.reconcile(KEY)
    assert world.api.writes()[1:] == [("patch", "pods", "job-train-0-1"), ("create", "pods", "job-train-0-2")]
    assert LABEL_MEMBER not in world.api.objects[("pods", "team", "job-train-0-1")]["metadata"]["labels"]


async def test_a_pod_of_the_same_name_but_another_uid_survives_a_planned_delete() -> None:
    world = World(lambda job, pods: Plan(delete_pods=(PodRef("job-train-0-1", "old"),)))
    world.api.put(PODS, pod())
    await world.executor.reconcile(KEY)
    assert ("pods", "team", "job-train-0-1") in world.api.objects


async def test_only_own_children_are_deleted() -> None:
    world = World(
        lambda job, pods: Plan(delete_children=(ObjectRef("Service", "job-tj"), ObjectRef("ConfigMap", "job-tj-1")))
    )
    world.api.put(SERVICES, child("Service", "job-tj"))
    world.api.put(CONFIG_MAPS, child("ConfigMap", "job-tj-1", job="somebody"))
    await world.executor.reconcile(KEY)
    assert set(world.api.objects) == {("trainingjobs", "team", "job"), ("configmaps", "team", "job-tj-1")}


async def test_children_that_vanished_come_back_before_the_next_pod() -> None:
    world = World(start_one_pod)
    await world.executor.reconcile(KEY)
    for resource, name in ((SERVICES, "job-tj"), (SECRETS, "job-tj-uid")):
        world.api.remove(resource, name)
    world.api.calls.clear()
    world.think = lambda job, pods: Plan(ensure=CHILDREN, create_pods=(pod(2),) if len(pods) < 2 else ())
    await world.executor.reconcile(KEY)
    assert world.api.writes() == [
        ("create", "secrets", "job-tj-uid"),
        ("create", "services", "job-tj"),
        ("create", "pods", "job-train-0-2"),
    ]


def pod_group(count: int, fixed: str = "a") -> dict[str, Any]:
    made = child("PodGroup", "job-tj")
    made["metadata"]["annotations"] = {ANNOTATION_FIXED: fixed}
    return {**made, "spec": {"schedulingPolicy": {"gang": {"minCount": count}}}}


def wanting(group: dict[str, Any]) -> Think:
    return lambda job, pods: Plan(
        status=TrainingJobStatus(phase="Starting") if job.status.phase is None else None,
        ensure=(group,),
        create_pods=() if pods else (pod(),),
    )


async def test_a_pod_group_follows_the_size_of_the_gang() -> None:
    world = World(wanting(pod_group(4)))
    world.api.put(POD_GROUPS, pod_group(2))
    await world.executor.reconcile(KEY)
    assert world.api.objects[("podgroups", "team", "job-tj")]["spec"] == pod_group(4)["spec"]
    assert ("create", "pods", "job-train-0-1") in world.api.writes()


async def test_a_pod_group_that_differs_for_good_is_made_anew_before_the_pods() -> None:
    world = World(wanting(pod_group(2, "new")))
    world.api.put(POD_GROUPS, pod_group(2, "old"))
    with pytest.raises(Retry, match="made anew"):
        await world.executor.reconcile(KEY)
    assert ("create", "pods", "job-train-0-1") not in world.api.writes()
    await world.executor.reconcile(KEY)
    assert world.api.objects[("podgroups", "team", "job-tj")]["metadata"]["annotations"] == {ANNOTATION_FIXED: "new"}
    assert ("create", "pods", "job-train-0-1") in world.api.writes()


async def test_a_pod_group_with_running_pods_is_not_deleted_whatever_was_done_to_it() -> None:
    world = World(lambda job, pods: Plan(ensure=(pod_group(2, "new"),), create_pods=() if len(pods) > 1 else (pod(2),)))
    world.api.put(POD_GROUPS, pod_group(2, "edited"))
    running = {**pod(), "spec": {"schedulingGroup": {"podGroupName": "job-tj"}}, "status": {"phase": "Running"}}
    world.api.put(PODS, running)
    await world.executor.reconcile(KEY)
    assert [call for call in world.api.writes() if call[1] == "podgroups"] == [("create", "podgroups", "job-tj")]
    assert ("create", "pods", "job-train-0-2") in world.api.writes()


async def test_a_foreign_pod_group_is_explained_and_never_touched() -> None:
    world = World(wanting(pod_group(2)))
    foreign = world.api.put(POD_GROUPS, child("PodGroup", "job-tj", job="somebody"))
    with pytest.raises(Retry, match="PodGroup job-tj exists and does not belong"):
        await world.executor.reconcile(KEY)
    assert world.api.objects[("podgroups", "team", "job-tj")] == foreign


@pytest.mark.parametrize("edit", [{"selector": {"app": "theirs"}}, {"publishNotReadyAddresses": False}])
async def test_a_service_that_was_led_elsewhere_is_made_anew(edit: dict[str, Any]) -> None:
    world = World(lambda job, pods: Plan(ensure=(service(),), create_pods=() if pods else (pod(),)))
    world.executor = world.make_executor(ensure_interval=0.0)
    world.api.put(PODS, pod())
    world.cache.put_pod(world.api.objects[("pods", "team", "job-train-0-1")])
    world.api.put(SERVICES, service(**edit, ports=[]))
    await world.executor.reconcile(KEY)
    assert world.api.writes() == [("delete", "services", "job-tj"), ("create", "services", "job-tj")]
    assert world.api.objects[("services", "team", "job-tj")]["spec"] == service()["spec"]
    await world.executor.reconcile(KEY)
    assert len(world.api.writes()) == 2, "it is as it should be"


def given_up(uid: str) -> Relabel:
    return Relabel(PodRef("job-train-0-1", uid), dict(pod()["metadata"]["labels"]))


async def test_a_pod_that_lost_the_label_by_which_it_is_watched_gets_it_back_and_no_successor() -> None:
    world = World(start_one_pod)
    hidden = pod()
    hidden["metadata"]["labels"] = {}
    uid = world.api.put(PODS, hidden)["metadata"]["uid"]
    replaced = Plan(status=TrainingJobStatus(phase="Restarting"), confirm_gone=(given_up(uid),), create_pods=(pod(2),))
    world.think = lambda job, pods: Plan() if pods else replaced
    assert await world.executor.reconcile(KEY)
    assert world.api.writes() == [("patch", "pods", "job-train-0-1")]
    assert world.api.objects[("pods", "team", "job-train-0-1")]["metadata"]["labels"] == pod()["metadata"]["labels"]
    assert [known.name for known in world.cache.pods("job-1")] == ["job-train-0-1"]


@pytest.mark.parametrize("there", ["nothing", "another pod", "somebody else's"])
async def test_a_pod_that_is_not_found_is_given_up(there: str) -> None:
    world = World(start_one_pod)
    if there != "nothing":
        world.api.put(PODS, pod(job="another" if there == "somebody else's" else "job-1"))
    replaced = Plan(status=TrainingJobStatus(phase="Restarting"), confirm_gone=(given_up("old"),))
    world.think = lambda job, pods: replaced if job.status.phase != "Restarting" else Plan()
    await world.executor.reconcile(KEY)
    assert world.status()["phase"] == "Restarting"
    assert ("patch", "pods", "job-train-0-1") not in world.api.calls


@pytest.mark.parametrize("wish", ["delete_pods", "drop_member", "give_up", "relabel"])
async def test_a_conflict_is_not_taken_for_the_end_of_a_pod_that_is_there(wish: str) -> None:
    world = World(start_one_pod)
    uid = world.api.put(PODS, pod())["metadata"]["uid"]
    world.think = lambda job, pods: replace(
        Plan(), **{wish: (given_up(uid) if wish == "relabel" else PodRef("job-train-0-1", uid),)}
    )

    def refuse(verb: str, plural: str, name: str) -> None:
        if verb in ("delete", "patch"):
            raise Conflict(409, "Conflict", "the object has been modified")

    world.api.before = refuse
    with pytest.raises(Retry):
        await world.executor.reconcile(KEY)
    world.api.remove(PODS, "job-train-0-1")
    await world.executor.reconcile(KEY)


async def test_labels_that_are_taken_away_again_and_again_are_not_put_right_each_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 1000.0
    monkeypatch.setattr(labels, "time", SimpleNamespace(monotonic=lambda: now))
    world = World(start_one_pod)
    uid = world.api.put(PODS, pod())["metadata"]["uid"]
    world.think = lambda job, pods: Plan(relabel=(given_up(uid),))
    for _ in range(20):
        await world.executor.reconcile(KEY)
    once = [("patch", "pods", "job-train-0-1")]
    assert world.api.writes() == once
    now += labels.REPAIR_SECONDS - 1
    assert await world.executor.reconcile(KEY) == 1.0, "it is tried again later"
    assert world.api.writes() == once
    now += 1
    await world.executor.reconcile(KEY)
    assert world.api.writes() == 2 * once


async def test_events_are_told_only_after_the_status_is_written() -> None:
    event = EventFact("Normal", "Started", "The run has started.")
    world = World(lambda job, pods: Plan(status=TrainingJobStatus(phase="Starting"), events=(event,)))

    def fail(verb: str, plural: str, name: str) -> None:
        raise Unreachable(0, "Unreachable", "no answer")

    world.api.before = fail
    with pytest.raises(Retry):
        await world.executor.reconcile(KEY)
    assert world.told.events == []
    world.api.before = lambda verb, plural, name: None
    await world.executor.reconcile(KEY)
    assert world.told.events == ["Started"]


async def test_a_pod_is_not_deleted_for_a_job_that_was_only_watched() -> None:
    suspended, resumed = TrainingJobStatus(phase="Suspended"), TrainingJobStatus(phase="Running")

    def think(job: Job, pods: Sequence[PodFacts]) -> Plan:
        unwanted = [PodRef(known.name, known.uid) for known in pods if job.status == suspended]
        return Plan(delete_pods=tuple(unwanted))

    world = World(think)
    world.api.put(TRAINING_JOBS, {"metadata": {"name": "job", "uid": "job-1"}, "status": suspended.wire()})
    world.see()
    world.cache.put_pod(world.api.put(PODS, pod()))
    world.api.put(TRAINING_JOBS, {"metadata": {"name": "job", "uid": "job-1"}, "status": resumed.wire()})
    await world.executor.reconcile(KEY)
    assert world.api.writes() == []


@pytest.mark.parametrize("meanwhile", ["Starting", "Running"])
async def test_no_pod_is_ended_by_what_an_operator_that_starts_was_told_of_the_pods(meanwhile: Phase) -> None:
    """It ended meanwhile, and its log is there to be read; the job changed as well, or did not."""
    old, live = TrainingJobStatus(phase="Starting"), TrainingJobStatus(phase=meanwhile)

    def think(job: Job, pods: Sequence[PodFacts]) -> Plan:
        unwanted = tuple(PodRef(known.name, known.uid) for known in pods if not known.finished)
        told = TrainingJobStatus(phase=job.status.phase, message=f"{len(unwanted)} to go")
        return Plan(
            status=told if told != job.status else None, delete_pods=unwanted if job.status.phase == meanwhile else ()
        )

    world = World(think)
    world.api.put(TRAINING_JOBS, {"metadata": {"name": "job", "uid": "job-1"}, "status": old.wire()})
    world.see()
    running = world.api.put(PODS, pod())
    world.cache.put_pod(running)
    world.api.put(PODS, running | {"status": {"phase": "Failed"}})
    if live != old:
        world.api.put(TRAINING_JOBS, {"metadata": {"name": "job", "uid": "job-1"}, "status": live.wire()})
    await world.executor.reconcile(KEY)
    assert world.status()["message"] == "0 to go"
    assert ("delete", "pods", "job-train-0-1") not in world.api.writes()
