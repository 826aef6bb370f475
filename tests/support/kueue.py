"""Kueue, played at the API: gates and finalizers by a real admission policy, and the rules of its plain pod groups.

Written from Kueue's documentation of plain pods. What it does to pods is what Kueue does; quota is counted in pods.
"""

from __future__ import annotations

import json
import threading
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from kubernetes import client, config
from trainingjob_local.definitions import wait_until_served
from urllib3.exceptions import HTTPError

from support.runs import wait_until

if TYPE_CHECKING:
    from trainingjob_local.cluster import LocalCluster

Object = dict[str, Any]
KUEUE = "kueue.x-k8s.io"
GROUP = f"{KUEUE}/pod-group-name"
TOTAL = f"{KUEUE}/pod-group-total-count"
HASH = f"{KUEUE}/role-hash"
GATE = f"{KUEUE}/admission"
FINALIZER = f"{KUEUE}/managed"

# The hash stands for what matters to admission; one that is there already is kept.
_WEBHOOK = f"""
[
  JSONPatch{{op: "add", path: "/metadata/labels/{KUEUE}~1managed", value: "true"}},
  JSONPatch{{op: "add", path: "/metadata/finalizers", value: ["{FINALIZER}"]}},
  JSONPatch{{op: "add", path: "/spec/schedulingGates", value: [Object.spec.schedulingGates{{name: "{GATE}"}}]}},
  JSONPatch{{op: "add", path: "/metadata/annotations/{KUEUE}~1role-hash", value:
    "{HASH}" in object.metadata.annotations ? object.metadata.annotations["{HASH}"] :
    object.spec.containers.map(c, string(c.resources.requests["cpu"]) + "-" + string(c.ports.size())).join("-")
    + "-" + string(object.spec.?nodeSelector.orValue({{}}).size()) + "-" + string(object.spec.?affinity.hasValue())}}
]
"""


_CRD = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": f"workloads.{KUEUE}", "annotations": {"api-approved.kubernetes.io": "unapproved, for tests"}},
    "spec": {
        "group": KUEUE,
        "scope": "Namespaced",
        "names": {"kind": "Workload", "plural": "workloads"},
        "versions": [
            {
                "name": "v1beta2",
                "served": True,
                "storage": True,
                "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}},
            }
        ],
    },
}


@dataclass
class Workload:
    """A group that is complete. counts: its pods by role hash."""

    counts: dict[str, int]
    admitted: bool = False
    finished: bool = False
    evicted: str | None = None


