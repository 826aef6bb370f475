"""The local cluster: a real control plane, a real S3 server and process nodes, in the sandbox's network.

Inside `python -m trainingjob_local.sandbox -- ...`:

    with LocalCluster() as cluster:
        cluster.kubeconfig                            # the administrator's
        cluster.kubectl("get", "nodes")               # a kubectl that fits; returns its output
        cluster.s3.endpoint, cluster.s3.client()      # S3
        cluster.add_s3_secret("default")              # Secret `s3-credentials` in a namespace
        cluster.control_plane.client_kubeconfig("jane", "developers")
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from trainingjob_local import binaries, sandbox
from trainingjob_local.controlplane import BINARIES, ControlPlane
from trainingjob_local.definitions import wait_until_served
from trainingjob_local.process import START_SECONDS, Component
from trainingjob_local.s3 import S3Server

S3_SECRET = "s3-credentials"

_KUBELET_PORT = 10250
_FIRST_POD_IP, _LAST_POD_IP = 16, 254
_MAX_NODES = 4  # each has its share of the pod addresses


class LocalCluster:
    """A running cluster.

    directory: where its data lie; None: a temporary directory that goes with it.
    nodes: process nodes, each with `capacity` (what it tells the scheduler, not what the machine has).
    audit, extra, gang_scheduling: see `ControlPlane`.
    say: gets a line as each part comes up.
    """

    def __init__(
        self,
        directory: Path | None = None,
        *,
        nodes: int = 1,
        capacity: Mapping[str, str] | None = None,
        audit: bool = False,
        extra: Mapping[str, Sequence[str]] | None = None,
        gang_scheduling: bool = False,
        say: Callable[[str], None] | None = None,
    ) -> None:
        sandbox.require()
        self._say = say or (lambda line: None)
        self._capacity = dict(capacity or {"cpu": "16", "memory": "64Gi"})
        self._scratch = None if directory else tempfile.TemporaryDirectory(prefix="trainingjob-")
        self.directory = directory or Path(self._scratch.name if self._scratch else "")
        self.directory.mkdir(parents=True, exist_ok=True)
        self.nodes: dict[str, Component] = {}
        self._parts: list[Any] = []
        try:
            self._start(nodes, {"audit": audit, "extra": extra, "gang_scheduling": gang_scheduling})
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop everything: nodes (and with them the pods' processes), S3, control plane."""
        for node in self.nodes.values():
            node.stop()
        self.nodes.clear()
        while self._parts:
            self._parts.pop().close()
        if self._scratch:
            self._scratch.cleanup()
            self._scratch = None

    @property
    def kubeconfig(self) -> Path:
        return self.control_plane.kubeconfig

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        """Output of kubectl as administrator; RuntimeError with its message if it fails."""
        # What it knows of an API server it keeps by address, which all local clusters have in common.
        known = ("--cache-dir", str(self.directory / "kubectl-cache"))
        command = [str(self.kubectl_binary), "--kubeconfig", str(self.kubeconfig), *known, *arguments]
        done = subprocess.run(command, input=stdin, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"kubectl {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout

    def apply(self, *manifests: Mapping[str, Any]) -> None:
        """Apply manifests as administrator."""
        self.kubectl("apply", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": manifests}))

    def install(self, definition: Path) -> None:
        """Install a CustomResourceDefinition; returns when it is served."""
        self.kubectl("apply", "--server-side", "-f", str(definition))
        wait_until_served(self.kubectl, "-f", str(definition))

    def add_s3_secret(self, namespace: str) -> None:
        """Put the S3 server's credentials into a namespace, as Secret `s3-credentials`."""
        data = {"AWS_ACCESS_KEY_ID": self.s3.access_key, "AWS_SECRET_ACCESS_KEY": self.s3.secret_key}
        meta = {"name": S3_SECRET, "namespace": namespace}
        self.apply({"apiVersion": "v1", "kind": "Secret", "metadata": meta, "stringData": data})

    def start_node(self, name: str) -> None:
        """Start a process node, a new one or one that was stopped."""
        index = int(name.rpartition("-")[2])
        if index >= _MAX_NODES:
            raise ValueError(f"{name}: a local cluster has at most {_MAX_NODES} nodes, node-0 to node-{_MAX_NODES - 1}")
        share = (_LAST_POD_IP - _FIRST_POD_IP) // _MAX_NODES
        first = _FIRST_POD_IP + index * share
        subnet = sandbox.HOST_IP.rpartition(".")[0]
        root = self.directory / name
        root.mkdir(exist_ok=True)
        serving = self.control_plane.authority.serving(f"kubelet-{name}", [sandbox.HOST_IP, name])
        kubeconfig = self.control_plane.client_kubeconfig(f"system:node:{name}", "system:nodes")
        flags = {
            "kubeconfig": kubeconfig,
            "name": name,
            "root": root,
            "bridge": sandbox.BRIDGE,
            "address": f"{sandbox.HOST_IP}:{_KUBELET_PORT + index}",
            "tls-cert": serving.cert,
            "tls-key": serving.key,
            "client-ca": self.control_plane.authority.files.cert,
            "pod-ips": f"{subnet}.{first}-{subnet}.{first + share - 1}",
            "capacity": ",".join(f"{name}={amount}" for name, amount in self._capacity.items()),
        }
        arguments = [part for flag, value in flags.items() for part in (f"--{flag}", str(value))]
        command = [sys.executable, "-m", "trainingjob_local.node", *arguments]
        self.nodes[name] = Component(name, command, self.directory / f"{name}.log")

    def wait_nodes_ready(self) -> None:
        """Wait until all nodes are Ready."""
        for name, node in self.nodes.items():
            node.wait_ready(lambda name=name: self._node_ready(name))  # type: ignore[misc]

    def _start(self, nodes: int, control_plane: Mapping[str, Any]) -> None:
        programs = binaries.ensure([*BINARIES, "kubectl"])
        self.kubectl_binary = programs["kubectl"]
        self._say("starting etcd, kube-apiserver, kube-controller-manager, kube-scheduler and the S3 server")
        self.s3 = S3Server(self.directory)
        self._parts.append(self.s3)
        self.control_plane = ControlPlane(programs, self.directory, **control_plane)
        self._parts.append(self.control_plane)
        self._let_nodes_read_endpoints()
        self._say(f"starting {nodes} node(s)")
        for index in range(nodes):
            self.start_node(f"node-{index}")
        self.s3.wait_ready()
        self.wait_nodes_ready()
        # The controller-manager makes it a moment later; a pod that comes first is refused.
        self.kubectl("wait", "--for=create", f"--timeout={START_SECONDS:.0f}s", "serviceaccount/default")

    def _let_nodes_read_endpoints(self) -> None:
        """A node stands for kube-proxy and DNS too: it may read EndpointSlices, as kube-proxy's role says."""
        self.apply(
            {
                "apiVersion": "rbac.authorization.k8s.io/v1",
                "kind": "ClusterRoleBinding",
                "metadata": {"name": "trainingjob-local:node-proxier"},
                "roleRef": {
                    "apiGroup": "rbac.authorization.k8s.io",
                    "kind": "ClusterRole",
                    "name": "system:node-proxier",
                },
                "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": "system:nodes"}],
            }
        )

    def _node_ready(self, name: str) -> bool:
        jsonpath = "jsonpath={.status.conditions[?(@.type=='Ready')].status}"
        try:
            return self.kubectl("get", "node", name, "-o", jsonpath) == "True"
        except RuntimeError:
            return False
