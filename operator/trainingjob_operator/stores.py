"""Take what the watches bring into the cache, and queue the jobs that it concerns."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from trainingjob_operator.core.cache import Cache, Key

GATHER_SECONDS = 0.1
"""The pods of a gang change together, each with an event of its own: they are decided on together."""
STARTING_GATHER_SECONDS = 0.5
"""The same while pods get nodes and start: nobody waits for what is decided then, it is only told."""

logger = logging.getLogger(__name__)


class PodStore:
    """Takes pods into the cache and queues the jobs that they belong to.

    enqueue: called with a job's key and the seconds to wait, when the job should be decided anew.
    """

    def __init__(self, cache: Cache, enqueue: Callable[[Key, float], None]) -> None:
        self._cache = cache
        self._enqueue = enqueue

    def put(self, body: Mapping[str, Any]) -> None:
        """A pod is there, or has changed."""
        phase = (body.get("status") or {}).get("phase")
        ends = phase in ("Succeeded", "Failed") or "deletionTimestamp" in body["metadata"]
        try:
            self._changed(self._cache.put_pod(body), GATHER_SECONDS if ends else STARTING_GATHER_SECONDS)
        except (KeyError, ValueError):
            logger.exception("pod %s cannot be read and is ignored", body["metadata"]["name"])

    def remove(self, body: Mapping[str, Any]) -> None:
        """A pod was deleted."""
        self._changed(self._cache.remove_pod(body))

    def replace(self, namespace: str | None, bodies: Sequence[Mapping[str, Any]], version: str) -> int:
        """These are all pods. Returns for how many jobs that is news."""
        changed = self._cache.replace_pods(namespace, bodies, version)
        for key in changed:
            self._changed(key)
        return len(changed)

    def _changed(self, key: Key | None, within: float = GATHER_SECONDS) -> None:
        if key is not None and self._cache.job(key) is not None:
            self._enqueue(key, within)


class JobStore:
    """Takes TrainingJobs into the cache and queues them; asks for a LIST when kopf has begun anew."""

    def __init__(self, cache: Cache, enqueue: Callable[[Key], None]) -> None:
        self.relist = asyncio.Event()
        self._cache = cache
        self._enqueue = enqueue

    def take(self, kind: str | None, body: Mapping[str, Any]) -> None:
        """An event of kopf's watch. A LIST (kind None) does not tell what vanished before it."""
        if kind is None:
            self.relist.set()
        key = self._cache.remove_job(body) if kind == "DELETED" else self._cache.put_job(body)
        if key is not None:
            self._enqueue(key)

    def replace(self, namespace: str | None, bodies: Sequence[Mapping[str, Any]], version: str) -> int:
        """These are all TrainingJobs. Returns of how many that is news."""
        changed = self._cache.replace_jobs(namespace, bodies, version)
        for key in changed:
            self._enqueue(key)
        return len(changed)
