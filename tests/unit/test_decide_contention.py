"""Gangs that are placed pod by pod never wait for each other's nodes for ever."""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.play import START, Play, spec
from trainingjob_operator.core.findings import Claim
from trainingjob_operator.core.obstacle import Obstacle, refused
from trainingjob_operator.core.quota import judged
from trainingjob_operator.kube.api import Forbidden

OLDER = Claim(START - timedelta(hours=1), "older")
QUOTA = Obstacle("QuotaExceeded", "Pod gpt-train-1-1 cannot be created: exceeded quota: team; it waits.", room=True)


def stuck(**workers: object) -> Play:
    """A job of two workers of which one holds a node and the other finds none."""
    play = Play(spec=spec(workers={"replicas": 2, **workers}))
    play.to_workers()
    play.change("gpt-train-0-1", node="node-1")
    play.change("gpt-train-1-1", unschedulable="0/3 nodes are available")
    play.settle()
    return play


def rival(play: Play, *claims: Claim) -> None:
    play.findings = replace(play.findings, rivals=claims)


def refused_a_pod(**workers: object) -> Play:
    """A job of two workers of which one has its place in the namespace's quota, where there is none for the other."""
    play = Play(spec=spec(workers={"replicas": 2, **workers}))
    play.to_workers()
    play.refuse(QUOTA)
    again_without_it(play)
    return play


def again_without_it(play: Play, seconds: float = 0) -> None:
    """Time passes, and the second worker is refused again."""
    for after in (seconds, 0):
        play.step(after)
        play.pods = [pod for pod in play.pods if not pod.name.startswith("gpt-train-1")]


def test_a_gang_that_is_placed_in_part_claims_its_nodes() -> None:
    play = stuck()
    assert play.plan.claim == Claim(START, "job-uid")
    assert play.plan.requeue_after is not None
    play.change("gpt-train-1-1", unschedulable=None, node="node-2")
    play.settle()
    assert play.plan.claim is None


def test_it_gives_way_to_an_older_one_after_a_while_and_comes_back_later() -> None:
    play = stuck()
    rival(play, OLDER)
    play.step(14)
    assert play.deleted == []
    play.step(1)
    assert play.deleted == ["gpt-train-0-1", "gpt-train-1-1"]
    assert play.status.phase == "Queued"
    assert "older job" in play.status.message
    assert play.status.restarts.total == 0
    assert play.status.history == ()
    for name in play.deleted:
        play.vanish(name)
    plan = play.settle()
    assert plan.claim is None
    assert plan.requeue_after is not None
    assert 10 <= plan.requeue_after <= 20
    play.step(plan.requeue_after)
    assert play.created[-2:] == ["gpt-train-0-2", "gpt-train-1-2"]


def test_an_elastic_job_that_can_run_holds_no_nodes_in_vain() -> None:
    play = stuck(minReplicas=1)
    rival(play, OLDER)
    play.step(3600)
    assert (play.plan.claim, play.deleted) == (None, [])


def test_the_pauses_grow_until_the_gang_is_placed() -> None:
    play = stuck()
    rival(play, OLDER)
    pauses = []
    for incarnation in (1, 2, 3):
        play.change(f"gpt-train-0-{incarnation}", node="node-1")
        play.change(f"gpt-train-1-{incarnation}", unschedulable="no node")
        play.step()
        play.step(15)
        play.pods = [pod for pod in play.pods if pod.finished]
        plan = play.settle()
        assert plan.requeue_after is not None
        pauses.append(plan.requeue_after)
        play.step(plan.requeue_after)
    assert pauses[0] < pauses[1] < pauses[2]
    for index in (0, 1):
        play.change(f"gpt-train-{index}-4", node=f"node-{index}")
    play.settle()
    assert play.status.given_way == 0


def test_the_oldest_never_gives_way() -> None:
    play = stuck()
    rival(play, Claim(START + timedelta(seconds=1), "younger"))
    play.step(1000)
    assert play.deleted == []


def test_a_gang_that_has_given_way_for_weeks_still_does() -> None:
    play = stuck()
    play.status = play.status.model_copy(update={"given_way": 5000})
    rival(play, OLDER)
    play.step(15)
    assert play.status.given_way == 5001
    assert play.plan.requeue_after is not None
    assert play.plan.requeue_after <= 600


@pytest.mark.parametrize("scheduler", [None, "volcano"])
def test_a_gang_that_holds_a_part_of_a_quota_gives_way_to_an_older_one_of_its_namespace(scheduler: str | None) -> None:
    play = refused_a_pod(template={} if scheduler is None else {"schedulerName": scheduler})
    assert play.plan.claim == Claim(START, "job-uid", "research")
    rival(play, OLDER)
    again_without_it(play, 60)
    assert play.deleted == [], "the older one lacks nodes"
    rival(play, OLDER._replace(quota="research"))
    again_without_it(play)
    assert play.deleted == ["gpt-train-0-1"]
    play.refuse(None)
    play.step()
    assert "nodes or their quota to an older job" in play.status.message
    assert play.status.restarts.total == 0


