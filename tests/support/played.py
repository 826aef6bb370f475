"""A TrainingJob on the real API server whose pods no node runs: the test says what they do."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from kubernetes import client, config

from support.runs import PATIENCE, Looks, wait_until

if TYPE_CHECKING:
    from trainingjob_local.cluster import LocalCluster

    from support.operator_process import Operator

Object = dict[str, Any]
T = TypeVar("T")


class PlayedJob:
    """One job, and what its pods do. Pods have a scheduler that does not exist, so nobody but the test touches them."""

    def __init__(self, cluster: LocalCluster, namespace: str, name: str = "gpt", **spec: Any) -> None:
        self.cluster = cluster
        self.namespace = namespace
        self.name = name
        api = config.new_client_from_config(str(cluster.kubeconfig))
        self.core = client.CoreV1Api(api)
        self._custom = client.CustomObjectsApi(api)
        self._address = itertools.count(1)
        self.manifest = manifest(namespace, name, **spec)

    def apply(self) -> None:
        """`kubectl apply` of the manifest."""
        self.cluster.apply(self.manifest)

    def create(self, name: str | None = None) -> None:
        """POST of the manifest, maybe under another name: a tenth of `apply`'s time."""
        manifest = {**self.manifest, "metadata": {"name": name or self.name}}
        self._custom.create_namespaced_custom_object(
            "trainingjob.io", "v1alpha1", self.namespace, "trainingjobs", manifest
        )

    def kubectl_wait(self, *conditions: str) -> None:
        """`kubectl wait` for each of these, as scripts do."""
        for condition in conditions:
            self.cluster.kubectl(
                "-n", self.namespace, "wait", f"--for={condition}", f"tj/{self.name}", f"--timeout={PATIENCE:.0f}s"
            )

    def get(self) -> Object:
        """The TrainingJob."""
        found: Object = self._custom.get_namespaced_custom_object(
            "trainingjob.io", "v1alpha1", self.namespace, "trainingjobs", self.name
        )
        return found

    def patch(self, spec: Object) -> None:
        """Merge patch of the spec."""
        self._custom.patch_namespaced_custom_object(
            "trainingjob.io", "v1alpha1", self.namespace, "trainingjobs", self.name, {"spec": spec}
        )

    def delete(self) -> None:
        """Delete it, in the background."""
        self._custom.delete_namespaced_custom_object(
            "trainingjob.io", "v1alpha1", self.namespace, "trainingjobs", self.name
        )

    def status(self) -> Object:
        """Its status."""
        status: Object = self.get()["status"]
        return status

    def wait(self, what: str, holds: Callable[[Object], Any]) -> Object:
        """The status, once `holds` of it."""
        last: Object = {}

        def seen() -> bool:
            nonlocal last
            last = self.status()
            return bool(holds(last))

        try:
            wait_until(what, seen)
        except AssertionError:
            raise AssertionError(f"not within {PATIENCE:.0f} s: {what}:\n{json.dumps(last, indent=1)}") from None
        return last

    def settled(self, operator: Operator, read: Callable[[], T]) -> T:
        """What `read` gives once it has stayed the same for two seconds in which API server and operator answered: what
        is no news the operator may write a progress interval (of a second, in these tests) later."""
        looks, last = Looks(20), read()

        def still() -> bool:
            nonlocal last
            self.uids()
            operator.metrics()
            last = read()
            return looks.alike(last)

        wait_until("nothing changes any more", still)
        return last

    def wait_phase(self, *phases: str) -> Object:
        """The status, once its phase is one of these."""
        return self.wait(f"phase {' or '.join(phases)}", lambda status: status.get("phase") in phases)

    def pods(self) -> dict[str, Object]:
        """Its pods by name, as JSON; those of other owners included."""
        selector = f"trainingjob.io/job-name={self.name}"
        listed = self.core.list_namespaced_pod(self.namespace, label_selector=selector, _preload_content=False)
        return {pod["metadata"]["name"]: pod for pod in json.loads(listed.data)["items"]}

    def uids(self) -> dict[str, str]:
        """Uids of its pods, by the pods' names."""
        return {name: pod["metadata"]["uid"] for name, pod in self.pods().items()}

    def wait_pods(self, *names: str) -> dict[str, Object]:
        """Its pods, once all these (names without the job's) are there."""
        wanted = {f"{self.name}-{name}" for name in names}
        wait_until(f"pods {sorted(wanted)}", lambda: wanted <= set(self.pods()))
        return self.pods()

    def run(self, *names: str, address: str | None = None) -> None:
        """These pods run and are ready."""
        for name in names:
            self._set(name, running(address or f"10.99.0.{next(self._address)}"))

    def wait_for_image(self, name: str, why: str) -> None:
        """This pod's node cannot pull its image."""
        state = {"waiting": {"reason": "ImagePullBackOff", "message": why}}
        self._set(name, _pod_status("Pending", state, ready=False))

    def end(self, name: str, code: int = 0, reason: str = "", **message: Any) -> None:
        """This pod ends with an exit code and a termination message."""
        self._set(name, ended(code, reason, **message))

    def end_with_log(self, name: str, code: int, log: str) -> None:
        """This pod ends without a message: its kubelet takes the end of its log for one."""
        status = ended(code)
        status["containerStatuses"][0]["state"]["terminated"]["message"] = log[-4096:]
        self._set(name, status)

    def bind(self, name: str, node: str) -> None:
        """This pod is on a node (that need not exist)."""
        pod, reference = f"{self.name}-{name}", client.V1ObjectReference(kind="Node", name=node)
        binding = client.V1Binding(metadata=client.V1ObjectMeta(name=pod), target=reference)
        self.core.create_namespaced_pod_binding(pod, self.namespace, binding, _preload_content=False)

    def disrupt(self, name: str, reason: str) -> None:
        """Kubernetes says why it is about to end this pod."""
        self._set(name, disrupted(reason))

    def remove_pod(self, name: str) -> None:
        """Somebody deletes this pod."""
        self.core.delete_namespaced_pod(f"{self.name}-{name}", self.namespace, grace_period_seconds=0)

    def run_to_training(self) -> None:
        """Check and data preparation are done, and the worker pods run."""
        self.wait_pods("prepare-0-1")
        self.run("prepare-0-1")
        self.end("prepare-0-1", outcome="Train")
        self.wait_pods("train-0-1", "train-1-1")
        self.run("train-0-1", "train-1-1")

    def events(self, reason: str) -> list[Object]:
        """Events about the job with this reason."""
        selector = f"involvedObject.name={self.name},reason={reason}"
        listed = self.core.list_namespaced_event(self.namespace, field_selector=selector, _preload_content=False)
        items: list[Object] = json.loads(listed.data)["items"]
        return items

    def leftovers(self) -> set[str]:
        """Names of the job's objects that still exist."""
        kinds = "pods,services,configmaps,secrets"
        text = self.cluster.kubectl("-n", self.namespace, "get", kinds, "-o", "json")
        return {
            f"{item['kind']}/{item['metadata']['name']}"
            for item in json.loads(text)["items"]
            if item["metadata"]["name"].startswith(f"{self.name}-")
        }

    def _set(self, name: str, status: Object) -> None:
        self.core.patch_namespaced_pod_status(f"{self.name}-{name}", self.namespace, {"status": status})


