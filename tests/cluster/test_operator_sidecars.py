"""Jobs whose pods have other containers than the trainer's: what service meshes put there, and people who debug."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from support.operator_process import Operator
from support.played import PlayedJob
from support.runs import wait_until

if TYPE_CHECKING:
    from trainingjob_local.cluster import LocalCluster

PROXY = """[JSONPatch{op: "add", path: "/spec/containers/0", value: Object.spec.containers{
    name: "proxy", image: "proxy", command: ["python", "-c", "import signal; signal.pause()"]}}]"""
NAMES = "jsonpath={.spec.containers[*].name}"


@pytest.fixture
def injected(cluster: LocalCluster, namespace: str) -> Iterator[None]:
    """Until the test is over, pods of its namespace get a proxy."""
    group, name = "admissionregistration.k8s.io/v1", {"name": f"proxy-{namespace}"}
    rule = {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}
    of_the_test = {"matchLabels": {"kubernetes.io/metadata.name": namespace}}
    policy = {
        "matchConstraints": {"resourceRules": [rule], "namespaceSelector": of_the_test},
        "reinvocationPolicy": "Never",
        "mutations": [{"patchType": "JSONPatch", "jsonPatch": {"expression": PROXY}}],
    }
    binding = {"policyName": name["name"]}
    kinds = {"MutatingAdmissionPolicy": policy, "MutatingAdmissionPolicyBinding": binding}
    cluster.apply(*({"apiVersion": group, "kind": k, "metadata": name, "spec": spec} for k, spec in kinds.items()))
    probe = (
        "-n",
        namespace,
        "run",
        "probe",
        "--image=i",
        "--dry-run=server",
        "-o",
        "jsonpath={.spec.containers[0].name}",
    )
    wait_until("pods get a proxy", lambda: cluster.kubectl(*probe) == "proxy")
    yield
    cluster.kubectl("delete", *(f"{kind}/{name['name']}" for kind in kinds))


def test_a_job_ends_with_its_trainers_and_lets_go_of_what_was_put_beside_them(
    injected: None, operator: Operator, cluster: LocalCluster, namespace: str
) -> None:
    job = PlayedJob(cluster, namespace, "ends")
    command = ["python", "-c", "import os, sys; sys.exit(int(os.environ['TRAININGJOB_INCARNATION']) == 1)"]
    job.manifest["spec"] = {
        "task": {"kind": "custom", "custom": {"command": command}},
        "workers": {"replicas": 2, "resources": {"cpu": "1", "memory": "1Gi"}},
        "checkpoint": {"drainSeconds": 5},
    }
    job.apply()
    status = job.wait_phase("Succeeded", "Failed")
    assert status["phase"] == "Succeeded", status
    assert status["restarts"]["total"] == 1
    wait_until("no pod holds anything", lambda: not job.pods())


def test_a_debug_container_neither_fails_a_job_nor_keeps_it_from_ending(
    operator: Operator, cluster: LocalCluster, namespace: str
) -> None:
    job = PlayedJob(cluster, namespace)
    job.apply()
    job.run_to_training()
    failed = {"terminated": {"exitCode": 1, "reason": "Error"}}
    for name, state in {"train-1-1": failed, "train-0-1": {"running": {}}}.items():
        cluster.kubectl("-n", namespace, "debug", f"gpt-{name}", "--image=busybox", "--container=debugger")
        seen = {"name": "debugger", "image": "i", "imageID": "i", "restartCount": 0, "ready": False, "state": state}
        status = {"ephemeralContainerStatuses": [seen]}
        job.core.patch_namespaced_pod_status(f"gpt-{name}", namespace, {"status": status})
    job.end("train-0-1", outcome="Finished", result={"modelUri": "s3://m", "step": 100})
    status = job.wait_phase("Succeeded", "Failed")
    assert (status["phase"], status["history"], status["restarts"]["total"]) == ("Succeeded", [], 0)
    wait_until("no pod runs", lambda: "gpt-train-1-1" not in job.uids())
    assert "gpt-train-0-1" in job.uids(), "its log is gone"
