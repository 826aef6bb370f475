"""The Kubernetes API as the rest of the operator sees it: resources, errors, and the calls it makes.

Knows no HTTP library, so that the core may import it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Protocol

Manifest = dict[str, Any]


@dataclass(frozen=True)
class Resource:
    """A kind of object, as the API server's URLs and metrics name it."""

    group: str
    version: str
    plural: str
    kind: str

    @property
    def api_version(self) -> str:
        """`v1` for the core group, else `group/version`."""
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, namespace: str | None = None, name: str | None = None, subresource: str | None = None) -> str:
        """URL path of the collection, of one object, or of its subresource; cluster-wide without a namespace."""
        parts = ["/apis", self.group, self.version] if self.group else ["/api", self.version]
        if namespace is not None:
            parts += ["namespaces", namespace]
        parts += [part for part in (self.plural, name, subresource) if part is not None]
        return "/".join(parts)


TRAINING_JOBS = Resource("trainingjob.io", "v1alpha1", "trainingjobs", "TrainingJob")
PODS = Resource("", "v1", "pods", "Pod")
SERVICES = Resource("", "v1", "services", "Service")
CONFIG_MAPS = Resource("", "v1", "configmaps", "ConfigMap")
SECRETS = Resource("", "v1", "secrets", "Secret")
EVENTS = Resource("", "v1", "events", "Event")
WORKLOADS = Resource("kueue.x-k8s.io", "v1beta2", "workloads", "Workload")
POD_GROUPS = Resource("scheduling.k8s.io", "v1beta1", "podgroups", "PodGroup")
NAMESPACES = Resource("", "v1", "namespaces", "Namespace")
LEASES = Resource("coordination.k8s.io", "v1", "leases", "Lease")

BY_KIND = {resource.kind: resource for resource in (PODS, SERVICES, CONFIG_MAPS, SECRETS, POD_GROUPS)}
"""The kinds of a job's children."""


class ApiError(Exception):
    """A request that the API server refused (`status` is the HTTP code) or never answered (`status` 0)."""

    def __init__(self, status: int, reason: str, message: str, retry_after: float | None = None) -> None:
        super().__init__(f"{status} {reason}: {message}" if status else message)
        self.status = status
        self.reason = reason
        self.message = message
        self.retry_after = retry_after


class Unauthorized(ApiError):
    """401: the credentials are missing, wrong or expired."""


class Forbidden(ApiError):
    """403: a right is missing, a quota is exhausted, or an admission plug-in refused."""


class NotFound(ApiError):
    """404."""


class Conflict(ApiError):
    """409: resourceVersion or uid precondition does not hold any more."""


class AlreadyExists(Conflict):
    """409 on create: an object of this name is there."""


class Gone(ApiError):
    """410: this resourceVersion or continue token is too old; list again."""


class Invalid(ApiError):
    """422: the object breaks its schema or an immutable field."""


class TooManyRequests(ApiError):
    """429: `retry_after` says when to come back."""


class Unreachable(ApiError):
    """No answer: connection refused or lost, time-out."""


_BY_STATUS: dict[int, type[ApiError]] = {
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    410: Gone,
    422: Invalid,
    429: TooManyRequests,
}


def error_from_status(status: Manifest, code: int | None = None, retry_after: float | None = None) -> ApiError:
    """The typed error for a `Status` object of the API server (https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/status/)."""
    number = int(status.get("code") or code or 0)
    reason = str(status.get("reason") or "Unknown")
    kind = AlreadyExists if reason == "AlreadyExists" else _BY_STATUS.get(number, ApiError)
    if retry_after is None:
        retry_after = (status.get("details") or {}).get("retryAfterSeconds")
    return kind(number, reason, str(status.get("message") or reason), retry_after)


@dataclass(frozen=True)
class ObjectList:
    """Objects of a LIST, and the resourceVersion at which they were so."""

    items: list[Manifest]
    resource_version: str


@dataclass(frozen=True)
class WatchEvent:
    """One line of a watch: `ADDED`, `MODIFIED`, `DELETED` or `BOOKMARK`."""

    type: str
    object: Manifest


class Api(Protocol):
    """The requests that the operator makes. All raise `ApiError`."""

    async def get(self, resource: Resource, namespace: str, name: str) -> Manifest:
        """Quorum read of one object."""

    async def list(
        self, resource: Resource, namespace: str | None = None, label_selector: str = "", field_selector: str = ""
    ) -> ObjectList:
        """Quorum read of a collection, all of it."""

    def pages(
        self, resource: Resource, namespace: str | None = None, label_selector: str = "", field_selector: str = ""
    ) -> AsyncIterator[ObjectList]:
        """The same, a page at a time; all are of the first one's resourceVersion."""

    async def version(self, resource: Resource, namespace: str | None = None) -> str:
        """The resourceVersion that a LIST of the collection would have now."""

    def watch(
        self, resource: Resource, namespace: str | None = None, label_selector: str = "", resource_version: str = ""
    ) -> AsyncIterator[WatchEvent]:
        """Changes after `resource_version`; ends when the server ends it; raises `Gone` when the version is too old."""

    async def create(self, resource: Resource, namespace: str, manifest: Manifest) -> Manifest:
        """POST; raises `AlreadyExists`."""

    async def delete(self, resource: Resource, namespace: str, name: str, uid: str) -> Manifest:
        """DELETE; returns its last state or a `Status`. Raises `NotFound`, or `Conflict` if it has another uid."""

    async def replace(self, resource: Resource, namespace: str, name: str, manifest: Manifest) -> Manifest:
        """PUT; `metadata.resourceVersion` is a precondition (`Conflict`)."""

    async def merge_patch(self, resource: Resource, namespace: str, name: str, patch: Manifest) -> Manifest:
        """PATCH with a JSON merge patch; `metadata.uid` in it is a precondition (`Conflict`)."""

    async def put_status(self, resource: Resource, namespace: str, name: str, manifest: Manifest) -> Manifest:
        """PUT of the status subresource; `metadata.resourceVersion` is a precondition (`Conflict`)."""
