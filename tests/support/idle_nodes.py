"""Nodes with no machine behind them: the real scheduler binds pods to them, and nobody runs these."""

from __future__ import annotations

import json
import threading
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from kubernetes import client, config
from urllib3.exceptions import HTTPError

from support.played import Object, PlayedJob
from support.runs import wait_until

if TYPE_CHECKING:
    from trainingjob_local.cluster import LocalCluster

LABEL = "test.trainingjob.io/idle"
HEARTBEAT_SECONDS = 10.0


class IdleNodes:
    """A context manager: nodes of one CPU each, with a label of their own; pods that are deleted on them drain at once.

    name: distinguishes them from those of other tests.
    """

    def __init__(self, cluster: LocalCluster, name: str) -> None:
        self.selector = {LABEL: name}
        self._name = name
        self._core = client.CoreV1Api(config.new_client_from_config(str(cluster.kubeconfig)))
        self._names: list[str] = []
        self._stop = threading.Event()
        self._kubelet = threading.Thread(target=self._work, name=f"idle-nodes-{name}")

    def __enter__(self) -> IdleNodes:
        self._kubelet.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._kubelet.join()
        for name in self._names:
            self._core.delete_node(name)

    def add(self, count: int, *, taint: str | None = None) -> list[str]:
        """So many more nodes; taint: key of a NoSchedule taint on them. Their names."""
        added = [f"idle-{self._name}-{len(self._names) + i}" for i in range(count)]
        room = {"cpu": "1", "memory": "4Gi", "pods": "10"}
        for name in added:
            body: dict[str, Any] = {
                "metadata": {"name": name, "labels": self.selector},
                "spec": {"taints": [{"key": taint, "effect": "NoSchedule"}] if taint else []},
                "status": {"capacity": room, "allocatable": room, "conditions": [_ready()]},
            }
            self._core.create_node(body)
        self._names += added
        return added

    def untaint(self, names: list[str]) -> None:
        """Everybody may use these nodes."""
        for name in names:
            self._core.patch_node(name, {"spec": {"taints": None}})

    def _work(self) -> None:
        """What their kubelets would do: say that they live, and let go of deleted pods."""
        heard = time.monotonic()
        while not self._stop.wait(0.2):
            try:
                if time.monotonic() - heard > HEARTBEAT_SECONDS:
                    heard = time.monotonic()
                    self._live()
                self._let_go()
            except (HTTPError, client.ApiException):
                continue  # The API server is being started anew, or has too much to do.

    def _live(self) -> None:
        for name in list(self._names):
            self._core.patch_node_status(name, {"status": {"conditions": [_ready()]}})

    def _let_go(self) -> None:
        listed = self._core.list_pod_for_all_namespaces(_preload_content=False)
        for pod in json.loads(listed.data)["items"]:
            if pod["spec"].get("nodeName") in self._names and "deletionTimestamp" in pod["metadata"]:
                self._forget(pod)

    def _forget(self, pod: dict[str, Any]) -> None:
        """What was told to end ends at once, drained, and goes when nobody's finalizer holds it."""
        name, namespace = pod["metadata"]["name"], pod["metadata"]["namespace"]
        try:
            if pod["status"]["phase"] not in ("Succeeded", "Failed"):
                self._core.patch_namespaced_pod_status(name, namespace, {"status": _drained()})
            if pod["metadata"].get("deletionGracePeriodSeconds") != 0:
                self._core.delete_namespaced_pod(name, namespace, grace_period_seconds=0)
        except client.ApiException as error:
            if error.status not in (404, 409):
                raise


def _drained() -> dict[str, Any]:
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    ended = {"exitCode": 30, "reason": "Error", "startedAt": now, "finishedAt": now}
    container = {"name": "trainer", "image": "i", "imageID": "i", "restartCount": 0, "ready": False}
    return {"phase": "Failed", "containerStatuses": [{**container, "state": {"terminated": ended}}]}


def _ready() -> dict[str, Any]:
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {"type": "Ready", "status": "True", "lastHeartbeatTime": now, "lastTransitionTime": now}


def idle_job(
    cluster: LocalCluster,
    nodes: IdleNodes,
    namespace: str,
    name: str,
    template: dict[str, Any],
    replicas: int = 3,
    **spec: Any,
) -> PlayedJob:
    """A job whose workers fill a node each. Its prepare pods fit nowhere: the test plays them."""
    workers = {
        "replicas": replicas,
        "resources": {"cpu": "1", "memory": "1Gi"},
        "template": {"nodeSelector": nodes.selector, **template},
    }
    data = {"train": {"uri": "s3://corpus/raw.jsonl"}, "prepare": {"cpu": "1000"}}
    return PlayedJob(cluster, namespace, name, workers=workers, data=data, **spec)


def check(*jobs: PlayedJob, incarnation: int = 1) -> None:
    """The first stage of jobs is over: their data are ready."""
    pod = f"prepare-0-{incarnation}"
    for job in jobs:
        job.wait_pods(pod)
        job.run(pod)
    for job in jobs:
        job.end(pod, outcome="Train")


def workers(job: PlayedJob) -> dict[str, Object]:
    """The worker pods that live, by the part of the name that is theirs."""
    return {
        name.removeprefix(f"{job.name}-"): pod
        for name, pod in job.pods().items()
        if pod["metadata"]["labels"]["trainingjob.io/role"] == "train"
        and pod["status"]["phase"] in ("Pending", "Running")
        and "deletionTimestamp" not in pod["metadata"]
    }


def placed(job: PlayedJob) -> int:
    """How many of them have a node."""
    return sum(1 for pod in workers(job).values() if pod["spec"].get("nodeName"))


def wait_placed(job: PlayedJob, count: int) -> None:
    wait_until(f"{count} workers of {job.name} are placed", lambda: placed(job) == count)


def finish(job: PlayedJob) -> None:
    """All its workers run and are done."""
    names = sorted(workers(job), reverse=True)
    job.run(*names)
    for name in names:
        job.end(name, **({"outcome": "Finished", "result": {"step": 100}} if name.startswith("train-0-") else {}))
    job.wait_phase("Succeeded")