def too_small(play: Play, limit: str = "requests.nvidia.com/gpu=8") -> None:
    """The second worker is refused, by a quota that never has room for both."""
    amounts = f"requested: requests.nvidia.com/gpu=8, used: requests.nvidia.com/gpu=8, limited: {limit}"
    said = f'pods "gpt-train-1-1" is forbidden: exceeded quota: team, {amounts}'
    play.refuse(refused("Pod", "gpt-train-1-1", Forbidden(403, "Forbidden", said)))
    play.pods = [pod for pod in play.pods if not pod.name.startswith("gpt-train-1")]
    again_without_it(play)


def test_a_gang_that_never_fits_into_its_quota_says_so_and_lets_go_of_its_part() -> None:
    play = Play(spec=spec(workers={"replicas": 2}))
    play.to_workers()
    too_small(play)
    assert play.status.message == (
        "Quota team is too small: 2 pods must run together and need requests.nvidia.com/gpu=8 each, of which it allows "
        "8 in all; ask for less, or have the quota raised."
    )
    assert (play.status.phase, play.condition("Stalled")) == ("Queued", "True")
    again_without_it(play, 14)
    assert play.deleted == []
    again_without_it(play, 1)
    assert play.deleted == ["gpt-train-0-1"], "others may need it, and have nothing yet that they could claim"
    assert play.plan.claim is None
    said, events = play.status.message, len(play.events)
    play.refuse(None)  # what is left of that decision is done
    play.vanish("gpt-train-0-1")
    for _ in range(3):
        plan = play.settle()
        assert plan.requeue_after is not None
        play.step(plan.requeue_after)
        too_small(play)
        again_without_it(play, 15)
        play.refuse(None)
        play.pods = [pod for pod in play.pods if pod.finished]
    assert plan.requeue_after >= 40, "ever later"
    assert {status.message for status in play.statuses[-4:]} == {said}
    assert (len(play.events), play.status.history) == (events, ())
    plan = play.settle()
    assert plan.requeue_after is not None
    play.step(plan.requeue_after)
    play.settle()
    assert (play.status.phase, play.condition("Stalled")) == ("Starting", "False"), "the quota was raised"


def test_of_an_elastic_job_the_least_number_must_fit_into_the_quota() -> None:
    for least, reason in ((1, "QuotaExceeded"), (2, "QuotaTooSmall")):
        play = Play(spec=spec(workers={"replicas": 2, "minReplicas": least}))
        play.to_workers()
        too_small(play)
        assert {condition.reason for condition in play.status.conditions} == {reason}


@pytest.mark.parametrize("limit", ["requests.nvidia.com/gpu=16", "requests.nvidia.com/gpu=1Pi", "pods=1"])
def test_a_quota_that_is_large_enough_or_in_unknown_amounts_is_waited_for(limit: str) -> None:
    play = Play(spec=spec(workers={"replicas": 2}))
    play.to_workers()
    too_small(play, limit)
    again_without_it(play, 60)
    assert play.deleted == []
    assert {condition.reason for condition in play.status.conditions} == {"QuotaExceeded"}


def test_amounts_of_a_quota_are_compared_as_kubernetes_counts_them() -> None:
    def judge(requested: str, limited: str, pods: int) -> str:
        amounts = f"requested: {requested}, used: {requested}, limited: {limited}"
        said = f"Pod gpt-train-0-1 cannot be created: exceeded quota: a.b, {amounts}; ask for less."
        judged_so = judged(Obstacle("QuotaExceeded", said, room=True), pods)
        assert judged_so is not None
        return judged_so.reason

    assert judge("requests.cpu=500m,requests.memory=64Gi", "requests.cpu=2,requests.memory=256Gi", 4) == "QuotaExceeded"
    assert judge("requests.cpu=500m,requests.memory=64Gi", "requests.cpu=2,requests.memory=256Gi", 5) == "QuotaTooSmall"
    assert judge("pods=1", "pods=0", 1) == "QuotaTooSmall"
    service = Obstacle(
        "QuotaExceeded",
        "Service gpt-tj cannot be created: exceeded quota: q, requested: services=1, "
        "used: services=1, limited: services=1; it waits.",
        room=True,
    )
    assert judged(service, 4) is service


