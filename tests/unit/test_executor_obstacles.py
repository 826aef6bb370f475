"""What the executor does when the API server refuses an object, and when a pod does not start."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from support.executing import KEY, NOW, Think, World, pod, start_one_pod
from trainingjob_operator.api.status import Condition, TrainingJobStatus
from trainingjob_operator.core.facts import Job, PodFacts
from trainingjob_operator.core.kueue import FINALIZER, GROUP
from trainingjob_operator.core.obstacle import Look
from trainingjob_operator.core.plan import EventFact, Plan, PodRef, Relabel
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
            why = {"reason": refusal.reason, "message": refusal.message}
            stalled = Condition(type="Stalled", status="True", last_transition_time=NOW, **why)
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


FROZEN = "Pod job-train-0-1 cannot be {}: pods are frozen; have the policy changed."


def freeze_pods(world: World, *verbs: str) -> None:
    """A webhook or a policy denies such requests about pods that are there."""

    def refuse(verb: str, plural: str, name: str) -> None:
        if verb in verbs and plural == "pods":
            world.api.calls.append((verb, plural, name))
            raise Forbidden(403, "Forbidden", f'pods "{name}" is forbidden: pods are frozen')

    world.api.before = refuse


@pytest.mark.parametrize(
    ("wish", "said"),
    [("drop_member", "changed"), ("delete_pods", "deleted"), ("give_up", "changed"), ("relabel", "changed")],
)
async def test_a_pod_that_must_stay_as_it_is_is_explained_once(wish: str, said: str) -> None:
    """Else a job would wait for its successors, or keep its place in a queue, and nobody knew for what."""
    world = World(start_one_pod)
    there = world.api.put(PODS, pod())
    ref = PodRef(there["metadata"]["name"], there["metadata"]["uid"])
    wished: Any = (Relabel(ref, {"a": "b"}),) if wish == "relabel" else (ref,)
    explain = explaining(world)
    world.think = lambda job, pods: replace(explain(job, pods), create_pods=(), **{wish: wished})
    freeze_pods(world, "patch", "delete")
    for _ in range(3):
        with pytest.raises(Retry, match="pods are frozen"):
            await world.executor.reconcile(KEY)
    assert world.status()["message"] == FROZEN.format(said)
    assert world.told.events == ["DeleteRefused" if said == "deleted" else "CreateRefused"]
    assert [call[0] for call in world.api.writes()].count("update") == 2, "the start, and what is in the way"
    world.api.before = lambda verb, plural, name: None
    await world.executor.reconcile(KEY)
    assert world.status() == TrainingJobStatus(phase="Starting").wire()


async def test_a_pod_out_of_sight_whose_labels_must_stay_as_they_are_is_no_loss() -> None:
    world = World(start_one_pod)
    hidden = pod()
    hidden["metadata"]["labels"] = {}
    there = world.api.put(PODS, hidden)["metadata"]
    looked_for = (Relabel(PodRef(there["name"], there["uid"]), dict(pod()["metadata"]["labels"])),)
    explain = explaining(world)

    def think(job: Job, pods: Sequence[PodFacts]) -> Plan:
        if pods:
            return replace(explain(job, pods), relabel=looked_for)
        lost = TrainingJobStatus(phase="Restarting")
        return Plan(confirm_gone=looked_for, status=lost, create_pods=(pod(2),))

    world.think = think
    freeze_pods(world, "patch")
    for _ in range(3):
        with pytest.raises(Retry):
            await world.executor.reconcile(KEY)
    assert world.status()["message"] == FROZEN.format("changed")
    assert [name for verb, _, name in world.api.writes() if verb == "create"] == []


@pytest.mark.parametrize("ends", ["Failed", "deleted"])
async def test_the_end_of_a_pod_that_must_stay_out_of_sight_is_seen_at_the_next_try(ends: str) -> None:
    world = World(start_one_pod)
    hidden = pod()
    hidden["metadata"]["labels"] = {}
    there = world.api.put(PODS, hidden)
    name = there["metadata"]["name"]
    looked_for = (Relabel(PodRef(name, there["metadata"]["uid"]), {"a": "b"}),)
    seen: list[str] = []

    def think(job: Job, pods: Sequence[PodFacts]) -> Plan:
        seen[:] = ["deleted" if p.gone else p.phase for p in pods]
        return Plan(relabel=looked_for) if "Pending" in seen else Plan(confirm_gone=() if pods else looked_for)

    world.think = think
    freeze_pods(world, "patch")
    for _ in range(2):
        with pytest.raises(Retry, match="pods are frozen"):
            await world.executor.reconcile(KEY)
    if ends == "deleted":
        world.api.remove(PODS, name)
    else:
        world.api.put(PODS, {**there, "status": {"phase": ends}})
    await world.executor.reconcile(KEY)
    assert seen == [ends]


async def test_the_pods_of_a_job_that_goes_are_let_go_when_the_policy_lets_them() -> None:
    """Nobody reads the status of such a job: the log has it, without a traceback."""
    world = World(start_one_pod)
    held = pod()
    held["metadata"] |= {"labels": {**held["metadata"]["labels"], GROUP: "job-train-1"}, "finalizers": [FINALIZER]}
    world.cache.put_pod(world.api.put(PODS, {**held, "status": {"phase": "Pending"}}))
    await world.executor.reconcile(KEY)
    world.cache.remove_job(world.api.objects[("trainingjobs", "team", "job")])
    freeze_pods(world, "patch")
    with pytest.raises(Retry, match="pods are frozen"):
        await world.executor.reconcile(KEY)
    world.api.before = lambda verb, plural, name: None
    await world.executor.reconcile(KEY)
    assert world.api.writes()[-1] == ("patch", "pods", "job-train-0-1")
    assert world.told.forgotten == ["job-1"]


async def test_pods_that_are_to_go_do_not_wait_for_those_that_are_refused() -> None:
    """Their place in the quota may be what new ones lack."""
    world = World(start_one_pod)
    old = world.api.put(PODS, pod())["metadata"]
    gone = (PodRef(old["name"], old["uid"]),)
    world.think = lambda job, pods: replace(start_one_pod(job, pods), create_pods=(pod(2),), delete_pods=gone)
    refuse_pods(world)
    with pytest.raises(Retry, match="exceeded quota"):
        await world.executor.reconcile(KEY)
    assert ("pods", "team", "job-train-0-1") not in world.api.objects


def refuse_pods(world: World, why: str = "exceeded quota: pods=10") -> None:
    def refuse(verb: str, plural: str, name: str) -> None:
        if (verb, plural) == ("create", "pods"):
            world.api.calls.append((verb, plural, name))
            raise Forbidden(403, "Forbidden", why)

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


async def test_who_was_refused_for_a_quota_is_woken_until_it_has_what_it_needs() -> None:
    world = World(start_one_pod)
    world.think = explaining(world)
    refuse_pods(world)
    with pytest.raises(Retry):
        await world.executor.reconcile(KEY)
    world.shortage.freed("team")
    assert world.woken == [KEY]
    world.api.before = lambda verb, plural, name: None
    await world.executor.reconcile(KEY)
    world.shortage.freed("team")
    assert world.woken == [KEY]


async def test_how_much_of_a_quota_others_use_is_no_news() -> None:
    world = World(start_one_pod)
    world.think = explaining(world)
    for used in (3, 4, 5):
        refuse_pods(world, f"exceeded quota: team, requested: pods=1, used: pods={used}, limited: pods=3")
        with pytest.raises(Retry):
            await world.executor.reconcile(KEY)
    assert world.told.events == ["QuotaExceeded"]
    assert "used: pods=3" in world.status()["message"]
    refuse_pods(world, "exceeded quota: team, requested: pods=1, used: pods=9, limited: pods=9")
    with pytest.raises(Retry):
        await world.executor.reconcile(KEY)
    assert "limited: pods=9" in world.status()["message"]


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
