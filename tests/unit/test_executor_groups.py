"""What the executor does for pods that wait and end as groups: PodGroups, queues, and contended nodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from support.executing import KEY, NOW, World, pod, start_one_pod
from trainingjob_operator.core.facts import Job, PodFacts
from trainingjob_operator.core.findings import Claim
from trainingjob_operator.core.kueue import FINALIZER, GATE, GROUP, RETRIABLE
from trainingjob_operator.core.plan import Plan, PodRef
from trainingjob_operator.kube.api import POD_GROUPS, PODS, TRAINING_JOBS, WORKLOADS

POD = ("pods", "team", "job-train-0-1")
GIVE_UP = ("patch", "pods", "job-train-0-1")


def queued(**spec: Any) -> dict[str, Any]:
    """A pod that Kueue holds."""
    made = pod()
    made["metadata"]["labels"][GROUP] = "job-train-1"
    made["metadata"]["finalizers"] = [FINALIZER]
    return {**made, "spec": spec, "status": {"phase": "Pending"}}


def given_up(world: World) -> bool:
    return world.api.objects[POD]["metadata"].get("annotations") == {RETRIABLE: "false"}


async def test_a_group_is_given_up_with_the_pods_uid() -> None:
    refs: list[PodRef] = []
    world = World(lambda job, pods: Plan(give_up=tuple(refs)))
    uid = world.api.put(PODS, queued())["metadata"]["uid"]
    refs.append(PodRef("job-train-0-1", "another"))
    await world.executor.reconcile(KEY)
    assert not given_up(world)
    refs[0] = PodRef("job-train-0-1", uid)
    await world.executor.reconcile(KEY)
    assert given_up(world)


async def test_the_groups_of_a_job_that_is_deleted_are_given_up_once() -> None:
    world = World(lambda job, pods: Plan())
    world.cache.put_pod(world.api.put(PODS, queued()))
    await world.executor.reconcile(KEY)
    world.cache.remove_job(world.api.objects[("trainingjobs", "team", "job")])
    await world.executor.reconcile(KEY)
    await world.executor.reconcile(KEY)
    assert world.api.writes() == [GIVE_UP]
    assert given_up(world)
    assert world.told.forgotten == ["job-1"]


async def test_the_groups_of_a_job_that_went_while_no_operator_was_there_are_given_up() -> None:
    world = World(lambda job, pods: Plan())
    world.cache.put_pod(world.api.put(PODS, queued()))
    assert list(world.cache.orphans()) == []
    world.api.put(TRAINING_JOBS, {"metadata": {"name": "job", "uid": "job-2"}, "spec": {}})
    world.see()
    (orphan,) = world.cache.orphans()
    world.executor.remember(*orphan)
    await world.executor.reconcile(KEY)
    assert given_up(world)


async def test_the_groups_of_a_job_that_waits_for_its_pods_to_go_are_given_up() -> None:
    """Foreground deletion, seen by an operator that has just started."""
    world = World(lambda job, pods: Plan())
    world.cache.put_pod(world.api.put(PODS, queued()))
    world.api.put(TRAINING_JOBS, {"metadata": {"name": "job", "uid": "job-1", "deletionTimestamp": "x"}})
    world.see()
    await world.executor.reconcile(KEY)
    await world.executor.reconcile(KEY)
    assert world.api.writes() == [GIVE_UP]


async def test_a_pod_that_is_held_back_from_the_start_is_decided_on_although_no_event_tells() -> None:
    seen: list[int] = []

    def think(job: Job, pods: Sequence[PodFacts]) -> Plan:
        seen.append(len(pods))
        return replace(start_one_pod(job, pods), create_pods=() if pods else (queued(),))

    world = World(think)
    await world.executor.reconcile(KEY)
    assert seen[-1] == 1


async def test_what_keeps_a_group_waiting_is_read_from_the_group() -> None:
    world = World(lambda job, pods: Plan(look_at=tuple(pods) if not world.findings.looks else ()))
    world.cache.put_pod(world.api.put(PODS, queued(schedulingGates=[{"name": GATE}])))
    said = {"type": "QuotaReserved", "status": "False", "reason": "Pending", "message": "no quota"}
    world.api.put(WORKLOADS, {"metadata": {"name": "job-train-1"}, "status": {"conditions": [said]}})
    await world.executor.reconcile(KEY)
    (look,) = world.findings.looks.values()
    assert (look.warning, look.count) == (("Pending", "no quota"), 1)


async def test_a_pod_group_that_was_deleted_while_its_pods_wait_comes_back() -> None:
    group = {
        "kind": "PodGroup",
        "metadata": {"name": "job-tj", "ownerReferences": pod()["metadata"]["ownerReferences"]},
        "spec": {"schedulingPolicy": {"gang": {"minCount": 2}}},
    }
    world = World(lambda job, pods: Plan(ensure=(group,), look_at=tuple(pods) if not world.findings.looks else ()))
    waiting = {**pod(), "spec": {"schedulingGroup": {"podGroupName": "job-tj"}}, "status": {"phase": "Pending"}}
    world.cache.put_pod(world.api.put(PODS, waiting))
    await world.executor.reconcile(KEY)
    assert (POD_GROUPS.plural, "team", "job-tj") in world.api.objects


async def test_a_job_is_told_of_what_the_others_claim_but_for_the_quotas_of_other_namespaces() -> None:
    claims = {"job": Claim(NOW, "job-1", quota="team"), "other": Claim(NOW, "job-0")}

    def think(job: Job, pods: Sequence[PodFacts]) -> Plan:
        heard[job.name] = world.findings.rivals
        return Plan(claim=claims.get(job.name))

    heard: dict[str, tuple[Claim, ...]] = {}
    world = World(think)
    other = KEY._replace(name="other")
    world.cache.put_job(world.api.put(TRAINING_JOBS, {"metadata": {"name": "other", "uid": "job-0"}, "spec": {}}))
    for key in (KEY, other, KEY):
        await world.executor.reconcile(key)
    assert heard == {"job": (Claim(NOW, "job-0"),), "other": (Claim(NOW, "job-1", quota="team"),)}
    claims["other"] = Claim(NOW, "job-0", quota="another-team")
    await world.executor.reconcile(other)
    await world.executor.reconcile(KEY)
    assert heard["job"] == ()
    claims["other"] = Claim(NOW, "job-0", quota="team")
    await world.executor.reconcile(other)
    await world.executor.reconcile(KEY)
    assert heard["job"] == (claims["other"],)
    del claims["other"]
    await world.executor.reconcile(other)
    await world.executor.reconcile(KEY)
    assert heard["job"] == ()
    world.cache.remove_job(world.api.objects[("trainingjobs", "team", "job")])
    await world.executor.reconcile(KEY)
    await world.executor.reconcile(other)
    assert heard["other"] == ()


async def test_a_job_without_a_queue_causes_nothing_when_it_goes() -> None:
    world = World(start_one_pod)
    await world.executor.reconcile(KEY)
    world.api.calls.clear()
    world.cache.remove_job(world.api.objects[("trainingjobs", "team", "job")])
    await world.executor.reconcile(KEY)
    assert world.api.calls == []
