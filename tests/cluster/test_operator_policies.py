"""The operator on a real API server where policies and quotas of the cluster's own forbid it what it wants."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support.chart import RELEASE, install_account
from support.disturb import label, place, terminating, writes
from support.operator_process import Operator
from support.played import Object, PlayedJob
from support.runs import wait_until

if TYPE_CHECKING:
    from trainingjob_local.cluster import LocalCluster

MakeJob = Callable[..., PlayedJob]
POLICY = "ValidatingAdmissionPolicy"


@pytest.fixture
def account(cluster: LocalCluster, namespace: str) -> Path:
    """The chart's account, for a policy to tell from the test's own."""
    return install_account(cluster, namespace, {"watchNamespaces": [namespace]})


@pytest.fixture
def freeze(cluster: LocalCluster, namespace: str, account: Path) -> Iterator[Callable[..., Callable[[], None]]]:
    """Forbid the operator's account some operations (UPDATE, DELETE) on pods that are there; call what it returns to
    allow them again."""
    api, meta = "admissionregistration.k8s.io/v1", {"name": f"frozen-{namespace}"}
    mine = f"request.userInfo.username == 'system:serviceaccount:{namespace}:{RELEASE}'"

    def thaw() -> None:
        kinds = (f"{POLICY.lower()}binding/{meta['name']}", f"{POLICY.lower()}/{meta['name']}")
        cluster.kubectl("delete", *kinds, "--ignore-not-found")

    def run(*operations: str) -> Callable[[], None]:
        rule = {"apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"], "operations": list(operations)}
        policy = {
            "matchConstraints": {"resourceRules": [rule]},
            "matchConditions": [{"name": "operator", "expression": mine}],
            "validations": [{"expression": "false", "message": "pods are frozen"}],
        }
        binding = {"policyName": meta["name"], "validationActions": ["Deny"]}
        cluster.apply(
            {"apiVersion": api, "kind": POLICY, "metadata": meta, "spec": policy},
            {"apiVersion": api, "kind": f"{POLICY}Binding", "metadata": meta, "spec": binding},
        )
        return thaw

    yield run
    thaw()


def frozen(cluster: LocalCluster, account: Path, job: PlayedJob, name: str, *request: str) -> bool:
    """Whether the account may not do so to a pod."""
    flags = ("--kubeconfig", str(account), "-n", job.namespace, "--dry-run=server")
    try:
        cluster.kubectl(*flags, request[0], "pod", f"{job.name}-{name}", *request[1:])
    except RuntimeError as refused:
        return "pods are frozen" in str(refused)
    return False


def test_a_policy_that_denies_what_is_done_to_pods_is_said_once_and_waited_for(
    cluster: LocalCluster,
    account: Path,
    freeze: Callable[..., Callable[[], None]],
    played: MakeJob,
    tmp_path: Path,
) -> None:
    job, done = played(), played("done")
    flags = ("--namespace", job.namespace, "--progress-interval", "1")
    operator = Operator(account, tmp_path / "operator.log", *flags)
    operator.start()
    try:
        for one in (job, done):
            one.apply()
            one.run_to_training()
            one.wait("both workers are ready", lambda status: status["workers"]["ready"] == 2)
        thaw = freeze("UPDATE", "DELETE")
        wait_until("pods are frozen", lambda: frozen(cluster, account, job, "train-1-1", "label", "a=b"))
        wait_until("in every way", lambda: frozen(cluster, account, job, "train-1-1", "delete"))

        label(job, "train-1-1", member=None)
        refused("changed", job)
        assert job.status()["phase"] in ("Starting", "Running")
        job.patch({"runPolicy": {"suspend": True}})
        refused("deleted", job)
        assert job.status()["phase"] == "Suspending"
        done.end("train-0-1", outcome="Finished", result={"modelUri": "s3://m", "step": 100})
        done.wait("its pods stay, it is said", lambda status: "denied request: pods are frozen" in left(status))
        assert done.status()["phase"] == "Succeeded"
        assert terminating(job) == {} == terminating(done)
        for one, reason in ((job, "CreateRefused"), (job, "DeleteRefused"), (done, "DeleteRefused")):
            wait_until("it is told", lambda one=one, reason=reason: one.events(reason))  # type: ignore[misc]
            assert [event["count"] for event in one.events(reason)] == [1]

        thaw()
        job.wait_phase("Suspended")
        done.wait("nothing is left to be said", lambda status: not left(status))
        assert "done-train-1-1" not in done.uids()
    finally:
        operator.stop()


def refused(deed: str, job: PlayedJob) -> None:
    """This is said of a pod with the policy's words, once, although it is tried again and again."""
    words = (f"cannot be {deed}: ValidatingAdmissionPolicy", "denied request: pods are frozen; have the policy changed")
    job.wait(f"{words}", lambda status: all(part in status["message"] for part in words))
    (holds,) = {c["reason"] for c in job.status()["conditions"] if c["type"] in ("Reconciling", "Stalled")}
    assert holds == {"changed": "CreateRefused", "deleted": "DeleteRefused"}[deed]
    before, tries = said(job), denied(job)
    wait_until("it was tried again", lambda: denied(job) > tries)
    assert said(job) == before, "it is no news"


def said(job: PlayedJob) -> tuple[str, str, list[Object]]:
    """Phase, message and conditions, but for the one that comes with time: that nobody answers in its pods."""
    status = job.status()
    conditions = [condition for condition in status["conditions"] if condition["type"] != "ProgressUnknown"]
    return status["phase"], status["message"], conditions


def left(status: Object) -> str:
    """What a finished job says of its pods that may not go."""
    return "".join(c["message"] for c in status["conditions"] if c["type"] == "CleanupRefused")


def denied(job: PlayedJob) -> int:
    """How many of the operator's writes to pods were refused."""
    return sum(1 for verb, resource, _, code in writes(job) if resource == "pods" and code >= 400)


def test_a_gang_that_begins_anew_has_the_quota_of_the_pods_that_it_replaces(
    operator: Operator, played: MakeJob
) -> None:
    """Commands of kind custom are replaced together: those that still run must go first."""
    job = played()
    task: Object = {"kind": "custom", "custom": {"command": ["python", "train.py"]}}
    workers = job.manifest["spec"]["workers"]
    job.manifest["spec"] = {"task": task, "workers": workers, "checkpoint": {"drainSeconds": 5}}
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "team", "namespace": job.namespace}}
    job.cluster.apply({**quota, "spec": {"hard": {"pods": "2"}}})
    used = ("-n", job.namespace, "get", "quota", "team", "-o", "jsonpath={.status.used.pods}")
    wait_until("the quota counts", lambda: job.cluster.kubectl(*used))
    job.apply()
    job.wait_pods("train-0-1", "train-1-1")
    job.run("train-0-1", "train-1-1")
    job.wait_phase("Running")
    place(job, "train-0-1")
    job.end("train-1-1", 1)
    wait_until("the one that runs is told to end", lambda: "gpt-train-0-1" in terminating(job))
    job.end("train-0-1", 30)
    job.wait_pods("train-0-2", "train-1-2")
