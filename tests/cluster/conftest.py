"""Plain pods for the tests of the local cluster itself; an operator and played jobs for the tests of the operator."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from support.operator_process import Operator
from support.played import PlayedJob
from support.played_head import Head, serving
from support.runs import PATIENCE

if TYPE_CHECKING:
    from trainingjob_local.cluster import LocalCluster


class Pods:
    """Makes pods in one namespace and looks at them."""

    def __init__(self, cluster: "LocalCluster", namespace: str) -> None:
        self.cluster = cluster
        self.namespace = namespace

    def create(self, name: str, *command: str, labels: dict[str, str] | None = None, **spec: Any) -> None:
        """A pod of one container `main`; `container=` adds fields to that, all else goes to the spec."""
        container = {"name": "main", "image": "python", "command": list(command), **spec.pop("container", {})}
        defaults = {"restartPolicy": "Never", "automountServiceAccountToken": False, "containers": [container]}
        metadata = {"name": name, "namespace": self.namespace, "labels": labels or {}}
        self.cluster.apply({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {**defaults, **spec}})

    def kubectl(self, *arguments: str) -> str:
        """kubectl in the namespace."""
        return self.cluster.kubectl("-n", self.namespace, *arguments)

    def get(self, name: str) -> dict[str, Any]:
        """The pod; empty if there is none."""
        text = self.kubectl("get", "pod", name, "--ignore-not-found", "-o", "json")
        return json.loads(text) if text else {}

    def logs(self, name: str, *flags: str) -> str:
        """The log of the pod's container."""
        return self.kubectl("logs", name, *flags)

    def events(self, name: str, reason: str) -> list[str]:
        """The messages of the pod's events with this reason."""
        selector = f"involvedObject.name={name},reason={reason}"
        items = json.loads(self.kubectl("get", "events", "--field-selector", selector, "-o", "json"))["items"]
        return [item["message"] for item in items]

    def delete(self, *names: str, grace: int | None = None) -> None:
        """Delete pods, with a grace of so many seconds (None: their own); all of them are gone then."""
        flags = [] if grace is None else [f"--grace-period={grace}"]
        self.kubectl("delete", "pod", *names, *flags, f"--timeout={PATIENCE:.0f}s")

    def wait(self, name: str, holds: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
        """The pod, once `holds` of it."""
        deadline = time.monotonic() + PATIENCE
        while not holds(pod := self.get(name)):
            if time.monotonic() > deadline:
                pytest.fail(f"pod {name}: {json.dumps(pod.get('status'), indent=1)}")
            time.sleep(0.1)
        return pod

    def running(self, name: str) -> dict[str, Any]:
        """The pod, once its container runs."""
        return self.wait(name, lambda pod: "running" in state(pod))

    def ended(self, name: str) -> dict[str, Any]:
        """The terminated state of the pod's container, once the pod is finished."""
        pod = self.wait(name, lambda pod: pod["status"]["phase"] in ("Succeeded", "Failed"))
        return state(pod)["terminated"]

    def pid(self, name: str) -> int:
        """The process id (here) of the first process of the pod's container `main`."""
        pod = self.running(name)
        directory = self.cluster.directory / pod["spec"]["nodeName"] / "pods" / pod["metadata"]["uid"]
        return int((directory / "main.pid").read_text())

    def output(self, name: str, *command: str, **spec: Any) -> str:
        """What a command prints in a pod of its own; it must succeed."""
        self.create(name, *command, **spec)
        ended = self.ended(name)
        text = self.logs(name)
        assert ended["exitCode"] == 0, text
        return text


def state(pod: dict[str, Any]) -> dict[str, Any]:
    """The state of the pod's first container; empty before there is one."""
    statuses = pod.get("status", {}).get("containerStatuses")
    return statuses[0]["state"] if statuses else {}


@pytest.fixture
def pods(cluster: "LocalCluster", namespace: str) -> Pods:
    """Pods of a fresh namespace."""
    return Pods(cluster, namespace)


@pytest.fixture
def operator(cluster: "LocalCluster", namespace: str, tmp_path: Path) -> Iterator[Operator]:
    """A running operator that sees the fresh namespace only."""
    flags = ("--namespace", namespace, "--progress-interval", "1", "--log-level", "debug")
    process = Operator(cluster.kubeconfig, tmp_path / "operator.log", *flags)
    process.start()
    try:
        yield process
    finally:
        process.stop()


@pytest.fixture
def played(cluster: "LocalCluster", namespace: str) -> Callable[..., PlayedJob]:
    """Make a job in the fresh namespace, of a given name and with changed parts of the spec."""

    def make(name: str = "gpt", **spec: Any) -> PlayedJob:
        return PlayedJob(cluster, namespace, name, **spec)

    return make


@pytest.fixture
def head() -> Iterator[Head]:
    """A head pod's HTTP server."""
    with serving() as server:
        yield server
