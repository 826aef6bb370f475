"""Kubernetes events about jobs (docs/events.md): each told once, repetitions counted.

Nothing is decided by events, so they take little time from what is: they are written in their order, with the time at
which they came up, and while jobs are worked on two a second at most. While 500 jobs start, their events would be a
tenth of the API server's work.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from trainingjob_operator.core.facts import Job
from trainingjob_operator.core.plan import EventFact
from trainingjob_operator.core.writing import about
from trainingjob_operator.kube.api import EVENTS, TRAINING_JOBS, Api, ApiError, Manifest, NotFound

COMPONENT = "trainingjob-operator"
SERIES_SECONDS = 600.0
"""The same event about the same job within this time is counted on the first one, not told again."""
SERIES_KEPT = 4096
QUIET_SECONDS = 1.0
"""Without any job to work on, after which events are written as fast as they can be."""
BETWEEN_SECONDS = 0.5
"""Between two events while jobs are worked on."""
LATEST_SECONDS = 60.0
"""After which an event is written at once, whatever is worked on."""
WAITING = 4096
"""Events that may wait to be written; what is told beyond is lost."""

logger = logging.getLogger(__name__)


@dataclass
class _Series:
    name: str
    count: int
    last: float


class _Told(NamedTuple):
    """An event that is to be written."""

    job: Job
    event: EventFact
    at: datetime
    by: float
    """When it is written at the latest, whatever is worked on (of the event loop's clock)."""


class EventRecorder:
    """Writes core/v1 Events. A lost event is logged and harmless: nothing is decided by events.

    rest: returns once no job has been worked on for this many seconds.
    """

    def __init__(self, api: Api, now: Callable[[], datetime], rest: Callable[[float], Awaitable[None]]) -> None:
        self._api = api
        self._now = now
        self._rest = rest
        self._waiting: asyncio.Queue[_Told] = asyncio.Queue(WAITING)
        self._series: OrderedDict[tuple[str, EventFact], _Series] = OrderedDict()

    def publish(self, job: Job, event: EventFact) -> None:
        """Tell an event about a job: log it, and have `run` write it."""
        log = logging.WARNING if event.type == "Warning" else logging.INFO
        logger.log(log, "%s: %s", event.reason, event.message, extra=about(job))
        by = asyncio.get_running_loop().time() + LATEST_SECONDS
        try:
            self._waiting.put_nowait(_Told(job, event, self._now(), by))
        except asyncio.QueueFull:
            _lost(job, event, f"{WAITING} others wait to be written")

    async def run(self) -> None:
        """Write what is told, until cancelled."""
        loop = asyncio.get_running_loop()
        next_turn = loop.time()
        while True:
            told = await self._waiting.get()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(min(told.by, next_turn)):
                    await self._rest(QUIET_SECONDS)
            next_turn = loop.time() + BETWEEN_SECONDS
            try:
                await self._write(told)
            except ApiError as error:
                _lost(told.job, told.event, str(error))
            except Exception:  # a defect, which must not end what writes the events of all jobs
                logger.exception("event %s is lost", told.event.reason, extra=about(told.job))
            self._waiting.task_done()

    async def flush(self, seconds: float) -> None:
        """Wait until all is written, but no longer than this."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._waiting.join()

    async def _write(self, told: _Told) -> None:
        series = self._series.get((told.job.uid, told.event))
        if series is not None and time.monotonic() - series.last < SERIES_SECONDS:
            try:
                await self._count(told, series)
                return
            except NotFound:
                logger.debug("event %s expired", series.name)
        await self._create(told)

    async def _count(self, told: _Told, series: _Series) -> None:
        patch = {"count": series.count + 1, "lastTimestamp": _timestamp(told.at)}
        await self._api.merge_patch(EVENTS, told.job.namespace, series.name, patch)
        series.count += 1
        series.last = time.monotonic()

    async def _create(self, told: _Told) -> None:
        job, event, key = told.job, told.event, (told.job.uid, told.event)
        digest = hashlib.sha256(f"{job.uid}/{event}/{time.time_ns()}".encode()).hexdigest()[:16]
        name = f"{job.name}.{digest}"
        await self._api.create(EVENTS, job.namespace, _manifest(told, name))
        self._series[key] = _Series(name, 1, time.monotonic())
        self._series.move_to_end(key)
        if len(self._series) > SERIES_KEPT:
            self._series.popitem(last=False)


def _manifest(told: _Told, name: str) -> Manifest:
    job, event, at = told.job, told.event, _timestamp(told.at)
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
        "firstTimestamp": at,
        "lastTimestamp": at,
        "count": 1,
    }


def _timestamp(at: datetime) -> str:
    return at.strftime("%Y-%m-%dT%H:%M:%SZ")


def _lost(job: Job, event: EventFact, why: str) -> None:
    logger.warning("event %s is lost: %s", event.reason, why, extra=about(job))
