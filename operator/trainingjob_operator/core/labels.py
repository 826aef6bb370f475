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
from .plan import PodRef, Relabel
from .writing import Obstructed, about, each, patch_pod

REPAIR_SECONDS = 5.0
"""Least time between two repairs of one job: whoever takes labels away again and again is not raced."""

logger = logging.getLogger(__name__)


class LabelRepair:
    """Labels of all jobs' pods. Raises `ApiError`, or `Obstructed` when the API server does not let them be changed."""

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

    async def look(self, job: Job) -> None:
        """Read the job's pods that no watch tells of, because the API server does not let their labels be put right."""
        for pod in self._cache.pods(job.uid):
            if not pod.watched and not pod.finished:
                found = await self._find(job, PodRef(pod.name, pod.uid))
                if found is None:
                    self._cache.lose_pod(pod)
                else:
                    self._cache.put_pod(found)

    async def put_right(self, job: Job, pods: Sequence[Relabel]) -> None:
        """Give these pods their labels, if it is not too soon."""
        if not pods or self.wait(job):
            return
        await each(self._patch(job, pod) for pod in pods)
        self._last[job.uid] = time.monotonic()

    async def found(self, job: Job, gone: Sequence[Relabel]) -> bool:
        """Whether one of these pods, of which nothing is seen, is there after all; it gets its labels back."""
        exist = await asyncio.gather(*(self._find(job, pod.pod) for pod in gone))
        there = {pod.pod.uid: found for pod, found in zip(gone, exist, strict=True) if found is not None}
        for uid in there:
            self._cache.readmit_pod(uid)  # first, so that its real end, once it is watched again, comes later
        try:
            await self.put_right(job, [pod for pod in gone if pod.pod.uid in there])
        except Obstructed:
            for found in there.values():
                self._cache.put_pod(found)  # Nobody will tell of it, and it is no loss.
            raise
        return bool(there)

    async def _find(self, job: Job, pod: PodRef) -> Manifest | None:
        """Quorum read: the pod, if it is there and still the job's."""
        try:
            found = await self._api.get(PODS, job.namespace, pod.name)
        except NotFound:
            return None
        ours = found["metadata"]["uid"] == pod.uid and controlling_job(found) == job.uid
        return found if ours else None

    async def _patch(self, job: Job, pod: Relabel) -> None:
        await patch_pod(self._api, self._cache, job.namespace, pod.pod, {"labels": pod.labels})
        logger.info("the labels of pod %s are put right", pod.pod.name, extra=about(job))
