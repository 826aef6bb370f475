"""Kubernetes events about jobs (docs/events.md): each told once, repetitions counted."""

from __future__ import annotations

import hashlib
import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from trainingjob_operator.core.facts import Job
from trainingjob_operator.core.plan import EventFact
from trainingjob_operator.kube.api import EVENTS, TRAINING_JOBS, Api, ApiError, Manifest, NotFound

COMPONENT = "trainingjob-operator"
SERIES_SECONDS = 600.0
"""The same event about the same job within this time is counted on the first one, not told again."""
SERIES_KEPT = 4096

logger = logging.getLogger(__name__)


@dataclass
class _Series:
    name: str
    count: int
    last: float


class EventRecorder:
    """Writes core/v1 Events. A lost event is logged and harmless: nothing is decided by events."""

    def __init__(self, api: Api, now: Callable[[], datetime]) -> None:
        self._api = api
        self._now = now
        self._series: OrderedDict[tuple[str, EventFact], _Series] = OrderedDict()

    async def publish(self, job: Job, event: EventFact) -> None:
        """Tell an event about a job; never raises `ApiError`."""
        log = logging.WARNING if event.type == "Warning" else logging.INFO
        logger.log(log, "%s: %s", event.reason, event.message, extra={"job": f"{job.namespace}/{job.name}"})
        key = (job.uid, event)
        series = self._series.get(key)
        try:
            if series is not None and time.monotonic() - series.last < SERIES_SECONDS:
                try:
                    await self._count(job, series)
                    return
                except NotFound:
                    logger.debug("event %s expired", series.name)
            await self._create(job, event, key)
        except ApiError as error:
            logger.warning("event %s is lost: %s", event.reason, error, extra={"job": f"{job.namespace}/{job.name}"})

    async def _count(self, job: Job, series: _Series) -> None:
        patch = {"count": series.count + 1, "lastTimestamp": self._timestamp()}
        await self._api.merge_patch(EVENTS, job.namespace, series.name, patch)
        series.count += 1
        series.last = time.monotonic()

    async def _create(self, job: Job, event: EventFact, key: tuple[str, EventFact]) -> None:
        digest = hashlib.sha256(f"{job.uid}/{event}/{time.time_ns()}".encode()).hexdigest()[:16]
        name = f"{job.name}.{digest}"
        await self._api.create(EVENTS, job.namespace, self._manifest(job, event, name))
        self._series[key] = _Series(name, 1, time.monotonic())
        self._series.move_to_end(key)
        if len(self._series) > SERIES_KEPT:
            self._series.popitem(last=False)

    def _manifest(self, job: Job, event: EventFact, name: str) -> Manifest:
        now = self._timestamp()
        return {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": name, "namespace": job.namespace},
            "involvedObject": {
                "apiVersion": TRAINING_JOBS.api_version,
                "kind": TRAINING_JOBS.kind,
                "name": job.name,
                "namespace": job.namespace,
                "uid": job.uid,
                "resourceVersion": job.resource_version,
            },
            "type": event.type,
            "reason": event.reason,
            "message": event.message[:1024],
            "source": {"component": COMPONENT},
            "reportingComponent": COMPONENT,
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
        }

    def _timestamp(self) -> str:
        return self._now().strftime("%Y-%m-%dT%H:%M:%SZ")