@dataclass
class Kueue:
    """A context manager. quota: pods that may be admitted at a time; changed by the test at will.

    offences: what a real Kueue would have answered with deletions or events.
    """

    cluster: LocalCluster
    namespace: str
    quota: int = 100
    offences: list[str] = field(default_factory=list)
    workloads: dict[str, Workload] = field(default_factory=dict)

    def __enter__(self) -> Kueue:
        self._core = client.CoreV1Api(config.new_client_from_config(str(self.cluster.kubeconfig)))
        self._stop = threading.Event()
        self._wishes: list[tuple[str, str]] = []
        self._install()
        self._thread = threading.Thread(target=self._work, name="kueue")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        for kind in ("mutatingadmissionpolicybinding", "mutatingadmissionpolicy"):
            self.cluster.kubectl("delete", kind, self._name)

    def evict(self, group: str, message: str) -> None:
        """Take the quota of an admitted group back."""
        self._wishes.append((group, message))

    # What its webhook does

    @property
    def _name(self) -> str:
        return f"kueue-{self.namespace}"

    def _install(self) -> None:
        here = {"matchLabels": {"kubernetes.io/metadata.name": self.namespace}}
        pods = {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}
        queued = {"name": "queued", "expression": f"'{KUEUE}/queue-name' in object.metadata.?labels.orValue({{}})"}
        policy = {
            "failurePolicy": "Fail",
            "reinvocationPolicy": "Never",
            "matchConstraints": {"namespaceSelector": here, "resourceRules": [pods]},
            "matchConditions": [queued],
            "mutations": [{"patchType": "JSONPatch", "jsonPatch": {"expression": _WEBHOOK}}],
        }
        version = "admissionregistration.k8s.io/v1"
        self.cluster.apply(
            {
                "apiVersion": version,
                "kind": "MutatingAdmissionPolicy",
                "metadata": {"name": self._name},
                "spec": policy,
            },
            {
                "apiVersion": version,
                "kind": "MutatingAdmissionPolicyBinding",
                "metadata": {"name": self._name},
                "spec": {"policyName": self._name},
            },
        )
        self.cluster.apply(_CRD)
        wait_until_served(self.cluster.kubectl, f"crd/workloads.{KUEUE}")
        wait_until("pods are gated", self._gates)

    def _gates(self) -> bool:
        """Whether the policy works already."""
        meta = {"name": "probe", "labels": {f"{KUEUE}/queue-name": "q"}, "annotations": {HASH: "x"}}
        container = {"name": "c", "image": "i", "resources": {"requests": {"cpu": "1"}}}
        body = {"metadata": meta, "spec": {"containers": [container]}}
        made = self._core.create_namespaced_pod(self.namespace, body, dry_run="All", _preload_content=False)
        return "schedulingGates" in json.loads(made.data)["spec"]

    # What its controller does

    def _work(self) -> None:
        while not self._stop.wait(0.1):
            groups: dict[str, list[Object]] = {}
            try:
                listed = self._core.list_namespaced_pod(self.namespace, label_selector=GROUP, _preload_content=False)
            except (HTTPError, client.ApiException):
                continue  # The API server has too much to do.
            for pod in json.loads(listed.data)["items"]:
                groups.setdefault(pod["metadata"]["labels"][GROUP], []).append(pod)
            for name in set(self.workloads) - set(groups):
                del self.workloads[name]  # its owners are gone
            for group, message in self._wishes:
                self.workloads[group].evicted = message
            self._wishes.clear()
            for name, pods in groups.items():
                try:
                    self._reconcile(name, sorted(pods, key=lambda pod: str(pod["metadata"]["creationTimestamp"])))
                except HTTPError:
                    continue
                except client.ApiException as error:
                    if error.status not in (404, 409):
                        raise

    def _reconcile(self, name: str, pods: list[Object]) -> None:
        workload = self.workloads.get(name)
        active, inactive = [p for p in pods if _active(p)], [p for p in pods if not _active(p)]
        if workload is None:
            workload = self._compose(name, active, inactive)
            if workload is None:
                return
            self.workloads[name] = workload
            self._tell(name, "insufficient unused quota for pods in flavor default")
        if workload.finished or self._over(pods):
            workload.finished, workload.admitted = True, False
            for pod in pods:
                self._finalize(pod)
            return
        if not self._fits(name, workload, active):
            return
        replaced = len(inactive) + len(active) - sum(workload.counts.values())
        for pod in inactive[: max(0, replaced)]:
            self._finalize(pod)
        if workload.evicted is not None:
            workload.admitted = False
            for pod in active:
                self._end(pod, workload.evicted)
            return
        if not workload.admitted and len(active) == sum(workload.counts.values()):
            workload.admitted = self._used() + len(active) <= self.quota
        if workload.admitted:
            self._ungate(workload, active)

    def _tell(self, name: str, why: str) -> None:
        """Why the group is not admitted, where Kueue says so."""
        said = {"type": "QuotaReserved", "status": "False", "reason": "Pending", "message": why}
        self.cluster.apply(
            {
                "apiVersion": f"{KUEUE}/v1beta2",
                "kind": "Workload",
                "metadata": {"name": name, "namespace": self.namespace},
                "status": {"conditions": [said]},
            }
        )

    def _compose(self, name: str, active: list[Object], inactive: list[Object]) -> Workload | None:
        """The workload of a complete group."""
        for pod in inactive:
            self._finalize(pod)
        totals = {pod["metadata"]["annotations"].get(TOTAL) for pod in active}
        if len(totals) > 1:
            self._offence(f"{name}: unequal counts {sorted(map(str, totals))}")
        if len(totals) != 1 or len(active) < int(totals.copy().pop()):
            return None
        size = int(totals.pop())
        for pod in active[size:]:
            self._offence(f"{name}: {pod['metadata']['name']} is one too many")
            self._delete(pod)
        return Workload(dict(Counter(_role(pod) for pod in active[:size])))

    def _fits(self, name: str, workload: Workload, active: list[Object]) -> bool:
        """Whether the pods are still those of the workload."""
        for role, members in _by_role(active).items():
            if role not in workload.counts:
                self._offence(f"{name}: no such role {role}")
                for pod in active:
                    self._end(pod, "No matching Workload")
                del self.workloads[name]
                return False
            # Those that are not gated are kept, then the older ones.
            kept = sorted(members, key=lambda pod: bool(pod["spec"].get("schedulingGates")))
            for pod in kept[workload.counts[role] :]:
                self._offence(f"{name}: {pod['metadata']['name']} is one too many")
                self._delete(pod)
        return True

    def _over(self, pods: list[Object]) -> bool:
        total = int(pods[0]["metadata"]["annotations"][TOTAL])
        given_up = any(p["metadata"]["annotations"].get(f"{KUEUE}/retriable-in-group") == "false" for p in pods)
        succeeded = sum(pod["status"]["phase"] == "Succeeded" for pod in pods)
        return succeeded == total or (given_up and all(_ended(pod) for pod in pods))

    def _used(self) -> int:
        return sum(sum(w.counts.values()) for w in self.workloads.values() if w.admitted)

    def _ungate(self, workload: Workload, active: list[Object]) -> None:
        """Let its pods be scheduled. The quota of those that succeeded is given away for good."""
        for role, members in _by_role(active).items():
            room = workload.counts[role] - sum(not pod["spec"].get("schedulingGates") for pod in members)
            for pod in [pod for pod in members if pod["spec"].get("schedulingGates")][:room]:
                self._patch(pod, {"op": "remove", "path": "/spec/schedulingGates"})

    def _end(self, pod: Object, message: str) -> None:
        gated = bool(pod["spec"].get("schedulingGates"))
        if gated or _ended(pod) or "deletionTimestamp" in pod["metadata"]:
            return
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        said = {"type": "TerminationTarget", "status": "True", "reason": "WorkloadEvictedDueToPreempted"}
        body = {"status": {"conditions": [{**said, "message": message, "lastTransitionTime": now}]}}
        self._core.patch_namespaced_pod_status(pod["metadata"]["name"], self.namespace, body)
        self._core.delete_namespaced_pod(pod["metadata"]["name"], self.namespace)

    def _delete(self, pod: Object) -> None:
        self._finalize(pod)
        if "deletionTimestamp" not in pod["metadata"]:
            self._core.delete_namespaced_pod(pod["metadata"]["name"], self.namespace)

    def _finalize(self, pod: Object) -> None:
        left = [name for name in pod["metadata"].get("finalizers", []) if name != FINALIZER]
        if len(left) < len(pod["metadata"].get("finalizers", [])):
            self._patch(pod, {"op": "replace", "path": "/metadata/finalizers", "value": left})

    def _patch(self, pod: Object, *changes: Object) -> None:
        """JSON patch."""
        same = {"op": "test", "path": "/metadata/uid", "value": pod["metadata"]["uid"]}
        self._core.patch_namespaced_pod(pod["metadata"]["name"], self.namespace, [same, *changes])

    def _offence(self, text: str) -> None:
        if text not in self.offences:
            self.offences.append(text)


def _role(pod: Object) -> str:
    return str(pod["metadata"]["annotations"][HASH])


def _by_role(pods: list[Object]) -> dict[str, list[Object]]:
    roles: dict[str, list[Object]] = {}
    for pod in pods:
        roles.setdefault(_role(pod), []).append(pod)
    return roles


def _ended(pod: Object) -> bool:
    return pod["status"]["phase"] in ("Succeeded", "Failed")


def _active(pod: Object) -> bool:
    """Whether it may yet run, runs, or has succeeded."""
    if "deletionTimestamp" in pod["metadata"] and not pod["spec"].get("nodeName"):
        return False
    return pod["status"]["phase"] != "Failed"
