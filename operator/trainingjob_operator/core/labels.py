"""Puts labels of pods right that somebody has changed or removed.

Pods are known by owner and name, so most labels are no more than ornaments. Two are not: by `job-uid` pods are watched
(a pod without it looks as if it were gone), and by `job-uid` and `member` the Service finds them.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence

from trainingjob_operator.kube.api import PODS, Api, Manifest, NotFound

from .cache import Cache
from .facts import Job, controlling_job
from .plan import Relabel
from .writing import about, unless_gone

REPAIR_SECONDS = 5.0
"""Least time between two repairs of one job: whoever takes labels away again and again is not raced."""

logger = logging.getLogger(__name__)


class LabelRepair:
    """Labels of all jobs' pods. Raises `ApiError` when the API server does not answer."""

    def __init__(self, api: Api, cache: Cache) -> None:
        self._api = api
        self._cache = cache
        self._last: dict[str, float] = {}

    def wait(self, job: Job) -> float:
        """Seconds until labels of the job's pods may be put right again."""
        return max(0.0, self._last.get(job.uid, float("-inf")) + REPAIR_SECONDS - time.monotonic())

    def forget(self, job_uid: str) -> None:
        """The job is gone."""
        self._last.pop(job_uid, None)

    async def put_right(self, job: Job, pods: Sequence[Relabel]) -> None:
        """Give these pods their labels, if it is not too soon."""
        if not pods or self.wait(job):
            return
        self._last[job.uid] = time.monotonic()
        await asyncio.gather(*(self._patch(job, pod) for pod in pods))

    async def found(self, job: Job, gone: Sequence[Relabel]) -> bool:
        """Whether one of these pods, of which nothing is seen, is there after all; it gets its labels back."""
        exist = await asyncio.gather(*(self._exists(job, pod) for pod in gone))
        there = [pod for pod, exists in zip(gone, exist, strict=True) if exists]
        for pod in there:
            self._cache.readmit_pod(pod.pod.uid)  # first, so that its real end, once it is watched again, comes later
        await self.put_right(job, there)
        return bool(there)

    async def _exists(self, job: Job, pod: Relabel) -> bool:
        """Quorum read: the pod is there and still the job's."""
        try:
            found = await self._api.get(PODS, job.namespace, pod.pod.name)
        except NotFound:
            return False
        return _uid(found) == pod.pod.uid and controlling_job(found) == job.uid

    async def _patch(self, job: Job, pod: Relabel) -> None:
        patch = {"metadata": {"uid": pod.pod.uid, "labels": pod.labels}}
        async with unless_gone(self._api, self._cache, job.namespace, pod.pod):
            self._cache.put_pod(await self._api.merge_patch(PODS, job.namespace, pod.pod.name, patch))
            logger.info("the labels of pod %s are put right", pod.pod.name, extra=about(job))


def _uid(pod: Manifest) -> str:
    return str(pod["metadata"]["uid"])