def manifest(namespace: str, name: str = "gpt", **spec: Any) -> Object:
    """A TrainingJob of two workers that no scheduler takes; parts of the spec replaced by `spec`."""
    return {
        "apiVersion": "trainingjob.io/v1alpha1",
        "kind": "TrainingJob",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "outputUri": f"s3://models/{name}",
            "storage": {"credentialsSecret": "s3-credentials"},
            "data": {"train": {"uri": "s3://corpus/raw.jsonl"}, "prepare": {"replicas": 2}},
            "model": {"preset": "gpt-nano"},
            "training": {"steps": 100},
            "checkpoint": {"drainSeconds": 5},
            "workers": {"replicas": 2, "template": {"schedulerName": "played-by-the-test"}},
            **spec,
        },
    }


def running(ip: str) -> Object:
    """Status of a pod that runs and is ready."""
    return _pod_status("Running", {"running": {"startedAt": _now()}}, ready=True, podIP=ip, podIPs=[{"ip": ip}])


def ended(code: int = 0, reason: str = "", **message: Any) -> Object:
    """Status of a pod that ended with an exit code and a termination message."""
    text = json.dumps(message) if message else ""
    said = {"exitCode": code, "reason": reason or ("Error" if code else "Completed"), "message": text}
    # In whole seconds, and a second played is a millisecond lived: it ends later than all its gang began.
    state = {"terminated": {**said, "startedAt": _now(), "finishedAt": _now(2)}}
    return _pod_status("Failed" if code else "Succeeded", state, ready=False)


def disrupted(reason: str) -> Object:
    """Status of a pod that Kubernetes is about to end, and why."""
    return {
        "conditions": [{"type": "DisruptionTarget", "status": "True", "reason": reason, "lastTransitionTime": _now()}]
    }


def _pod_status(phase: str, state: Object, ready: bool, **status: Any) -> Object:
    container = {"name": "trainer", "image": "i", "imageID": "i", "restartCount": 0, "ready": ready, "state": state}
    conditions = [{"type": "Ready", "status": str(ready), "lastTransitionTime": _now()}]
    return {"phase": phase, "containerStatuses": [container], "conditions": conditions, **status}


def _now(later: float = 0) -> str:
    return (datetime.now(UTC) + timedelta(seconds=later)).strftime("%Y-%m-%dT%H:%M:%SZ")
