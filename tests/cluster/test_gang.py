"""Gangs on the real scheduler: with PodGroups, and without."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from support.idle_nodes import IdleNodes, check, finish, idle_job, placed, wait_placed, workers
from support.operator_process import Operator
from support.played import Object, PlayedJob
from support.runs import wait_until

if TYPE_CHECKING:
    from trainingjob_local.cluster import LocalCluster

MakeGang = Callable[..., PlayedJob]


@pytest.fixture
def nodes(cluster: LocalCluster, namespace: str) -> Iterator[IdleNodes]:
    with IdleNodes(cluster, namespace) as nodes:
        yield nodes


@pytest.fixture
def gang(cluster: LocalCluster, namespace: str, nodes: IdleNodes) -> MakeGang:
    def make(name: str, replicas: int = 3, **template: Any) -> PlayedJob:
        return idle_job(cluster, nodes, namespace, name, template, replicas)

    return make


@pytest.fixture(scope="module")
def _gang_scheduling(cluster: LocalCluster) -> Iterator[None]:
    cluster.control_plane.restart(gang_scheduling=True)
    yield
    if cluster.control_plane.gang_scheduling:
        cluster.control_plane.restart(gang_scheduling=False)


def suspend(job: PlayedJob) -> None:
    job.patch({"runPolicy": {"suspend": True}})
    job.wait_phase("Suspended")


def lose_a_worker(job: PlayedJob) -> None:
    """One of three pods that run is deleted, and its successor placed."""
    job.run("train-0-1", "train-1-1", "train-2-1")
    job.wait("the pods' uids are known", lambda status: all("uid" in member for member in status["pods"]))
    job.remove_pod("train-1-1")
    job.wait_pods("train-1-2")
    wait_placed(job, 3)


def pod_group(job: PlayedJob) -> Object | None:
    text = job.cluster.kubectl(
        "-n", job.namespace, "get", "podgroups.scheduling.k8s.io", f"{job.name}-tj", "--ignore-not-found", "-o", "json"
    )
    return json.loads(text) if text else None


def why_it_waits(job: PlayedJob) -> str:
    """What the PodGroup of a job that is not placed says now."""
    found = pod_group(job)
    assert found is not None
    (condition,) = found["status"]["conditions"]
    assert condition["type"] == "PodGroupInitiallyScheduled"
    said: str = condition["message"]
    return said.partition(", pod group preemption")[0]


def test_without_the_feature_gate_the_workers_have_no_pod_group(
    operator: Operator, gang: MakeGang, nodes: IdleNodes
) -> None:
    nodes.add(3)
    job = gang("plain")
    job.apply()
    check(job)
    wait_placed(job, 3)
    assert all("schedulingGroup" not in pod["spec"] for pod in workers(job).values())
    assert "podGroup" not in job.status()["resolved"]


def test_of_two_gangs_that_hold_each_others_nodes_the_younger_gives_way_and_comes_back(
    operator: Operator, gang: MakeGang, nodes: IdleNodes
) -> None:
    """Each wants six of ten nodes and holds five; without gang scheduling neither would ever get its sixth."""
    nodes.add(5)
    older, younger = gang("older", 6), gang("younger", 6, tolerations=[{"key": "reserved", "operator": "Exists"}])
    older.apply()
    check(older)
    wait_placed(older, 5)
    created = datetime.fromisoformat(older.get()["metadata"]["creationTimestamp"])
    wait_until("it is older by a second", lambda: datetime.now(UTC) - created > timedelta(seconds=1))
    reserved = nodes.add(5, taint="reserved")
    younger.apply()
    check(younger)
    wait_placed(younger, 5)
    nodes.untaint(reserved)
    # It may be Queued before, when the scheduler's verdict on its sixth pod is known before the bindings of the others.
    status = younger.wait("it gives way", lambda status: "older job" in status["message"])
    assert status["phase"] == "Queued"
    assert status["restarts"]["total"] == 0
    wait_until("one event tells of it", lambda: len(younger.events("GaveWay")) == 1)
    wait_placed(older, 6)
    finish(older)
    wait_placed(younger, 6)
    finish(younger)


# From here on the API server serves PodGroups.


def test_the_operator_notices_that_the_cluster_schedules_gangs_now(
    operator: Operator, gang: MakeGang, request: pytest.FixtureRequest
) -> None:
    job = gang("later")
    job.manifest["spec"]["runPolicy"] = {"suspend": True}
    job.apply()
    job.wait_phase("Suspended")
    request.getfixturevalue("_gang_scheduling")
    wait_until("the operator says so", lambda: "PodGroups are served" in operator.log.read_text())
    job.patch({"runPolicy": {"suspend": False}})
    status = job.wait("it began", lambda status: "resolved" in status)
    assert status["resolved"]["podGroup"] == "later-tj"


@pytest.mark.usefixtures("_gang_scheduling")
def test_two_gangs_that_do_not_fit_together_are_placed_one_after_the_other(
    operator: Operator, gang: MakeGang, nodes: IdleNodes
) -> None:
    one, other = gang("one", 6), gang("other", 6)
    one.apply()
    other.apply()
    check(one, other)
    wait_until("all workers wait", lambda: len(workers(one)) == len(workers(other)) == 6)
    nodes.add(10)
    wait_until("one gang is placed", lambda: 6 in (placed(one), placed(other)))
    first, second = (one, other) if placed(one) == 6 else (other, one)
    second.wait_phase("Queued")
    second.wait("it says what the gang lacks", lambda status: "minCount (6) cannot be satisfied" in status["message"])
    second.wait("the PodGroup's own words", lambda status: why_it_waits(second) in status["message"])
    assert placed(second) == 0
    finish(first)
    wait_placed(second, 6)
    found = pod_group(second)
    assert found is not None
    assert found["spec"]["schedulingPolicy"]["gang"]["minCount"] == 6
    names = {pod["spec"]["schedulingGroup"]["podGroupName"] for pod in workers(second).values()}
    assert names == {f"{second.name}-tj"}


@pytest.mark.usefixtures("_gang_scheduling")
def test_a_replacement_joins_its_gang_which_goes_with_its_job(
    operator: Operator, gang: MakeGang, nodes: IdleNodes
) -> None:
    nodes.add(3)
    job = gang("hurt")
    job.apply()
    check(job)
    wait_placed(job, 3)
    lose_a_worker(job)
    operator.kill()
    # Kubernetes' finalizer on the group, and the pods' grace, must not wait for each other.
    job.cluster.kubectl("-n", job.namespace, "delete", "tj", "hurt", "--cascade=foreground")
    assert (pod_group(job), job.leftovers()) == (None, set())


@pytest.mark.usefixtures("_gang_scheduling")
def test_an_elastic_gang_begins_with_its_least_number_and_may_be_preempted_in_part(
    operator: Operator, gang: MakeGang, nodes: IdleNodes
) -> None:
    job = gang("elastic")
    job.manifest["spec"]["workers"]["minReplicas"] = 2
    job.apply()
    check(job)
    wait_until("all workers wait", lambda: len(workers(job)) == 3)
    found = pod_group(job)
    assert found is not None
    assert found["spec"]["schedulingPolicy"] == {"gang": {"minCount": 2}}
    assert found["spec"]["disruptionMode"] == {"single": {}}
    nodes.add(2)
    wait_placed(job, 2)


@pytest.mark.usefixtures("_gang_scheduling")
def test_the_pod_group_of_an_elastic_job_follows_its_least_number_and_stays_the_same_object(
    operator: Operator, gang: MakeGang, nodes: IdleNodes
) -> None:
    """`replicas` change while the job runs, and leave the group as it is; `minReplicas` while it is suspended."""
    nodes.add(4)
    job = gang("resized")
    job.manifest["spec"]["workers"]["minReplicas"] = 2
    job.apply()
    check(job)
    wait_placed(job, 3)
    assert "schedulingGroup" not in job.pods()["resized-prepare-0-1"]["spec"]
    made = pod_group(job)
    assert made is not None
    assert made["spec"]["schedulingPolicy"] == {"gang": {"minCount": 2}}
    job.patch({"workers": {"replicas": 4}})
    wait_placed(job, 4)
    assert {pod["spec"]["schedulingGroup"]["podGroupName"] for pod in workers(job).values()} == {"resized-tj"}
    grown = pod_group(job)
    assert grown is not None
    assert (grown["metadata"]["uid"], grown["spec"]) == (made["metadata"]["uid"], made["spec"])
    suspend(job)
    job.patch({"workers": {"minReplicas": 4}})
    job.patch({"runPolicy": {"suspend": False}})
    check(job, incarnation=2)
    wait_placed(job, 4)
    now = pod_group(job)
    assert now is not None
    assert now["metadata"]["uid"] == made["metadata"]["uid"]
    assert now["spec"] == {**made["spec"], "schedulingPolicy": {"gang": {"minCount": 4}}}


@pytest.mark.usefixtures("_gang_scheduling")
def test_a_pod_group_that_was_deleted_or_is_outdated_is_made_anew(
    operator: Operator, gang: MakeGang, nodes: IdleNodes
) -> None:
    nodes.add(3)
    job = gang("again")
    job.apply()
    check(job)
    wait_placed(job, 3)
    first = pod_group(job)
    suspend(job)
    job.cluster.kubectl("-n", job.namespace, "delete", "podgroups.scheduling.k8s.io", "again-tj")
    job.patch({"runPolicy": {"suspend": False}})
    check(job, incarnation=2)
    wait_placed(job, 3)
    second = pod_group(job)
    suspend(job)
    priority = {"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": "high"}, "value": 9}
    job.cluster.apply(priority)
    job.patch({"workers": {"template": {"priorityClassName": "high"}}})
    job.patch({"runPolicy": {"suspend": False}})
    check(job, incarnation=3)
    wait_placed(job, 3)
    third = pod_group(job)
    assert first is not None
    assert second is not None
    assert third is not None
    assert len({group["metadata"]["uid"] for group in (first, second, third)}) == 3
    assert third["spec"]["priority"] == 9


@pytest.mark.usefixtures("_gang_scheduling")
def test_a_pod_group_that_is_deleted_while_its_pods_wait_places_them_and_their_successors(
    operator: Operator, gang: MakeGang, nodes: IdleNodes
) -> None:
    """Kubernetes holds it by a finalizer until the last of its pods has gone."""
    job = gang("held")
    job.apply()
    check(job)
    wait_until("all workers wait", lambda: len(workers(job)) == 3)
    job.cluster.kubectl("-n", job.namespace, "delete", "podgroups.scheduling.k8s.io", "held-tj", "--wait=false")
    found = pod_group(job)
    assert found is not None
    assert "deletionTimestamp" in found["metadata"]
    nodes.add(3)
    wait_placed(job, 3)
    lose_a_worker(job)
    suspend(job)
    wait_until("it goes with its pods", lambda: pod_group(job) is None)
    job.patch({"runPolicy": {"suspend": False}})
    check(job, incarnation=2)
    wait_placed(job, 3)


@pytest.mark.usefixtures("_gang_scheduling")
def test_a_foreign_pod_group_is_explained_and_not_touched(
    cluster: LocalCluster, operator: Operator, gang: MakeGang, nodes: IdleNodes, namespace: str
) -> None:
    foreign = {
        "apiVersion": "scheduling.k8s.io/v1beta1",
        "kind": "PodGroup",
        "metadata": {"name": "taken-tj", "namespace": namespace},
        "spec": {"schedulingPolicy": {"basic": {}}},
    }
    cluster.apply(foreign)
    job = gang("taken")
    job.apply()
    check(job)
    status = job.wait("it is explained", lambda status: "PodGroup taken-tj exists" in status["message"])
    assert status["phase"] != "Failed"
    assert workers(job) == {}
    found = pod_group(job)
    assert found is not None
    assert found["spec"]["schedulingPolicy"] == {"basic": {}}
    assert "ownerReferences" not in found["metadata"]


@pytest.mark.usefixtures("_gang_scheduling")
def test_a_run_goes_on_when_gang_scheduling_is_turned_off_and_says_what_it_lacks(
    cluster: LocalCluster, operator: Operator, gang: MakeGang, nodes: IdleNodes
) -> None:
    nodes.add(3)
    job = gang("off")
    job.apply()
    check(job)
    wait_placed(job, 3)
    job.run(*workers(job))
    job.wait("the pods' uids are known", lambda status: all("uid" in member for member in status["pods"]))
    cluster.control_plane.restart(gang_scheduling=False)
    job.remove_pod("train-1-1")
    job.wait_pods("train-1-2")
    wait_placed(job, 3)
    conditions = job.wait("it says so", lambda status: len(status["conditions"]) > 7)["conditions"]
    (lack,) = [c for c in conditions if c["type"] == "GangSchedulingUnavailable"]
    assert lack["status"] == "True"
    assert "GenericWorkload" in lack["message"]
