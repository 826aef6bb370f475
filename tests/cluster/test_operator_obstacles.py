"""The operator on a real API server: what it says while pods cannot be created, placed or started."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support.chart import RELEASE, allowed, install_account
from support.disturb import audited, edit_status, place
from support.operator_process import Operator
from support.played import Object, PlayedJob
from support.played_nodes import give_gpus, played_nodes
from support.runs import wait_until

if TYPE_CHECKING:
    from trainingjob_local.cluster import LocalCluster

MakeJob = Callable[..., PlayedJob]
LONG_AGO = "2026-01-01T00:00:00Z"
NAMED: Object = {"name": "EXTRA", "valueFrom": {"configMapKeyRef": {"name": "later", "key": "key"}}}


def real(cluster: LocalCluster, secret: str = "s3-credentials", **template: object) -> Object:
    """Parts of a spec whose pods the cluster's scheduler places and its nodes run."""
    storage = {"endpointUrl": cluster.s3.endpoint, "credentialsSecret": secret}
    return {"storage": storage, "workers": {"replicas": 1, "template": template}}


def holding(status: Object) -> set[str]:
    """The conditions that are true, of those that tools look at."""
    kinds = ("Ready", "Reconciling", "Stalled")
    return {c["type"] for c in status.get("conditions", ()) if c["type"] in kinds and c["status"] == "True"}


def blocked(job: PlayedJob, reason: str, words: str) -> Object:
    """The status, once an obstacle with this reason and these words is told; one event tells of it, too."""

    def told(status: Object) -> bool:
        reasons = {condition["reason"] for condition in status.get("conditions", ())}
        return reasons == {reason} and words in status["message"]

    status = job.wait(f"{reason}: {words}", told)
    wait_until(f"the event {reason}", lambda: job.events(reason))
    assert [event["count"] for event in job.events(reason)] == [1]
    return status


def check_runs(job: PlayedJob) -> None:
    """The first pod, which nobody plays, has started: it finds no data here, which is an error of the user's."""
    status = job.wait_phase("Failed")
    assert status["message"].startswith("UserError: ")


def test_an_exhausted_quota_queues_the_job_until_it_is_raised(operator: Operator, played: MakeJob) -> None:
    job = played()
    other: Object = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "other", "namespace": job.namespace}}
    spec = {"schedulerName": "played-by-the-test", "containers": [{"name": "c", "image": "i"}]}
    job.cluster.apply({**other, "spec": spec})
    limit_pods(job, 1)
    job.apply()
    status = blocked(job, "QuotaExceeded", "exceeded quota: team, requested: pods=1, used: pods=1, limited: pods=1")
    assert status["phase"] == "Queued"
    assert status["message"].startswith("Pod gpt-prepare-0-1 cannot be created: ")
    assert holding(status) == {"Reconciling"}
    before = job.get()["metadata"]["resourceVersion"]
    operator.restart()
    refusals = operator.log.read_text().count("try again in")
    wait_until("it is tried again", lambda: operator.log.read_text().count("try again in") > refusals)
    assert operator.value("trainingjob_operator_reconcile_errors_total", kind="retry") >= 1
    assert job.get()["metadata"]["resourceVersion"] == before, "a restart is no news"
    limit_pods(job, 10)
    job.wait("the pod is created", lambda status: job.uids())
    job.run("prepare-0-1")
    assert holding(job.wait_phase("Preparing")) == {"Reconciling"}


def test_a_quota_that_never_has_room_stalls_the_job_until_it_is_raised(operator: Operator, played: MakeJob) -> None:
    job = played()
    limit_pods(job, 0)
    job.apply()
    status = blocked(
        job, "QuotaTooSmall", "Quota team is too small: the pod needs pods=1, of which it allows 0 in all;"
    )
    assert (status["phase"], holding(status)) == ("Queued", {"Stalled"})
    limit_pods(job, 10)
    job.wait("the pod is created", lambda status: job.uids())
    assert holding(job.wait_phase("Pending")) == {"Reconciling"}


