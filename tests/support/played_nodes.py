"""Nodes that exist in the API alone: the real scheduler fills them, and the test plays their pods."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from support.runs import wait_until

if TYPE_CHECKING:
    from trainingjob_local.cluster import LocalCluster


@contextmanager
def played_nodes(cluster: LocalCluster, *names: str, gpus: int = 8) -> Iterator[None]:
    """These nodes alone take pods. Kubernetes believes in them for 40 s, as nobody renews their leases."""
    cluster.kubectl("cordon", *cluster.nodes)
    try:
        for name in names:
            _add(cluster, name, gpus)
        yield
    finally:
        cluster.kubectl("delete", "node", *names, "--ignore-not-found")
        cluster.kubectl("uncordon", *cluster.nodes)


def give_gpus(cluster: LocalCluster, name: str, gpus: int) -> None:
    """The node has so many GPUs from now on."""
    amount = f'{{"nvidia.com/gpu": "{gpus}"}}'
    patch = f'{{"status": {{"capacity": {amount}, "allocatable": {amount}}}}}'
    cluster.kubectl("patch", "node", name, "--subresource=status", "--type=merge", "-p", patch)


def _add(cluster: LocalCluster, name: str, gpus: int) -> None:
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    amounts = {"cpu": "64", "memory": "256Gi", "pods": "110", "nvidia.com/gpu": str(gpus)}
    ready = {"type": "Ready", "status": "True", "reason": "Played", "lastHeartbeatTime": now, "lastTransitionTime": now}
    labels = {"kubernetes.io/hostname": name, "kubernetes.io/os": "linux"}
    cluster.apply(
        {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": name, "labels": labels},
            "status": {"capacity": amounts, "allocatable": amounts, "conditions": [ready]},
        }
    )
    untainted = "jsonpath={.spec.taints}"
    wait_until(f"node {name} takes pods", lambda: not cluster.kubectl("get", "node", name, "-o", untainted), 20)
