"""The Helm chart on the local cluster: rendered by a real Helm, applied to the real API server."""

import json
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from trainingjob_local import binaries

from support.runs import wait_until

if TYPE_CHECKING:
    from trainingjob_local.cluster import LocalCluster

CHART = Path(__file__).parents[2] / "helm" / "trainingjob-operator"
RELEASE = "trainingjob-operator"


def render(namespace: str, values: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    """The chart's manifests; RuntimeError with Helm's message when the values are refused."""
    helm = binaries.ensure(["helm"])["helm"]
    command = [str(helm), "template", RELEASE, str(CHART), "--namespace", namespace, "--values", "-"]
    done = subprocess.run(command, input=json.dumps(values or {}), capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr.strip())
    return [manifest for manifest in yaml.safe_load_all(done.stdout) if manifest]


def install_account(cluster: "LocalCluster", namespace: str, values: dict[str, Any] | None = None) -> Path:
    """Apply the chart's ServiceAccount and roles; a kubeconfig with that account's token and no other right.

    The operator itself is started by the test, as a process: the local cluster's nodes hold no image of it.
    """
    kinds = {"ServiceAccount", "Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding"}
    manifests = [manifest for manifest in render(namespace, values) if manifest["kind"] in kinds]
    cluster.kubectl("apply", "--server-side", "-f", "-", stdin=yaml.safe_dump_all(manifests))
    token = cluster.kubectl("create", "token", RELEASE, "--namespace", namespace, "--duration=12h")
    kubeconfig = cluster.control_plane.write_kubeconfig(f"operator-{namespace}", token=token.strip())
    watched = (values or {}).get("watchNamespaces") or [namespace]
    for what, where in (("leases", namespace), *(("pods", each) for each in watched)):
        wait_until(f"it may create {what}", lambda w=what, n=where: allowed(cluster, kubeconfig, "create", w, n))
    return kubeconfig


def allowed(cluster: "LocalCluster", kubeconfig: Path, verb: str, what: str, namespace: str) -> bool:
    """Whether the account of this kubeconfig may do so. The API server judges by what it has read of roles so far."""
    attributes = {"verb": verb, "resource": what, "namespace": namespace}
    if what == "leases":
        attributes["group"] = "coordination.k8s.io"
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": attributes},
    }
    create = ("--kubeconfig", str(kubeconfig), "create", "--validate=false", "-o", "json", "-f", "-")
    return bool(json.loads(cluster.kubectl(*create, stdin=json.dumps(review)))["status"]["allowed"])