def limit_pods(job: PlayedJob, number: int) -> None:
    """The quota of the job's namespace allows so many pods, and counts."""
    quota: Object = {"apiVersion": "v1", "kind": "ResourceQuota", "spec": {"hard": {"pods": str(number)}}}
    job.cluster.apply({**quota, "metadata": {"name": "team", "namespace": job.namespace}})
    counts = ("-n", job.namespace, "get", "quota", "team", "-o", "jsonpath={.status.hard.pods}")
    wait_until("the quota counts", lambda: job.cluster.kubectl(*counts) == str(number))


def test_a_missing_service_account_is_named_and_waited_for(operator: Operator, played: MakeJob) -> None:
    job = played(storage={"serviceAccountName": "trainer"})
    job.apply()
    status = blocked(job, "MissingReference", 'serviceaccount "trainer" not found')
    assert status["phase"] == "Starting"
    assert "create the ServiceAccount" in status["message"]
    assert holding(status) == {"Reconciling"}
    job.cluster.kubectl("-n", job.namespace, "create", "serviceaccount", "trainer")
    job.wait("the pod is created", lambda status: job.uids())
    job.run("prepare-0-1")
    job.wait_phase("Preparing")


def test_a_pod_that_admission_refuses_stalls_the_job_until_the_policy_allows_it(
    operator: Operator, played: MakeJob
) -> None:
    host = {"volumes": [{"name": "data", "hostPath": {"path": "/data"}}], "schedulerName": "played-by-the-test"}
    job = played(workers={"replicas": 1, "template": host})
    label = "pod-security.kubernetes.io/enforce"
    job.cluster.kubectl("label", "namespace", job.namespace, f"{label}=baseline")
    wait_until(
        "the policy is obeyed", lambda: "violates PodSecurity" in refusal_of_a_pod(job.cluster, job.namespace, **host)
    )
    job.apply()
    status = blocked(job, "CreateRefused", 'violates PodSecurity "baseline:latest": hostPath volumes (volume "data")')
    assert "correct spec.workers" in status["message"]
    assert holding(status) == {"Stalled"}
    job.cluster.kubectl("label", "namespace", job.namespace, f"{label}-")
    job.wait("the pod is created", lambda status: job.uids())
    assert holding(job.wait_phase("Pending")) == {"Reconciling"}


def test_a_right_that_the_operator_has_lost_is_named_with_where_it_is_found(
    cluster: LocalCluster, namespace: str, played: MakeJob, tmp_path: Path
) -> None:
    account = install_account(cluster, namespace, {"watchNamespaces": [namespace]})
    operator = Operator(account, tmp_path / "operator.log", "--namespace", namespace)
    operator.start()
    try:
        role = ("-n", namespace, "role", RELEASE)
        rules = json.loads(cluster.kubectl("get", *role, "-o", "json"))["rules"]
        less = [rule | {"verbs": ["get", "list", "watch"]} if rule["resources"] == ["pods"] else rule for rule in rules]
        cluster.kubectl("patch", *role, "--type=merge", "-p", json.dumps({"rules": less}))
        wait_until("the right is lost", lambda: not allowed(cluster, account, "create", "pods", namespace))
        job = played()
        job.apply()
        status = blocked(job, "CreateRefused", 'cannot create resource "pods"')
        assert "the role in its Helm chart" in status["message"]
        assert "spec.workers" not in status["message"]
        cluster.kubectl("patch", *role, "--type=merge", "-p", json.dumps({"rules": rules}))
        job.wait("the pod is created", lambda status: job.uids())
    finally:
        operator.stop()


def test_an_admission_webhook_that_does_not_answer_is_said_and_waited_for(
    operator: Operator, played: MakeJob, dead_webhook: Callable[[], None]
) -> None:
    job = played()
    job.apply()
    status = blocked(job, "PodNotStarted", 'failed calling webhook "dead.trainingjob.io"')
    assert (status["phase"], holding(status)) == ("Starting", {"Reconciling"})
    dead_webhook()
    job.wait("the pod is created", lambda status: job.uids())
    job.run("prepare-0-1")
    job.wait_phase("Preparing")


