"""What the executor does when the API server refuses an object, and when a pod does not start."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from support.executing import KEY, NOW, Think, World, pod, start_one_pod
from trainingjob_operator.api.status import Condition, TrainingJobStatus
from trainingjob_operator.core.facts import Job, PodFacts
from trainingjob_operator.core.obstacle import Look
from trainingjob_operator.core.plan import EventFact, Plan, PodRef
from trainingjob_operator.core.queue import Retry
from trainingjob_operator.core.writing import WRITES_AT_ONCE
from trainingjob_operator.kube.api import (
    CONFIG_MAPS,
    EVENTS,
    PODS,
    SERVICES,
    Forbidden,
    Unreachable,
)


def explaining(world: World) -> Think:
    """As `start_one_pod`, with a status that tells of a refusal."""

    def think(job: Job, pods: Sequence[PodFacts]) -> Plan:
        refusal = world.findings.refusal
        said = TrainingJobStatus(phase="Starting")
        events: tuple[EventFact, ...] = ()
        if refusal is not None:
            stalled = Condition(type="Stalled", status="True", reason=refusal.reason, last_transition_time=NOW)
            said = said.model_copy(update={"message": refusal.message, "conditions": (stalled,)})
            events = (EventFact("Warning", refusal.reason, refusal.message),)
        news = job.status != said
        return replace(start_one_pod(job, pods), status=said if news else None, events=events if news else ())

    return think


@pytest.mark.parametrize(
    ("resource", "name"), [(CONFIG_MAPS, "job-tj-1"), (SERVICES, "job-tj"), (PODS, "job-train-0-1")]
)
async def test_a_foreign_object_with_a_childs_name_is_explained_once_and_never_touched(
    resource: Any, name: str
) -> None:
    world = World(start_one_pod)
    world.think = explaining(world)
    foreign = world.api.put(resource, {"metadata": {"name": name}, "data": {"theirs": "yes"}})
    for _ in range(3):
        with pytest.raises(Retry, match=f"{resource.kind} {name} exists and does not belong"):
            await world.executor.reconcile(KEY)
    status = TrainingJobStatus.model_validate(world.status())
    assert f"{resource.kind} {name} exists" in status.message
    assert [(c.type, c.status, c.reason) for c in status.conditions] == [("Stalled", "True", "NameTaken")]
    assert world.told.events == ["NameTaken"]
    assert len([call for call in world.api.calls if call[0] == "update"]) == 2
    assert world.api.objects[(resource.plural, "team", name)] == foreign

    world.api.remove(resource, name)
    await world.executor.reconcile(KEY)
    assert world.status() == TrainingJobStatus(phase="Starting").wire()
    assert ("pods", "team", "job-train-0-1") in world.api.objects


async def test_a_refused_pod_is_explained_with_the_api_servers_words() -> None:
    world = World(start_one_pod)
    world.think = explaining(world)
    refuse_pods(world)
    with pytest.raises(Retry) as retry:
        await world.executor.reconcile(KEY)
    assert "exceeded quota: pods=10" in world.status()["message"]
    assert retry.value.within == 7.0, "what the plan waits for is not slept through"


@pytest.mark.parametrize(
    ("wish", "verb", "said"), [("drop_member", "patch", "changed"), ("delete_pods", "delete", "deleted")]
)
async def test_a_pod_that_must_stay_as_it_is_is_explained(wish: str, verb: str, said: str) -> None:
    """A webhook or a policy denies it: else a job would wait for its successors, and nobody knew for what."""
    world = World(start_one_pod)
    there = world.api.put(PODS, pod())
    ref = (PodRef(there["metadata"]["name"], there["metadata"]["uid"]),)
    explain = explaining(world)
    world.think = lambda job, pods: replace(explain(job, pods), create_pods=(), **{wish: ref})

    def refuse(asked: str, plural: str, name: str) -> None:
        if (asked, plural) == (verb, "pods"):
            raise Forbidden(403, "Forbidden", 'pods "job-train-0-1" is forbidden: pods are frozen')

    world.api.before = refuse
    with pytest.raises(Retry):
        await world.executor.reconcile(KEY)
    assert world.status()["message"] == (
        f"Pod job-train-0-1 cannot be {said}: pods are frozen; have the policy changed."
    )


def refuse_pods(world: World) -> None:
    def refuse(verb: str, plural: str, name: str) -> None:
        if (verb, plural) == ("create", "pods"):
            world.api.calls.append((verb, plural, name))
            raise Forbidden(403, "Forbidden", "exceeded quota: pods=10")

    world.api.before = refuse


async def test_a_refusal_is_no_news_to_an_operator_that_starts_anew() -> None:
    world = World(start_one_pod)
    world.think = explaining(world)
    refuse_pods(world)
    with pytest.raises(Retry):
        await world.executor.reconcile(KEY)
    world.start_anew()
    with pytest.raises(Retry):
        await world.executor.reconcile(KEY)
    assert [call for call in world.api.calls if call[0] == "update"] == []
    assert world.told.events == []
    world.api.before = lambda verb, plural, name: None
    await world.executor.reconcile(KEY)
    assert world.status()["message"] == ""


async def test_of_a_gang_that_is_refused_not_every_pod_is_asked_for() -> None:
    gang = tuple(pod(number) for number in range(1, 101))
    world = World(lambda job, pods: replace(start_one_pod(job, pods), create_pods=gang))
    refuse_pods(world)
    with pytest.raises(Retry):
        await world.executor.reconcile(KEY)
    assert len([call for call in world.api.calls if call[:2] == ("create", "pods")]) <= WRITES_AT_ONCE


async def test_the_events_that_a_plan_asks_for_are_read_and_decided_on() -> None:
    world = World(start_one_pod)
    await world.executor.reconcile(KEY)
    (waiting,) = world.cache.pods("job-1")
    told = {"type": "Warning", "reason": "FailedMount", "message": "no such volume", "lastTimestamp": "2030"}
    for number, uid in enumerate((waiting.uid, "another")):
        about = {"metadata": {"name": f"e{number}"}, "involvedObject": {"uid": uid}}
        world.api.put(EVENTS, {**about, **told, "message": f"{told['message']} {number}"})
    world.think = lambda job, pods: Plan(look_at=() if world.findings.looks else (waiting,))
    world.api.calls.clear()
    await world.executor.reconcile(KEY)
    assert world.findings.looks == {waiting.uid: Look(NOW, 1, ("FailedMount", "no such volume 0"))}
    assert world.api.calls == [("list", "events", "")]


async def test_looks_at_events_take_turns() -> None:
    world = World(start_one_pod)
    await world.executor.reconcile(KEY)
    (waiting,) = world.cache.pods("job-1")
    world.think = lambda job, pods: Plan(look_at=() if world.findings.looks else (waiting,), requeue_after=9.0)
    assert await world.executor.reconcile(KEY) == 9.0
    world.think = lambda job, pods: Plan(look_at=(waiting,), requeue_after=9.0)
    world.api.calls.clear()
    for _ in range(2):
        assert await world.executor.reconcile(KEY) == 1.0, "its turn is kept"
    assert world.api.calls == []


async def test_events_that_cannot_be_read_stand_in_the_way_of_nothing() -> None:
    world = World(start_one_pod)
    await world.executor.reconcile(KEY)
    (waiting,) = world.cache.pods("job-1")
    world.think = lambda job, pods: Plan(look_at=() if world.findings.looks else (waiting,), requeue_after=9.0)

    def fail(verb: str, plural: str, name: str) -> None:
        raise Unreachable(0, "Unreachable", "no answer")

    world.api.before = fail
    assert await world.executor.reconcile(KEY) == 9.0
    assert world.findings.looks == {waiting.uid: Look(NOW, 1, None)}
