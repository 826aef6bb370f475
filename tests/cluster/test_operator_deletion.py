"""A TrainingJob, its namespace or the chart is deleted: pods have their grace, nothing hangs, nothing comes back."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml
from support.chart import render
from support.disturb import place, terminating, writes
from support.operator_process import Operator
from support.played import PlayedJob
from support.runs import wait_until

if TYPE_CHECKING:
    from trainingjob_local.cluster import LocalCluster

MakeJob = Callable[..., PlayedJob]
CRD = "trainingjobs.trainingjob.io"
WORKERS = {"gpt-train-0-1", "gpt-train-1-1"}


@pytest.fixture(scope="module", autouse=True)
def collector_knows_the_kind(cluster: LocalCluster) -> None:
    """In a cluster that has just got the definition, Kubernetes' collector looks for new kinds every 30 s only."""
    meta = {"name": "collected", "namespace": "default"}
    spec = {"task": {"kind": "custom", "custom": {"command": ["true"]}}, "workers": {"replicas": 1}}
    api = "trainingjob.io/v1alpha1"
    cluster.apply({"apiVersion": api, "kind": "TrainingJob", "metadata": meta, "spec": spec})
    uid = cluster.kubectl("-n", "default", "get", "tj", "collected", "-o", "jsonpath={.metadata.uid}")
    owner = {"apiVersion": api, "kind": "TrainingJob", "name": "collected", "uid": uid}
    cluster.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {**meta, "ownerReferences": [owner]}})
    cluster.kubectl("-n", "default", "delete", "tj", "collected")
    left = ("-n", "default", "get", "configmap", "collected", "--ignore-not-found")
    wait_until("the collector takes what a deleted job owned", lambda: not cluster.kubectl(*left))


@contextmanager
def collector_heard(cluster: LocalCluster, job: PlayedJob) -> Iterator[None]:
    """Kubernetes' collector does what is waited for within: if it does not, its log is told."""
    try:
        yield
    except AssertionError as late:
        (manager,) = [part for part in cluster.control_plane.components if part.name == "kube-controller-manager"]
        said = [line for line in manager.log.read_text().splitlines() if "garbage" in line.lower()]
        raise AssertionError("\n".join([f"{late}: {sorted(job.leftovers())}", *said[-20:]])) from None


def training(played: MakeJob) -> PlayedJob:
    """A job whose worker pods are on a node, so that they have their grace."""
    job = played()
    job.apply()
    job.run_to_training()
    place(job, "train-0-1", "train-1-1")
    job.wait("both workers are ready", lambda status: status["workers"]["ready"] == 2)
    job.wait("the pods' uids are known", lambda status: all("uid" in member for member in status["pods"]))
    return job


def end_pods(job: PlayedJob) -> None:
    """The nodes end the pods that are on their way out."""
    assert terminating(job) == dict.fromkeys(WORKERS, 5)
    for name in WORKERS:
        job.remove_pod(name.removeprefix("gpt-"))


@pytest.mark.parametrize("cascade", ["background", "foreground", "orphan"])
@pytest.mark.parametrize("operator_is_up", [True, False])
def test_a_deleted_job_leaves_what_the_user_wished(
    operator: Operator, played: MakeJob, cascade: str, operator_is_up: bool
) -> None:
    job = training(played)
    before = job.settled(operator, lambda: writes(job))
    children = job.leftovers()
    if not operator_is_up:
        operator.kill()
    job.cluster.kubectl("-n", job.namespace, "delete", "tj", "gpt", f"--cascade={cascade}", "--wait=false")
    if cascade == "orphan":
        wait_until("the job is gone", lambda: not exists(job))
        assert job.leftovers() == children
        assert terminating(job) == {}
        assert not any(pod["metadata"].get("ownerReferences") for pod in job.pods().values())
    else:
        wait_until("the pods are told to end", lambda: set(terminating(job)) == WORKERS)
        assert exists(job) == (cascade == "foreground"), "foreground: the job goes last"
        end_pods(job)
        wait_until("everything is gone", lambda: not exists(job) and job.leftovers() == set())
    if not operator_is_up:
        operator.start()
    assert job.settled(operator, lambda: writes(job)) == before, "the operator wrote for a job that was being deleted"
    assert job.leftovers() == (children if cascade == "orphan" else set())


@pytest.mark.parametrize("operator_is_up", [True, False])
def test_a_deleted_namespace_goes_with_all_that_is_in_it(
    cluster: LocalCluster, make_namespace: Callable[[str], str], tmp_path: Path, operator_is_up: bool
) -> None:
    namespace = make_namespace("doomed")
    operator = Operator(cluster.kubeconfig, tmp_path / "operator.log", "--namespace", namespace)
    operator.start()
    try:
        job = training(lambda: PlayedJob(cluster, namespace))
        before = len(job.settled(operator, lambda: writes(job)))
        if not operator_is_up:
            operator.kill()
        begun = time.monotonic()
        cluster.kubectl("delete", "namespace", namespace, "--wait=false")
        wait_until("the pods are told to end", lambda: set(terminating(job)) >= WORKERS)
        end_pods(job)
        gone = "namespace is gone"
        wait_until(gone, lambda: not cluster.kubectl("get", "ns", namespace, "--ignore-not-found"))
        later = writes(job)[before:]
        assert ("create", "pods", 201) not in [(verb, what, code) for verb, what, _, code in later], "a pod came back"
        assert len(later) <= 12 + (time.monotonic() - begun), "it tries again and again, ever less often"
    finally:
        operator.stop()


@pytest.mark.parametrize("operator_is_up", [True, False])
def test_a_deleted_chart_takes_jobs_and_pods_along(
    cluster: LocalCluster, operator: Operator, played: MakeJob, operator_is_up: bool
) -> None:
    """With `crd.keep=false`; by default the CRD, and with it every job, survives the chart."""
    chart = [part for part in render("default", {"crd": {"keep": False}}) if part["kind"] != "Deployment"]
    text = yaml.safe_dump_all(chart)
    cluster.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", stdin=text)
    job = training(played)
    if not operator_is_up:
        operator.kill()
    try:
        cluster.kubectl("delete", "--wait=false", "-f", "-", stdin=text)
        with collector_heard(cluster, job):
            wait_until("the pods are told to end", lambda: set(terminating(job)) == WORKERS)
            end_pods(job)
            wait_until("everything is gone", lambda: job.leftovers() == set())
        wait_until("the CRD is gone", lambda: not cluster.kubectl("get", "crd", CRD, "--ignore-not-found"))
    finally:
        file = Path(__file__).parents[2] / "crds" / f"{CRD}.yaml"
        wait_until("the CRD is gone", lambda: not cluster.kubectl("get", "crd", CRD, "--ignore-not-found"))
        cluster.install(file)


def test_the_chart_keeps_the_crd_by_default() -> None:
    (crd,) = [part for part in render("default") if part["kind"] == "CustomResourceDefinition"]
    assert crd["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"


def exists(job: PlayedJob) -> bool:
    """Whether the TrainingJob is there, deleted or not."""
    return bool(job.cluster.kubectl("-n", job.namespace, "get", "tj", "gpt", "--ignore-not-found"))