@pytest.fixture
def dead_webhook(cluster: LocalCluster, namespace: str) -> Iterator[Callable[[], None]]:
    """Who must be asked about new pods of the namespace, and does not answer; call it to do without."""
    hook = {
        "name": "dead.trainingjob.io",
        "admissionReviewVersions": ["v1"],
        "sideEffects": "None",
        "timeoutSeconds": 2,
        "clientConfig": {"url": "https://127.0.0.1:1/"},
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}},
        "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"], "operations": ["CREATE"]}],
    }
    kind, name = "ValidatingWebhookConfiguration", f"dead-{namespace}"
    meta = {"name": name}
    api = "admissionregistration.k8s.io/v1"
    cluster.apply({"apiVersion": api, "kind": kind, "metadata": meta, "webhooks": [hook]})

    def remove() -> None:
        cluster.kubectl("delete", kind, name, "--ignore-not-found")

    wait_until("the API server asks", lambda: "failed calling webhook" in refusal_of_a_pod(cluster, namespace))
    yield remove
    remove()


def refusal_of_a_pod(cluster: LocalCluster, namespace: str, **spec: object) -> str:
    """What the API server says when it would not create a pod; nothing if it would."""
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "probe", "namespace": namespace}}
    probe = json.dumps({**pod, "spec": {"containers": [{"name": "c", "image": "i"}], **spec}})
    try:
        cluster.kubectl("create", "--dry-run=server", "-f", "-", stdin=probe)
    except RuntimeError as refused:
        return str(refused)
    return ""


@pytest.mark.parametrize("missing", ["secret", "configmap"])
def test_a_missing_secret_or_config_map_is_named_and_waited_for(
    cluster: LocalCluster, operator: Operator, played: MakeJob, missing: str
) -> None:
    job = played(**(real(cluster, secret="later") if missing == "secret" else real(cluster, env=[NAMED])))
    words = f'{missing} "later" not found'
    job.apply()
    status = blocked(job, "MissingReference", words)
    assert status["message"] == f"Pod gpt-prepare-0-1 cannot start: {words}; create what is missing."
    assert holding(status) == {"Reconciling"}
    keys = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "key")
    kind = ("secret", "generic") if missing == "secret" else ("configmap",)
    values = [f"--from-literal={key}=value" for key in keys]
    job.cluster.kubectl("-n", job.namespace, "create", *kind, "later", *values)
    check_runs(job)


