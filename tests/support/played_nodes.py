"""Nodes that exist in the API alone: the real scheduler fills them, and the test plays their pods."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from support.runs import wait_until

if TYPE_CHECKING:
    from trainingjob_local.cluster import LocalCluster


@contextmanager
def played_nodes(cluster: LocalCluster, *names: str, gpus: int = 8) -> Iterator[None]:
    """These nodes alone take pods."""
    cluster.kubectl("cordon", *cluster.nodes)
    over = threading.Event()
    kubelet = threading.Thread(target=_keep_alive, args=(cluster, names, over), name="played-nodes")
    try:
        for name in names:
            _add(cluster, name, gpus)
        _wait_for_the_scheduler(cluster, names[-1])
        kubelet.start()
        yield
    finally:
        over.set()
        if kubelet.ident is not None:
            kubelet.join()
        cluster.kubectl("delete", "node", *names, "--ignore-not-found")
        cluster.kubectl("uncordon", *cluster.nodes)


def _wait_for_the_scheduler(cluster: LocalCluster, node: str) -> None:
    """It knows this node, and what happened to nodes before: it has bound a pod to it."""
    pod, where = f"probe-{node}", {"kubernetes.io/hostname": node}
    spec = {"nodeSelector": where, "containers": [{"name": "c", "image": "i"}]}
    cluster.apply({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": pod, "namespace": "default"}, "spec": spec})
    bound = ("-n", "default", "get", "pod", pod, "-o", "jsonpath={.spec.nodeName}")
    wait_until(f"the scheduler knows {node}", lambda: cluster.kubectl(*bound))
    cluster.kubectl("-n", "default", "delete", "pod", pod, "--grace-period=0", "--force")


def give_gpus(cluster: LocalCluster, name: str, gpus: int) -> None:
    """The node has so many GPUs from now on."""
    amount = f'{{"nvidia.com/gpu": "{gpus}"}}'
    patch = f'{{"status": {{"capacity": {amount}, "allocatable": {amount}}}}}'
    cluster.kubectl("patch", "node", name, "--subresource=status", "--type=merge", "-p", patch)


def _keep_alive(cluster: LocalCluster, names: Sequence[str], over: threading.Event) -> None:
    """Say that they live, until the event is set: a node that is silent for 50 s counts as lost."""
    while not over.wait(10):
        for name in names:
            patch = json.dumps({"status": {"conditions": [_ready()]}})
            with suppress(RuntimeError):  # The API server has too much to do.
                cluster.kubectl("patch", "node", name, "--subresource=status", "-p", patch)


def _ready() -> dict[str, str]:
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {"type": "Ready", "status": "True", "reason": "Played", "lastHeartbeatTime": now, "lastTransitionTime": now}


def _add(cluster: LocalCluster, name: str, gpus: int) -> None:
    amounts = {"cpu": "64", "memory": "256Gi", "pods": "110", "nvidia.com/gpu": str(gpus)}
    labels = {"kubernetes.io/hostname": name, "kubernetes.io/os": "linux"}
    cluster.apply(
        {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": name, "labels": labels},
            "status": {"capacity": amounts, "allocatable": amounts, "conditions": [_ready()]},
        }
    )
    untainted = "jsonpath={.spec.taints}"
    wait_until(f"node {name} takes pods", lambda: not cluster.kubectl("get", "node", name, "-o", untainted))
