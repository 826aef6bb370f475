"""A job's objects besides its pods: made before the pods, looked after, and removed with them."""

from __future__ import annotations

import base64
import logging
import math
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from trainingjob_operator.kube.api import (
    BY_KIND,
    POD_GROUPS,
    SECRETS,
    SERVICES,
    AlreadyExists,
    Api,
    Manifest,
    NotFound,
)

from .cache import Cache
from .facts import Job, controlling_job
from .manifests import differs_for_good, leads_elsewhere
from .obstacle import foreign
from .plan import ObjectRef
from .queue import Retry
from .writing import Obstructed, about, each, explained

logger = logging.getLogger(__name__)


@dataclass
class _Memory:
    known: set[tuple[str, str]] = field(default_factory=set)
    """Kinds and names of children that this process has seen."""
    looked_at: float = field(default_factory=time.monotonic)
    """When they were last looked after (monotonic). A new process trusts the old one for a resync interval."""


class Children:
    """ConfigMaps, Secrets, Services and PodGroups of all jobs. Raises `ApiError`, `Obstructed` or `Retry`.

    interval: seconds after which children are looked after although no pod is to be made.
    """

    def __init__(self, api: Api, cache: Cache, interval: float) -> None:
        self._api = api
        self._cache = cache
        self._interval = interval
        self._memories: dict[str, _Memory] = {}

    def forget(self, job_uid: str) -> None:
        """The job is gone."""
        self._memories.pop(job_uid, None)

    def distrust(self, job_uid: str) -> None:
        """Something is missing: look after the job's children at the next opportunity."""
        self._memories.setdefault(job_uid, _Memory()).looked_at = -math.inf

    def due(self, job_uid: str) -> bool:
        """Whether the children are to be looked after although no pod is to be made."""
        memory = self._memories.setdefault(job_uid, _Memory())
        return time.monotonic() - memory.looked_at >= self._interval

    async def ensure(self, job: Job, manifests: Sequence[Manifest], creating: bool) -> None:
        """See to it that these children exist. A Secret may only be created, never read: without pods to come (not
        `creating`) it is left alone."""
        if not manifests:
            return
        memory = self._memories.setdefault(job.uid, _Memory())
        await each(self._ensure_child(job, manifest, creating, memory) for manifest in manifests)
        memory.looked_at = time.monotonic()

    async def _ensure_child(self, job: Job, manifest: Manifest, creating: bool, memory: _Memory) -> None:
        kind, name = manifest["kind"], manifest["metadata"]["name"]
        if BY_KIND[kind] is SECRETS:
            if creating:
                await self._create_child(job, _with_token(manifest), readable=False)
            return
        # A new job's children are not there: ask once. Later they are: look first.
        look_first = not creating or (kind, name) in memory.known
        found = await self._find_ours(job, kind, name) if look_first else None
        if found is None:
            found = await self._create_child(job, manifest)
        if kind == SERVICES.kind and found is not None and leads_elsewhere(found, manifest):
            await self._api.delete(SERVICES, job.namespace, name, found["metadata"]["uid"])
            await self._create_child(job, manifest)
        if kind == POD_GROUPS.kind and found is not None:
            await self._align(job, found, manifest)
        memory.known.add((kind, name))

    async def _align(self, job: Job, found: Manifest, wanted: Manifest) -> None:
        """Make a PodGroup say what is wanted. What is immutable in it changes only while no pod runs."""
        name, uid = found["metadata"]["name"], found["metadata"]["uid"]
        if differs_for_good(found, wanted):
            if any(pod.pod_group == name and not pod.finished for pod in self._cache.pods(job.uid)):
                return
            await self._api.delete(POD_GROUPS, job.namespace, name, uid)
            raise Retry(f"PodGroup {name} is deleted, to be made anew with what has changed in the job")
        policy = wanted["spec"]["schedulingPolicy"]
        if found["spec"].get("schedulingPolicy") != policy:
            patch = {"metadata": {"uid": uid}, "spec": {"schedulingPolicy": policy}}
            await self._api.merge_patch(POD_GROUPS, job.namespace, name, patch)

    async def _create_child(self, job: Job, manifest: Manifest, readable: bool = True) -> Manifest | None:
        """The new child, or the one that is there already; None for a Secret, which may not be read."""
        kind, name = manifest["kind"], manifest["metadata"]["name"]
        try:
            with explained(kind, name):
                return await self._api.create(BY_KIND[kind], job.namespace, manifest)
        except AlreadyExists:
            # The Secret's name carries the job's uid: nobody else's has it.
            found = await self._find_ours(job, kind, name) if readable else None
            if readable and found is None:
                raise
            return found

    async def _find_ours(self, job: Job, kind: str, name: str) -> Manifest | None:
        """None: there is none. Raises `Obstructed` for one of somebody else."""
        try:
            found = await self._api.get(BY_KIND[kind], job.namespace, name)
        except NotFound:
            return None
        if controlling_job(found) != job.uid:
            raise Obstructed(foreign(kind, name))
        return found

    async def delete(self, job: Job, child: ObjectRef) -> None:
        """Delete a child, if it is there and the job's own."""
        resource = BY_KIND[child.kind]
        try:
            found = await self._api.get(resource, job.namespace, child.name)
            if controlling_job(found) == job.uid:
                with explained(child.kind, child.name, "deleted"):
                    await self._api.delete(resource, job.namespace, child.name, found["metadata"]["uid"])
        except NotFound:
            logger.debug("%s %s is gone already", child.kind, child.name, extra=about(job))


def _with_token(manifest: Manifest) -> Manifest:
    """A Secret with a fresh random Ray token of 256 bits."""
    token = base64.b64encode(secrets.token_hex(32).encode()).decode()
    return {**manifest, "data": {"token": token}}
