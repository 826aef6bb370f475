"""The real control plane as child processes: etcd, kube-apiserver, kube-controller-manager, kube-scheduler.

TLS with a CA of its own, Node and RBAC authorization, ready in seconds. It listens inside the sandbox's network only.
"""

import json
import shutil
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trainingjob_local.pki import CertificateAuthority, KeyPair
from trainingjob_local.process import Component
from trainingjob_local.sandbox import HOST_IP

SERVER = "https://127.0.0.1:6443"
BINARIES = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler")

_ETCD = "http://127.0.0.1:2379"
_ETCD_PEER = "http://127.0.0.1:2380"
_SERVING_HOSTS = ["127.0.0.1", HOST_IP, "10.96.0.1", "localhost", "kubernetes", "kubernetes.default.svc"]
_AUDIT_POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [{"level": "Metadata"}],
}


_GANG_GATE = "--feature-gates=GenericWorkload=true"
_GANG_API = "--runtime-config=scheduling.k8s.io/v1beta1=true"


class ControlPlane:
    """A running control plane.

    extra: adds flags to a component, by its name. gang_scheduling: PodGroups are served and obeyed, which stock
    Kubernetes 1.37 leaves off.
    """

    def __init__(
        self,
        binaries: Mapping[str, Path],
        directory: Path,
        *,
        audit: bool = False,
        extra: Mapping[str, Sequence[str]] | None = None,
        gang_scheduling: bool = False,
    ) -> None:
        self.directory = directory
        self.gang_scheduling = gang_scheduling
        self._extra = extra or {}
        self._binaries = binaries
        self.authority = CertificateAuthority(directory / "pki")
        self._admin = self.authority.client("admin", "system:masters")
        self.kubeconfig = self.write_kubeconfig("admin", self._admin)
        self.audit_log = directory / "audit.log" if audit else None
        self._tokens = self.authority.signing_key("service-accounts")
        self.components: list[Component] = []
        try:
            self._start_etcd()
            self._start_all_but_etcd()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Stop all components, the last one first."""
        while self.components:
            self.components.pop().stop()

    def restart(self, *, gang_scheduling: bool) -> None:
        """Stop all but etcd and start them again, as an upgrade or another configuration would."""
        while len(self.components) > 1:
            self.components.pop().stop()
        self.gang_scheduling = gang_scheduling
        self._start_all_but_etcd()

    @contextmanager
    def set_back(self) -> Iterator[None]:
        """What is written in the block is forgotten at its end: etcd is restored from a backup, as after a disaster."""
        data, backup = self.directory / "etcd", self.directory / "etcd-backup"
        self.close()
        shutil.copytree(data, backup)
        self._start_etcd()
        self._start_all_but_etcd()
        try:
            yield
        finally:
            self.close()
            shutil.rmtree(data)
            backup.rename(data)
            self._start_etcd()
            self._start_all_but_etcd()

    def write_kubeconfig(self, name: str, pair: KeyPair | None = None, *, token: str | None = None) -> Path:
        """A kubeconfig for a client certificate, or for a bearer token."""
        user: dict[str, Any] = {"token": token} if token else {}
        if pair:
            user = {"client-certificate": str(pair.cert), "client-key": str(pair.key)}
        path = self.directory / f"{name}.kubeconfig"
        path.touch(mode=0o600)
        path.write_text(kubeconfig(SERVER, self.authority.files.cert, user))
        return path

    def client_kubeconfig(self, user: str, group: str | None = None) -> Path:
        """A kubeconfig for a new client certificate."""
        return self.write_kubeconfig(user.replace(":", "-"), self.authority.client(user, group))

    def _start_all_but_etcd(self) -> None:
        self._start_apiserver()
        self._start_controller_manager()
        self._start_scheduler()

    def _start(self, name: str, *flags: str) -> Component:
        gate = [_GANG_GATE] if self.gang_scheduling and name != "etcd" else []
        command: list[str | Path] = [self._binaries[name], *flags, *gate, *self._extra.get(name, ())]
        component = Component(name, command, self.directory / f"{name}.log")
        self.components.append(component)
        return component

    def _start_etcd(self) -> None:
        self._start(
            "etcd",
            f"--data-dir={self.directory / 'etcd'}",
            f"--listen-client-urls={_ETCD}",
            f"--advertise-client-urls={_ETCD}",
            f"--listen-peer-urls={_ETCD_PEER}",
            f"--initial-advertise-peer-urls={_ETCD_PEER}",
            f"--initial-cluster=default={_ETCD_PEER}",
            "--unsafe-no-fsync",
            "--log-level=warn",
        )

    def _start_apiserver(self) -> None:
        serving = self.authority.serving("kube-apiserver", _SERVING_HOSTS)
        kubelet_client = self.authority.client("kube-apiserver-kubelet-client", "system:masters")
        flags = [
            f"--etcd-servers={_ETCD}",
            "--bind-address=0.0.0.0",
            f"--advertise-address={HOST_IP}",
            "--secure-port=6443",
            f"--tls-cert-file={serving.cert}",
            f"--tls-private-key-file={serving.key}",
            f"--client-ca-file={self.authority.files.cert}",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            "--service-cluster-ip-range=10.96.0.0/16",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={self._tokens.cert}",
            f"--service-account-signing-key-file={self._tokens.key}",
            f"--kubelet-client-certificate={kubelet_client.cert}",
            f"--kubelet-client-key={kubelet_client.key}",
            f"--kubelet-certificate-authority={self.authority.files.cert}",
            "--kubelet-preferred-address-types=InternalIP",
        ]
        if self.audit_log:
            policy = self.directory / "audit-policy.json"
            policy.write_text(json.dumps(_AUDIT_POLICY))
            flags += [f"--audit-policy-file={policy}", f"--audit-log-path={self.audit_log}"]
        if self.gang_scheduling:
            flags.append(_GANG_API)
        self._start("kube-apiserver", *flags).wait_ready(self._ready_probe())

    @contextmanager
    def node_grace(self, seconds: int) -> Iterator[None]:
        """Until the end of the block, a node counts as lost when it is silent for `seconds` instead of Kubernetes' 50.

        A node renews its lease every 3 s. The controller-manager is started anew, with the flag and then without.
        """
        self._restart_controller_manager(f"--node-monitor-grace-period={seconds}s", "--node-monitor-period=1s")
        try:
            yield
        finally:
            self._restart_controller_manager()

    def _restart_controller_manager(self, *flags: str) -> None:
        (running,) = [part for part in self.components if part.name == "kube-controller-manager"]
        running.stop()
        self.components.remove(running)
        self._start_controller_manager(*flags)

    def _start_controller_manager(self, *flags: str) -> None:
        self._start(
            "kube-controller-manager",
            f"--kubeconfig={self.client_kubeconfig('system:kube-controller-manager')}",
            "--use-service-account-credentials",
            f"--service-account-private-key-file={self._tokens.key}",
            f"--root-ca-file={self.authority.files.cert}",
            "--leader-elect=false",
            "--bind-address=127.0.0.1",
            "--controllers=*,-node-ipam-controller",
            *flags,
        )

    def _start_scheduler(self) -> None:
        self._start(
            "kube-scheduler",
            f"--kubeconfig={self.client_kubeconfig('system:kube-scheduler')}",
            "--leader-elect=false",
            "--bind-address=127.0.0.1",
        )

    def _ready_probe(self) -> Callable[[], bool]:
        context = ssl.create_default_context(cafile=str(self.authority.files.cert))
        context.load_cert_chain(self._admin.cert, self._admin.key)
        opener = urllib.request.build_opener(urllib.request.HTTPSHandler(context=context))

        def ready() -> bool:
            try:
                with opener.open(f"{SERVER}/readyz", timeout=2) as answer:
                    return bool(answer.status == 200)
            except urllib.error.HTTPError as not_yet:
                not_yet.close()
                return False
            except OSError:
                return False

        return ready


def kubeconfig(server: str, ca: Path, user: Mapping[str, Any]) -> str:
    """A kubeconfig (JSON is YAML) with one cluster, one user and one context."""
    return json.dumps(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "local",
            "clusters": [{"name": "local", "cluster": {"server": server, "certificate-authority": str(ca)}}],
            "users": [{"name": "local", "user": dict(user)}],
            "contexts": [{"name": "local", "context": {"cluster": "local", "user": "local"}}],
        },
        indent=2,
    )
