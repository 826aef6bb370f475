"""Where the API server is and how to log in: a kubeconfig, or the pod's service account."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import kopf
from kubernetes import config as kubernetes_config
from kubernetes.client import Configuration


class ConnectionProblem(Exception):
    """No usable kubeconfig and no service account."""


class Connection:
    """The API server's address and credentials.

    Tokens are asked for anew with each request: the service account's file is read again every minute, as the kubelet
    rotates it, and a kubeconfig's `exec` plug-in is run again when its token expires.
    """

    def __init__(self, configuration: Any) -> None:
        self._configuration = configuration
        self.server: str = configuration.host.rstrip("/")
        self.proxy: str | None = configuration.proxy or None

    def authorization(self) -> str | None:
        """Value of the `Authorization` header, or None when a client certificate (or nothing) identifies us."""
        token: str | None = self._configuration.get_api_key_with_prefix("BearerToken", "authorization")
        if token:
            scheme, _, bare = token.strip().rpartition(" ")
            return f"{(scheme or 'Bearer').capitalize()} {bare}"
        if self._configuration.username:
            basic: str = self._configuration.get_basic_auth_token()
            return basic
        return None

    def ssl_context(self) -> ssl.SSLContext:
        """Verifies the server against the configured CA, and presents the client certificate if there is one.

        As kubectl does, it takes certificates that do not name their issuer's key, of which clusters have many: Python
        refuses them since 3.13.
        """
        context = ssl.create_default_context(cafile=self._configuration.ssl_ca_cert)
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        if not self._configuration.verify_ssl:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if self._configuration.cert_file:
            context.load_cert_chain(self._configuration.cert_file, self._configuration.key_file)
        return context

    def for_kopf(self) -> kopf.ConnectionInfo:
        """The same log-in for kopf's own watch."""
        scheme, _, token = (self.authorization() or "").rpartition(" ")
        return _KopfLogin(
            server=self.server,
            scheme=scheme or None,
            token=token or None,
            proxy_url=self.proxy,
            context=self.ssl_context(),
        )


@dataclass(frozen=True, kw_only=True)
class _KopfLogin(kopf.ConnectionInfo):  # type: ignore[misc]  # kopf: untyped
    """kopf would verify the server by a context of its own, which refuses some that ours takes."""

    context: ssl.SSLContext = field(compare=False)  # By its token kopf knows a log-in that was refused.

    def as_ssl_context(self) -> ssl.SSLContext:
        """Ours."""
        return self.context


def connect(kubeconfig: Path | None = None) -> Connection:
    """Log in: by the given kubeconfig, else by the pod's service account, else by the user's kubeconfig."""
    configuration = Configuration()
    try:
        _load(configuration, kubeconfig)
        connection = Connection(configuration)
        connection.ssl_context()  # A certificate that cannot be read is found here, not at the first request.
        return connection
    except Exception as error:  # The library trips over whatever is no kubeconfig, each time in another way.
        where = kubeconfig or "this pod's service account or ~/.kube/config"
        raise ConnectionProblem(f"cannot log in to Kubernetes with {where}: {error}") from error


def _load(configuration: Configuration, kubeconfig: Path | None) -> None:
    if kubeconfig is not None:
        kubernetes_config.load_kube_config(str(kubeconfig), client_configuration=configuration)
        return
    try:
        kubernetes_config.load_incluster_config(client_configuration=configuration)
    except kubernetes_config.ConfigException:
        kubernetes_config.load_kube_config(client_configuration=configuration)
