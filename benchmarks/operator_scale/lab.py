"""What the benchmark runs on: a real control plane with raised client limits, and KWOK nodes."""

import json
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from trainingjob_local import binaries, sandbox
from trainingjob_local.controlplane import BINARIES, ControlPlane
from trainingjob_local.definitions import wait_until_served
from trainingjob_local.kwok import KwokNodes

from benchmarks.operator_scale.processes import cpu_seconds

CRD = Path(__file__).parents[2] / "crds" / "trainingjobs.trainingjob.io.yaml"
# With their stock limits (50 and 20 requests/s) the scheduler and the controller manager are what is measured.
_LIMITS = ("--kube-api-qps=5000", "--kube-api-burst=10000")
_EXTRA = {
    "kube-apiserver": ("--audit-log-maxsize=10000",),  # MB: the log must not be cut in two
    "kube-scheduler": _LIMITS,
    "kube-controller-manager": _LIMITS,
}


class Lab:
    """The running control plane. `operator`: a kubeconfig for the operator; `admin`: for everything else."""

    def __init__(self, directory: Path) -> None:
        sandbox.require()
        programs = binaries.ensure([*BINARIES, "kubectl", "kwok"])
        self.directory = directory
        self._kubectl = programs["kubectl"]
        self._control_plane = ControlPlane(programs, directory, audit=True, extra=_EXTRA)
        try:
            self.admin = self._control_plane.kubeconfig
            self.operator = self._control_plane.client_kubeconfig("trainingjob-operator", "system:masters")
            self._kwok = KwokNodes(self._control_plane, directory)
            self._apply(self._kwok.manifests)
            self.kubectl("apply", "--server-side", "-f", str(CRD))
            wait_until_served(self.kubectl, "-f", str(CRD))
            self.kubectl("wait", "--for=condition=Ready", "node", "--all", "--timeout=30s")
        except BaseException:
            self._control_plane.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._kwok.close()
        self._control_plane.close()

    @property
    def audit_log(self) -> Path:
        assert self._control_plane.audit_log is not None
        return self._control_plane.audit_log

    def cpu_seconds(self) -> dict[str, float]:
        """CPU time of the control plane and of KWOK so far, by name."""
        pids = {"kwok": self._kwok.pid, **{part.name: part.pid for part in self._control_plane.components}}
        return {name: cpu_seconds(pid) for name, pid in pids.items()}

    def namespace(self, name: str) -> str:
        """A new namespace that is ready for pods."""
        self.kubectl("create", "namespace", name)
        deadline = time.monotonic() + 30
        while not self.kubectl("-n", name, "get", "serviceaccount", "default", "--ignore-not-found"):
            if time.monotonic() > deadline:
                raise TimeoutError(f"namespace {name} gets no service account")
            time.sleep(0.1)
        return name

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        """Output of kubectl as administrator."""
        command = [str(self._kubectl), "--kubeconfig", str(self.admin), *arguments]
        done = subprocess.run(command, input=stdin, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"kubectl {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout

    def _apply(self, manifests: Iterable[dict[str, Any]]) -> None:
        items = {"apiVersion": "v1", "kind": "List", "items": list(manifests)}
        self.kubectl("apply", "-f", "-", stdin=json.dumps(items))
