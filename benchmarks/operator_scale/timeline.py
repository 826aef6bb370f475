"""When what happened to which job, as a watch of its namespace sees it."""

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Set
from types import TracebackType
from typing import Any, Self

from trainingjob_operator.kube.api import PODS
from trainingjob_operator.kube.client import Client
from trainingjob_operator.kube.informer import Informer

from benchmarks.operator_scale.jobs import OURS, PODS_PER_JOB, Kind

Object = Mapping[str, Any]


class _Store:
    """Hands on each state of an object."""

    def __init__(self, seen: Callable[[Object], None]) -> None:
        self._seen = seen

    def put(self, body: Object) -> None:
        self._seen(body)

    def remove(self, body: Object) -> None:
        """Deletions are no part of a timeline."""

    def retain(self, namespace: str | None, uids: Set[str], version: str) -> Set[Hashable]:
        """Nor is what vanished."""
        return set()


class Timeline:
    """Follows one namespace while in its `async with` block. Times are monotonic seconds, by the job's name.

    created: all pods exist. ready: all pods are Ready. told: the job's status says so, or that it is suspended.
    """

    def __init__(self, client: Client, namespace: str, kind: Kind = OURS) -> None:
        self._kind = kind
        self.created: dict[str, float] = {}
        self.ready: dict[str, float] = {}
        self.told: dict[str, float] = {}
        self._existing: dict[str, set[str]] = defaultdict(set)
        self._ready: dict[str, set[str]] = defaultdict(set)
        self._informers = [
            Informer(client, PODS, _Store(self._pod), namespace),
            Informer(client, kind.resource, _Store(self._job), namespace),
        ]
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(informer.run()) for informer in self._informers]
        for informer in self._informers:
            await informer.synced.wait()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def reached(self, times: Mapping[str, float], jobs: int, seconds: float) -> float:
        """The instant at which `times` (one of the timeline's own) held all `jobs`."""
        async with asyncio.timeout(seconds):
            while len(times) < jobs:
                await asyncio.sleep(0.05)
        return max(times.values())

    def _pod(self, body: Object) -> None:
        meta, status = body["metadata"], body.get("status") or {}
        job, name = meta["labels"][self._kind.label], meta["name"]
        self._existing[job].add(name)
        if len(self._existing[job]) == PODS_PER_JOB:
            self.created.setdefault(job, time.monotonic())
        if any(c["type"] == "Ready" and c["status"] == "True" for c in status.get("conditions") or ()):
            self._ready[job].add(name)
            if len(self._ready[job]) == PODS_PER_JOB:
                self.ready.setdefault(job, time.monotonic())

    def _job(self, body: Object) -> None:
        if self._kind.is_told(body):
            self.told.setdefault(body["metadata"]["name"], time.monotonic())
