"""KubeRay as a peer: its operator, unmodified, with RayClusters of as many pods."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainingjob_local import binaries
from trainingjob_local.definitions import wait_until_served
from trainingjob_operator.kube.api import Manifest, Resource

from benchmarks.operator_scale.jobs import PODS_PER_JOB, RESOURCES, Kind
from benchmarks.operator_scale.lab import Lab
from benchmarks.operator_scale.processes import Served

_NAME = "kuberay-operator"
_METRICS, _PROBES = "127.0.0.1:18081", "127.0.0.1:18082"
_WORKERS = PODS_PER_JOB - 1  # the head is a pod too


class KubeRay(Served):
    """Its operator with its defaults, and metrics, as its Helm chart has them."""

    def __init__(self, lab: Lab) -> None:
        program = binaries.ensure([_NAME])[_NAME]
        for definition in sorted((binaries.source(_NAME) / "config/crd/bases").glob("*.yaml")):
            lab.kubectl("apply", "--server-side", "-f", str(definition))
            wait_until_served(lab.kubectl, "-f", str(definition))
        flags = {
            "metrics-addr": _METRICS,
            "health-probe-bind-address": _PROBES,
            "enable-metrics": "true",
            "leader-election-namespace": "default",
        }
        command: list[str | Path] = [program, *(f"--{flag}={value}" for flag, value in flags.items())]
        env = {**os.environ, "KUBECONFIG": str(lab.operator)}
        super().__init__(command, lab.directory / "kuberay.log", f"http://{_PROBES}/readyz", env)


def _manifest(namespace: str, index: int) -> Manifest:
    """A head and three workers, with what each of our workers asks for."""
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayCluster",
        "metadata": {"name": f"job-{index:05}", "namespace": namespace},
        "spec": {
            "headGroupSpec": {"rayStartParams": {}, "template": _template("ray-head")},
            "workerGroupSpecs": [
                {
                    "groupName": "workers",
                    "replicas": _WORKERS,
                    "minReplicas": _WORKERS,
                    "maxReplicas": _WORKERS,
                    "rayStartParams": {},
                    "template": _template("ray-worker"),
                }
            ],
        },
    }


def _template(container: str) -> Manifest:
    resources = {"requests": RESOURCES, "limits": RESOURCES}
    return {"spec": {"containers": [{"name": container, "image": "rayproject/ray:2.56.0", "resources": resources}]}}


def _is_told(body: Mapping[str, Any]) -> bool:
    """Whether the cluster's status says that all its pods are ready."""
    status = body.get("status") or {}
    return status.get("state") == "ready" and status.get("readyWorkerReplicas") == _WORKERS


RAY_CLUSTERS = Kind(
    Resource("ray.io", "v1", "rayclusters", "RayCluster"), "ray.io/cluster", (_NAME,), _manifest, _is_told
)
