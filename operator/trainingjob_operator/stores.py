"""Take what the watches bring into the cache, and queue the jobs that it concerns."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Hashable, Iterator, Mapping, Set
from contextlib import contextmanager
from typing import Any

from trainingjob_operator.core.cache import Cache, Key

GATHER_SECONDS = 0.1
"""The pods of a gang change together, each with an event of its own: they are decided on together."""

logger = logging.getLogger(__name__)


@contextmanager
def _unreadable_ignored(kind: str, body: Mapping[str, Any]) -> Iterator[None]:
    """One object that cannot be read must not end what looks after all others."""
    try:
        yield
    except Exception:
        logger.exception("%s %s cannot be read and is ignored", kind, body["metadata"]["name"])


class PodStore:
    """Takes pods into the cache and queues the jobs that they belong to.

    enqueue: called with a job's key and the seconds to wait, when the job should be decided anew.
    ended: called with the namespace of a pod that has ended or is gone, so that what it held is free.
    """

    def __init__(self, cache: Cache, enqueue: Callable[[Key, float], None], ended: Callable[[str], None]) -> None:
        self._cache = cache
        self._enqueue = enqueue
        self._ended = ended

    def put(self, body: Mapping[str, Any]) -> Key | None:
        """A pod is there, or has changed."""
        with _unreadable_ignored("pod", body):
            over = (body.get("status") or {}).get("phase") in ("Succeeded", "Failed")
            return self._changed(self._cache.put_pod(body), over)
        return None

    def remove(self, body: Mapping[str, Any]) -> Key | None:
        """A pod was deleted."""
        with _unreadable_ignored("pod", body):
            return self._changed(self._cache.remove_pod(body), True)
        return None

    def retain(self, namespace: str | None, uids: Set[str], version: str) -> Set[Hashable]:
        """There are no other pods. Returns for which jobs that is news."""
        return {self._changed(key, True) for key in self._cache.retain_pods(namespace, uids, version)}

    def _changed(self, key: Key | None, over: bool) -> Key | None:
        if key is not None and self._cache.job(key) is not None:
            self._enqueue(key, GATHER_SECONDS)
        if key is not None and over:
            self._ended(key.namespace)
        return key


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
        if kind == "DELETED":
            self.remove(body)
        else:
            self.put(body)

    def put(self, body: Mapping[str, Any]) -> Key | None:
        """A job is there, or has changed."""
        with _unreadable_ignored("job", body):
            return self._changed(self._cache.put_job(body))
        return None

    def remove(self, body: Mapping[str, Any]) -> Key | None:
        """A job was deleted."""
        return self._changed(self._cache.remove_job(body))

    def retain(self, namespace: str | None, uids: Set[str], version: str) -> Set[Hashable]:
        """There are no other jobs. Returns of which that is news."""
        return {self._changed(key) for key in self._cache.retain_jobs(namespace, uids, version)}

    def _changed(self, key: Key | None) -> Key | None:
        if key is not None:
            self._enqueue(key)
        return key
