"""Nodes that only KWOK plays: pods on them become Running and Ready and get addresses, but have no processes.

For what process nodes are too few for: thousands of pods on a real control plane.
"""

import json
from pathlib import Path
from typing import Any

from trainingjob_local import binaries
from trainingjob_local.controlplane import ControlPlane
from trainingjob_local.process import Component

POD_NETWORK = "10.128.0.0/14"
"""Addresses of the pods. Nothing in the sandbox routes there: who connects is told so at once."""

Json = dict[str, Any]

_LABEL = {"type": "kwok"}
_CAPACITY = {"cpu": "10000", "memory": "100Ti", "pods": "1000000", "nvidia.com/gpu": "10000"}
_LEASE_SECONDS = 40


class KwokNodes:
    """The process that plays the nodes; `manifests` are the nodes themselves, to be created by the caller."""

    def __init__(self, control_plane: ControlPlane, directory: Path, nodes: int = 4) -> None:
        program = binaries.ensure(["kwok"])["kwok"]
        config = directory / "kwok.yaml"
        config.write_text("\n---\n".join(json.dumps(stage) for stage in _stages()))
        self.manifests = [_node(f"kwok-{index}") for index in range(nodes)]
        flags = {
            "kubeconfig": control_plane.client_kubeconfig("kwok", "system:masters"),
            "config": config,
            "cidr": POD_NETWORK,
            "node-ip": "10.128.0.1",
            "node-lease-duration-seconds": _LEASE_SECONDS,
            "manage-nodes-with-label-selector": ",".join(f"{key}={value}" for key, value in _LABEL.items()),
        }
        command: list[str | Path] = [program, *(f"--{name}={value}" for name, value in flags.items())]
        self._process = Component("kwok", command, directory / "kwok.log")

    @property
    def pid(self) -> int:
        return self._process.pid

    def close(self) -> None:
        """End the process; the nodes stay and fall silent."""
        self._process.stop()


def _node(name: str) -> Json:
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": _LABEL},
        "status": {"capacity": _CAPACITY, "allocatable": _CAPACITY},
    }


def _stages() -> list[Json]:
    """What becomes of nodes and pods, all at once (https://kwok.sigs.k8s.io/docs/user/stages-configuration/)."""
    not_ready: Json = {
        "key": '.status.conditions.[] | select( .type == "Ready" ) | .status',
        "operator": "NotIn",
        "values": ["True"],
    }
    pending: list[Json] = [
        {"key": ".metadata.deletionTimestamp", "operator": "DoesNotExist"},
        {"key": ".status.phase", "operator": "In", "values": ["Pending"]},
    ]
    deleting: Json = {"key": ".metadata.deletionTimestamp", "operator": "Exists"}
    return [
        _stage("node-ready", "Node", [not_ready], {"statusTemplate": _NODE_STATUS}),
        _stage("pod-ready", "Pod", pending, {"statusTemplate": _POD_STATUS}),
        _stage("pod-gone", "Pod", [deleting], {"delete": True}),
    ]


def _stage(name: str, kind: str, expressions: list[Json], then: Json) -> Json:
    return {
        "apiVersion": "kwok.x-k8s.io/v1alpha1",
        "kind": "Stage",
        "metadata": {"name": name},
        "spec": {
            "resourceRef": {"apiGroup": "v1", "kind": kind},
            "selector": {"matchExpressions": expressions},
            "next": then,
        },
    }


_NODE_STATUS = """
conditions:
{{ range NodeConditions }}
- type: {{ .type | Quote }}
  status: {{ .status | Quote }}
  reason: {{ .reason | Quote }}
  message: {{ .message | Quote }}
  lastHeartbeatTime: {{ Now | Quote }}
  lastTransitionTime: {{ Now | Quote }}
{{ end }}
phase: Running
"""

_POD_STATUS = """
{{ $now := Now }}
phase: Running
startTime: {{ $now | Quote }}
conditions:
{{ range $type := (list "Initialized" "Ready" "ContainersReady") }}
- type: {{ $type | Quote }}
  status: "True"
  lastTransitionTime: {{ $now | Quote }}
{{ end }}
containerStatuses:
{{ range .spec.containers }}
- name: {{ .name | Quote }}
  image: {{ .image | Quote }}
  ready: true
  restartCount: 0
  state:
    running:
      startedAt: {{ $now | Quote }}
{{ end }}
{{ with PodIPsWith .spec.nodeName false .metadata.uid .metadata.name .metadata.namespace }}
podIP: {{ index . 0 | Quote }}
podIPs:
{{ range . }}
- ip: {{ . | Quote }}
{{ end }}
{{ end }}
"""
