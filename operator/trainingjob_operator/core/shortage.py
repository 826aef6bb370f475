"""Who waits for a place in a ResourceQuota: where one becomes free, it would lie idle until somebody tries again."""

from __future__ import annotations

from collections.abc import Callable

from .cache import Cache, Key
from .obstacle import Obstacle, told
from .quota import never_fits


class Shortage:
    """Jobs that were refused a place. Of those of a namespace the oldest is woken when a pod there has ended, and when
    it has what it needs the next one: however many wait, the API server has little to do.

    wake: called with a job that is to try now, however often it was refused.
    """

    def __init__(self, cache: Cache, wake: Callable[[Key], None]) -> None:
        self._cache = cache
        self._wake = wake
        self._waiting: set[Key] = set()

    def refused(self, key: Key, why: Obstacle) -> None:
        """The API server refuses an object of this job."""
        if why.reason == "QuotaExceeded":
            self._waiting.add(key)

    def over(self, key: Key) -> None:
        """The job was not refused anything: if it waited before, there may be room for the next one."""
        if key in self._waiting:
            self._waiting.remove(key)
            self.freed(key.namespace)

    def forget(self, key: Key) -> None:
        """The job is gone."""
        self._waiting.discard(key)

    def freed(self, namespace: str) -> None:
        """A pod in this namespace has ended. Jobs that say that they never fit need more than that."""
        jobs = [job for key in self._waiting if key.namespace == namespace and (job := self._cache.job(key))]
        jobs = [job for job in jobs if not never_fits(told(job.status))]
        if jobs:
            oldest = min(jobs, key=lambda job: (job.created_at, job.uid))
            self._wake(Key(oldest.namespace, oldest.name))
