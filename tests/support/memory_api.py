"""The API server's rules on resourceVersion, uid and names, in memory: for races that a real one does not offer.

What the real one does is tested in tests/cluster.
"""

from __future__ import annotations

import copy
from collections.abc import AsyncIterator, Callable
from typing import Any

from trainingjob_operator.kube.api import (
    TRAINING_JOBS,
    AlreadyExists,
    Conflict,
    Manifest,
    NotFound,
    ObjectList,
    Resource,
    WatchEvent,
)

Place = tuple[str, str, str]


def owner(uid: str) -> Manifest:
    """Reference to the TrainingJob of this uid, as the controller of an object."""
    return {"apiVersion": TRAINING_JOBS.api_version, "kind": TRAINING_JOBS.kind, "uid": uid, "controller": True}


class MemoryApi:
    """Implements `kube.api.Api` but watches. `calls` lists all requests as (verb, plural, name).

    `before` is called ahead of each request with (verb, plural, name): there a test changes the world or raises.
    """

    def __init__(self) -> None:
        self.objects: dict[Place, Manifest] = {}
        self.calls: list[tuple[str, str, str]] = []
        self.before: Callable[[str, str, str], None] = lambda verb, plural, name: None
        self._version = 100

    def put(self, resource: Resource, manifest: Manifest) -> Manifest:
        """Store an object as somebody else would; returns it with uid and resourceVersion."""
        stored = copy.deepcopy(manifest)
        stored["kind"] = resource.kind
        meta = stored["metadata"]
        self._version += 1
        meta["resourceVersion"] = str(self._version)
        meta.setdefault("uid", f"uid-{self._version}")
        meta.setdefault("namespace", "team")
        self.objects[(resource.plural, meta["namespace"], meta["name"])] = stored
        return copy.deepcopy(stored)

    def remove(self, resource: Resource, name: str) -> None:
        """Delete an object at once, as somebody else would."""
        del self.objects[(resource.plural, "team", name)]

    def writes(self) -> list[tuple[str, str, str]]:
        """The requests that change something."""
        return [call for call in self.calls if call[0] not in ("get", "list")]

    async def get(self, resource: Resource, namespace: str, name: str) -> Manifest:
        self._called("get", resource, name)
        return copy.deepcopy(self._find(resource, namespace, name))

    async def list(
        self, resource: Resource, namespace: str | None = None, label_selector: str = "", field_selector: str = ""
    ) -> ObjectList:
        self._called("list", resource, "")
        key, _, value = label_selector.partition("=")
        field, _, wanted = field_selector.partition("=")
        items = [
            copy.deepcopy(found)
            for (plural, space, _), found in self.objects.items()
            if plural == resource.plural
            and namespace in (None, space)
            and (not key or found["metadata"].get("labels", {}).get(key) == value)
            and (not field or _field(found, field) == wanted)
        ]
        return ObjectList(items, str(self._version))

    async def pages(
        self, resource: Resource, namespace: str | None = None, label_selector: str = "", field_selector: str = ""
    ) -> AsyncIterator[ObjectList]:
        yield await self.list(resource, namespace, label_selector)

    def watch(
        self, resource: Resource, namespace: str | None = None, label_selector: str = "", resource_version: str = ""
    ) -> AsyncIterator[WatchEvent]:
        raise NotImplementedError("nothing is watched in memory")

    async def create(self, resource: Resource, namespace: str, manifest: Manifest) -> Manifest:
        name = manifest["metadata"]["name"]
        self._called("create", resource, name)
        if (resource.plural, namespace, name) in self.objects:
            raise AlreadyExists(409, "AlreadyExists", f"{name} exists")
        return self.put(resource, manifest)

    async def delete(self, resource: Resource, namespace: str, name: str, uid: str) -> Manifest:
        self._called("delete", resource, name)
        found = self._find(resource, namespace, name)
        if found["metadata"]["uid"] != uid:
            raise Conflict(409, "Conflict", "another uid")
        del self.objects[(resource.plural, namespace, name)]
        return {"kind": "Status"}

    async def replace(self, resource: Resource, namespace: str, name: str, manifest: Manifest) -> Manifest:
        self._called("update", resource, name)
        found = self._find(resource, namespace, name)
        if found["metadata"]["resourceVersion"] != manifest["metadata"]["resourceVersion"]:
            raise Conflict(409, "Conflict", "the object has been modified")
        return self.put(resource, manifest)

    async def merge_patch(self, resource: Resource, namespace: str, name: str, patch: Manifest) -> Manifest:
        self._called("patch", resource, name)
        found = self._find(resource, namespace, name)
        if patch.get("metadata", {}).get("uid", found["metadata"].get("uid")) != found["metadata"].get("uid"):
            raise Conflict(409, "Conflict", "another uid")
        return self.put(resource, _merged(found, patch))

    async def put_status(self, resource: Resource, namespace: str, name: str, manifest: Manifest) -> Manifest:
        self._called("update", resource, name)
        found = self._find(resource, namespace, name)
        if any(found["metadata"][field] != manifest["metadata"][field] for field in ("uid", "resourceVersion")):
            raise Conflict(409, "Conflict", "the object has been modified")
        return self.put(resource, {**found, "status": manifest["status"]})

    def _called(self, verb: str, resource: Resource, name: str) -> None:
        self.before(verb, resource.plural, name)
        self.calls.append((verb, resource.plural, name))

    def _find(self, resource: Resource, namespace: str, name: str) -> Manifest:
        try:
            return self.objects[(resource.plural, namespace, name)]
        except KeyError:
            raise NotFound(404, "NotFound", f"{name} not found") from None


def _field(value: Any, path: str) -> Any:
    for part in path.split("."):
        value = value.get(part, {})
    return value


def _merged(target: Any, patch: Any) -> Any:
    """RFC 7386."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = _merged(merged.get(key), value)
    return merged