def test_pods_that_are_to_prepare_data_give_way_before_they_have_begun() -> None:
    play = Play()
    play.settle()
    play.end("gpt-prepare-0-1", 0, {"outcome": "PrepareData"})
    play.step(1)
    play.change("gpt-prepare-0-2", node="node-1", phase="Running", ready=True)
    play.change("gpt-prepare-1-1", unschedulable="0/3 nodes are available")
    play.settle()
    assert play.plan.claim == Claim(START, "job-uid")
    play.report("gpt-prepare-0-2", state="Preparing")
    assert play.step(60).claim is None, "they have begun without it"
    play.report("gpt-prepare-0-2", state="Starting")
    rival(play, OLDER)
    play.step(1)
    assert play.deleted == ["gpt-prepare-0-2", "gpt-prepare-1-1"]


def test_a_gang_with_its_quota_or_with_none_of_it_stands_in_nobodys_way() -> None:
    play = refused_a_pod()
    play.pods = [pod for pod in play.pods if pod.role == "prepare"]
    rival(play, OLDER._replace(quota="research"))
    assert (play.step(60).claim, play.deleted) == (None, [])
    assert (play.step(60).claim, play.deleted) == (None, []), "both are there now"


def test_an_elastic_job_that_can_run_does_not_give_up_its_quota() -> None:
    play = refused_a_pod(minReplicas=1)
    rival(play, OLDER._replace(quota="research"))
    again_without_it(play, 3600)
    assert (play.plan.claim, play.deleted) == (None, [])


def test_other_schedulers_and_queues_see_to_it_themselves() -> None:
    assert stuck(template={"schedulerName": "volcano"}).plan.claim is None
    play = Play(spec=spec(runPolicy={"queueName": "team"}))
    play.to_workers()
    play.change("gpt-train-0-1", node="node-1")
    play.change("gpt-train-1-1", unschedulable="0/3 nodes are available")
    play.settle()
    assert play.plan.claim is None


class Cluster:
    """Nodes that take one pod each, and a scheduler that places pods one by one, in any order."""

    def __init__(self, nodes: int, gangs: list[int], draw: random.Random) -> None:
        self.free = nodes
        self.draw = draw
        self.jobs = [
            Play(
                spec=spec(workers={"replicas": size}, training={"steps": 9}),
                uid=f"job-{i}",
                created_at=START + timedelta(seconds=i),
            )
            for i, size in enumerate(gangs)
        ]
        for job in self.jobs:
            job.to_workers()
            self.admit(job, set())

    def round(self, seconds: float) -> None:
        for job in self.draw.sample(self.jobs, len(self.jobs)):
            rival(job, *(other.plan.claim for other in self.jobs if other is not job and other.plan.claim is not None))
            before = {pod.name for pod in job.pods}
            job.step(seconds)
            self.admit(job, before)
            for pod in [pod for pod in job.pods if pod.deleting]:
                self.free += pod.node is not None
                job.vanish(pod.name)
        self.place()
        for job in list(self.jobs):
            workers = [pod for pod in job.pods if pod.role == "train"]
            if len(workers) == job.spec["workers"]["replicas"] and all(pod.node for pod in workers):
                self.free += len(workers)  # it has trained
                self.jobs.remove(job)

    def admit(self, job: Play, before: set[str]) -> None:
        """The API server takes each pod."""

    def place(self) -> None:
        """Pods get nodes."""
        waiting = [(job, p) for job in self.jobs for p in job.pods if p.role == "train" and p.node is None]
        for job, pod in self.draw.sample(waiting, len(waiting)):
            if self.free:
                self.free -= 1
                job.change(pod.name, node="node", unschedulable=None)
            else:
                job.change(pod.name, unschedulable="no node")


class Quota(Cluster):
    """Nodes for all, and a quota that has places for so many pods; of what is free a job that asks gets a part."""

    def admit(self, job: Play, before: set[str]) -> None:
        new = [pod.name for pod in job.pods if pod.role == "train" and pod.name not in before]
        most = min(self.free, len(new))
        taken = self.draw.randint(min(1, most), most)
        refused = set(new[taken:])
        self.free -= taken
        job.pods = [pod for pod in job.pods if pod.name not in refused]
        job.refuse(QUOTA if refused else None)

    def place(self) -> None:
        for job in self.jobs:
            for pod in job.pods:
                job.change(pod.name, node="node")


@settings(max_examples=60)
@given(data=st.data(), nodes=st.integers(2, 5), draw=st.randoms(use_true_random=False))
@pytest.mark.parametrize("kind", [Cluster, Quota])
def test_every_gang_that_fits_into_the_cluster_or_its_quota_is_placed_at_last(
    kind: type[Cluster], data: st.DataObject, nodes: int, draw: random.Random
) -> None:
    gangs = data.draw(st.lists(st.integers(1, nodes), min_size=2, max_size=4))
    cluster = kind(nodes, gangs, draw)
    for _ in range(200):
        cluster.round(10)
        if not cluster.jobs:
            return
    raise AssertionError(f"gangs of {gangs} on {nodes} nodes: {len(cluster.jobs)} wait for ever")
