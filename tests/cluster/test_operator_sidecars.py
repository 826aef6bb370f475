"""Jobs in a namespace where admission puts a container that never ends into every pod, as service meshes do."""

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