def test_a_class_of_pods_that_does_not_exist_is_named_and_waited_for(
    operator: Operator, played: MakeJob, new_classes: str
) -> None:
    job = played(workers={"template": {"priorityClassName": new_classes, "runtimeClassName": new_classes}})
    job.apply()
    status = blocked(job, "MissingReference", f"no PriorityClass with name {new_classes} was found; create it; or")
    assert (status["phase"], holding(status)) == ("Starting", {"Reconciling"})
    priority = {"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "value": 1}
    job.cluster.apply({**priority, "metadata": {"name": new_classes}})
    words = f'RuntimeClass "{new_classes}" not found; create it; or'
    job.wait(words, lambda status: words in status["message"])
    runtime = {"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "handler": "h"}
    job.cluster.apply({**runtime, "metadata": {"name": new_classes}})
    job.wait("the pod is created", lambda status: job.uids())


@pytest.fixture
def new_classes(cluster: LocalCluster, namespace: str) -> Iterator[str]:
    """A name that no class has; a PriorityClass and a RuntimeClass of this name are gone after the test."""
    yield namespace
    cluster.kubectl("delete", "priorityclass,runtimeclass", namespace, "--ignore-not-found")


def test_a_volume_claim_that_is_missing_or_not_bound_is_named_and_waited_for(
    cluster: LocalCluster, operator: Operator, played: MakeJob
) -> None:
    volume = {"name": "extra", "persistentVolumeClaim": {"claimName": "later"}}
    job = played(**real(cluster, volumes=[volume]))
    job.apply()
    status = blocked(job, "MissingReference", 'persistentvolumeclaim "later" not found; create what is missing.')
    assert (status["phase"], holding(status)) == ("Starting", {"Reconciling"})
    size = {"accessModes": ["ReadOnlyMany"], "storageClassName": ""}
    claim = {**size, "resources": {"requests": {"storage": "1Gi"}}}
    meta = {"name": "later", "namespace": job.namespace}
    core = {"apiVersion": "v1"}
    cluster.apply({**core, "kind": "PersistentVolumeClaim", "metadata": meta, "spec": claim})
    status = blocked(job, "Unschedulable", "pod has unbound immediate PersistentVolumeClaims; look at the claim's")
    assert status["phase"] == "Queued"
    held = {**size, "capacity": {"storage": "1Gi"}, "claimRef": meta, "hostPath": {"path": "/"}}
    name = job.namespace  # of no namespace, so that it needs a name of its own
    cluster.apply({**core, "kind": "PersistentVolume", "metadata": {"name": name}, "spec": held})
    wait_until("the pod has a node", lambda: any(node_of(job, pod) for pod in ("prepare-0-1", "prepare-0-2")))
    cluster.kubectl("delete", "pv", name, "--wait=false")


def test_an_image_that_cannot_be_pulled_is_said_once(
    cluster: LocalCluster, operator: Operator, played: MakeJob
) -> None:
    job = played(**real(cluster), image="missing.invalid/trainer:1")
    job.apply()
    status = blocked(job, "ImagePull", 'failed to pull and unpack image "missing.invalid/trainer:1": no such host')
    assert "check spec.image and the pull secrets" in status["message"]
    job.wait_pods("prepare-0-1")
    wait_until("the kubelet backs off", lambda: waiting(job) == "ImagePullBackOff")
    wait_until("the kubelet tries again", lambda: pulls(job) > 1)
    assert job.status()["message"] == status["message"]
    blocked(job, "ImagePull", "no such host")


def test_an_image_that_can_be_pulled_at_last_is_no_longer_spoken_of(operator: Operator, played: MakeJob) -> None:
    job = played()
    job.apply()
    job.wait_pods("prepare-0-1")
    place(job, "prepare-0-1")
    job.wait_for_image("prepare-0-1", "the registry does not answer")
    status = blocked(job, "ImagePull", "the registry does not answer")
    assert (status["phase"], holding(status)) == ("Starting", {"Reconciling"})
    job.run("prepare-0-1")
    status = job.wait_phase("Preparing")
    assert status["message"] == "Checking configuration, credentials and data."
    assert "ImagePull" not in {condition["reason"] for condition in status["conditions"]}


def test_what_only_events_tell_costs_one_list(cluster: LocalCluster, operator: Operator, played: MakeJob) -> None:
    job = played(**real(cluster, volumes=[{"name": "extra", "configMap": {"name": "later"}}]))
    job.apply()
    blocked(job, "MissingReference", 'configmap "later" not found')
    assert wait_until("the list is in the log", lambda: lists_of_events(job)) == 1


@pytest.fixture
def nodes(cluster: LocalCluster, namespace: str) -> Iterator[tuple[str, str]]:
    """Two nodes with 8 GPUs each, and no others. Their names are new: pods of the test before may still hold GPUs."""
    names = f"{namespace}-a", f"{namespace}-b"
    with played_nodes(cluster, *names):
        yield names


def test_workers_that_no_node_can_take_are_queued_until_one_can(
    operator: Operator, played: MakeJob, nodes: tuple[str, str]
) -> None:
    job = played(workers={"replicas": 2, "resources": {"gpus": 16}})
    job.apply()
    job.wait_pods("prepare-0-1")
    job.run("prepare-0-1")
    job.end("prepare-0-1", outcome="Train")
    status = blocked(job, "Unschedulable", "2 Insufficient nvidia.com/gpu")
    assert status["phase"] == "Queued"
    assert "preemption" not in status["message"]
    since = datetime.fromisoformat(status["phaseTime"])
    wait_until("it has waited for a second", lambda: datetime.now(UTC) - since >= timedelta(seconds=1))
    give_gpus(job.cluster, nodes[0], 16)
    job.wait("one has a place", lambda status: status["phase"] == "Starting" and "no node" in status["message"])
    give_gpus(job.cluster, nodes[1], 16)
    job.wait("both have a place", lambda status: "0 of 2 worker pods are ready" in status["message"])
    job.run("train-0-1", "train-1-1")
    status = job.wait("both are ready", lambda status: status["workers"]["ready"] == 2)
    assert (status["phase"], status["history"]) == ("Starting", [])
    assert status["waited"]["Queued"] > 0
    operator.wait_value(32, "trainingjob_gpus", namespace=job.namespace)
    operator.wait_value(status["waited"]["Queued"], "trainingjob_queue_wait_seconds", namespace=job.namespace)
    found = {worker: node_of(job, f"train-{worker}-1") for worker in ("0", "1")}
    for index, node in found.items():
        labels = {"namespace": job.namespace, "pod": f"gpt-train-{index}-1", "index": index, "role": "train"}
        operator.wait_value(1, "trainingjob_pod_info", node=node, **labels)


def test_a_run_that_does_not_start_in_time_fails_with_what_it_waited_for(operator: Operator, played: MakeJob) -> None:
    job = played(runPolicy={"startDeadlineSeconds": 3600}, workers={"replicas": 1})
    job.manifest["spec"]["data"]["prepare"] = {"cpu": "1000"}
    job.apply()
    blocked(job, "Unschedulable", "2 Insufficient cpu")
    operator.kill()
    edit_status(job, startTime=LONG_AGO)
    operator.start()
    status = job.wait_phase("Failed")
    words = "StartDeadlineExceeded: the workers did not all run after 3600 seconds (runPolicy.startDeadlineSeconds): "
    assert status["message"].startswith(f"{words}Pod gpt-prepare-0-1 finds no node: 0/2 nodes are available: 2 ")
    assert [incident["class"] for incident in status["history"]] == ["StartDeadlineExceeded"]
    assert holding(status) == {"Stalled"}
    wait_until("no pod is left", lambda: not job.uids())


@pytest.mark.parametrize("another_place", [True, False])
def test_a_node_that_kills_twice_is_avoided_while_there_is_another(
    operator: Operator, played: MakeJob, nodes: tuple[str, str], another_place: bool
) -> None:
    job = played(workers={"replicas": 1, "resources": {"gpus": 8}})
    give_gpus(job.cluster, nodes[1], 0)
    job.apply()
    job.wait_pods("prepare-0-1")
    job.run("prepare-0-1")
    job.end("prepare-0-1", outcome="Train")
    for worker in ("train-0-1", "train-0-2"):
        wait_until("the worker is placed", lambda worker=worker: node_of(job, worker) == nodes[0])
        job.run(worker)
        if worker == "train-0-2" and another_place:
            give_gpus(job.cluster, nodes[1], 8)
        job.end(worker, 137)
    last = "train-0-3" if another_place else "train-0-4"
    job.wait_pods(last)
    wait_until("the worker is placed", lambda: node_of(job, last))
    assert node_of(job, last) == nodes[another_place]
    status = job.status()
    assert status["history"][-1]["cause"].endswith(f"; later pods avoid node {nodes[0]}")
    assert status["resolved"]["avoidedNodes"] == [{"name": nodes[0], "required": another_place}]
    kinds = set(job.pods()[f"gpt-{last}"]["spec"]["affinity"]["nodeAffinity"])
    assert kinds == {f"{'required' if another_place else 'preferred'}DuringSchedulingIgnoredDuringExecution"}
    wait_until("it is told", lambda: len(job.events("NodeUsedAgain")) == (not another_place))


def node_of(job: PlayedJob, name: str) -> str | None:
    """The node that the scheduler has bound this pod to."""
    pod = job.pods().get(f"{job.name}-{name}")
    return pod["spec"].get("nodeName") if pod is not None else None


def waiting(job: PlayedJob) -> str:
    statuses = job.pods()["gpt-prepare-0-1"]["status"].get("containerStatuses")
    return str(statuses[0]["state"].get("waiting", {}).get("reason")) if statuses else ""


def pulls(job: PlayedJob) -> int:
    """How often the kubelet has tried to pull the image of the first pod, as its events say."""
    listed = job.core.list_namespaced_event(job.namespace, _preload_content=False)
    events = [event for event in json.loads(listed.data)["items"] if event["message"].startswith("Failed to pull")]
    return sum(event["count"] for event in events)


def lists_of_events(job: PlayedJob) -> int:
    """How often the operator has listed the namespace's events, as the API server's audit log says."""
    return sum(
        1
        for entry in audited(job.cluster, "trainingjob-operator")
        if (entry["verb"], entry["userAgent"]) == ("list", "trainingjob-operator")
        and entry["objectRef"]["resource"] == "events"
        and entry["objectRef"].get("namespace") == job.namespace
    )
