"""Pulls what trainers report: `GET http://<pod IP>:8080/progress` of each running job's head pod.

The newest report stays in memory, for decisions and for Prometheus. A job is queued only when something changed that
its status shows at once (`_essence`), or when writing plain progress is due.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from types import TracebackType
from typing import Any

import aiohttp

from trainingjob_operator.core.cache import Key
from trainingjob_operator.core.facts import PodFacts, ProgressFacts
from trainingjob_operator.core.queue import WorkQueue
from trainingjob_operator.core.reported import ProgressReport

PORT = 8080
TIMEOUT_SECONDS = 2.0
MAX_BODY_BYTES = 64 * 1024
POLLERS = 64
POLLS_PER_SECOND = 200.0
"""Of all jobs together: up to 200 jobs are polled every second, more of them less often."""
MIN_INTERVAL_SECONDS = 1.0
BACKOFF = 4.0
"""Steep: a silent head is asked again in any case once it is ready."""
MAX_BACKOFF_SECONDS = 15.0
STATUS_WRITES_PER_SECOND = 10.0
"""Of all jobs together, for writes that carry nothing but progress: each takes the API server some 6 ms."""

logger = logging.getLogger(__name__)


class BadReport(Exception):
    """An answer that is not this pod's progress."""


@dataclass
class _Target:
    key: Key
    pod: PodFacts
    facts: ProgressFacts
    failures: int = 0
    told: ProgressReport | None = None
    """The report that the job was last queued for, and when (monotonic)."""
    told_at: float = float("-inf")


class ProgressPoller:
    """Knows the newest progress of all jobs. An async context manager, as it owns HTTP connections.

    enqueue: called with a job's key and the seconds to wait, when the job should be decided anew.
    progress_interval: least seconds between two status writes of one job that carry nothing but progress.
    unreachable_after: seconds of silence after which a decision is due.
    """

    def __init__(
        self,
        enqueue: Callable[[Key, float], None],
        now: Callable[[], datetime],
        progress_interval: float = 15.0,
        unreachable_after: float = 60.0,
        port: int = PORT,
    ) -> None:
        self._enqueue = enqueue
        self._now = now
        self._progress_interval = progress_interval
        self._unreachable_after = unreachable_after
        self._port = port
        self._targets: dict[str, _Target] = {}
        self._starting: set[str] = set()
        self._last: dict[str, ProgressFacts] = {}
        self._queue: WorkQueue[str] = WorkQueue()
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> ProgressPoller:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=POLLERS),
            timeout=aiohttp.ClientTimeout(total=TIMEOUT_SECONDS),
            headers={"User-Agent": "trainingjob-operator"},
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def run(self) -> None:
        """Poll until cancelled."""
        await self._queue.run(self._poll, POLLERS)

    @property
    def interval(self) -> float:
        """Seconds between two polls of one job."""
        return max(MIN_INTERVAL_SECONDS, len(self._targets) / POLLS_PER_SECOND)

    @property
    def write_interval(self) -> float:
        """Seconds between two status writes of one job that carry nothing but progress."""
        jobs = len(self._targets) + len(self._starting)
        return max(self._progress_interval, jobs / STATUS_WRITES_PER_SECOND)

    def facts(self, job_uid: str) -> ProgressFacts:
        """The newest progress of a job; what a head reported stays known when its successor has not answered yet."""
        return self._last.get(job_uid, ProgressFacts())

    def follow(self, key: Key, job_uid: str, pod: PodFacts | None, starting: bool = False) -> None:
        """Poll this pod for the job from now on; None: nobody. starting: it has none yet, and its status changes."""
        if starting:
            self._starting.add(job_uid)
        else:
            self._starting.discard(job_uid)
        known = self._targets.get(job_uid)
        if pod is None:
            if known is not None:
                del self._targets[job_uid]
                self._queue.forget(job_uid)
            return
        if known is not None and known.pod.uid == pod.uid:
            if pod.ready and not known.pod.ready:
                known.failures = 0
                self._queue.add(job_uid)
            known.pod = pod
            return
        facts = replace(self.facts(job_uid), unreachable_since=None)
        self._last[job_uid] = facts
        self._targets[job_uid] = _Target(key, pod, facts)
        self._queue.add(job_uid)

    def forget(self, job_uid: str) -> None:
        """The job is gone."""
        self._targets.pop(job_uid, None)
        self._starting.discard(job_uid)
        self._last.pop(job_uid, None)
        self._queue.forget(job_uid)

    async def _poll(self, job_uid: str) -> float | None:
        target = self._targets.get(job_uid)
        if target is None:
            return None
        try:
            report = await self._fetch(job_uid, target.pod)
        except (aiohttp.ClientError, TimeoutError, BadReport) as error:
            if self._targets.get(job_uid) is target:
                self._missed(job_uid, target, error)
        else:
            if self._targets.get(job_uid) is target:
                self._received(job_uid, target, report)
        return min(self.interval * BACKOFF**target.failures, max(self.interval, MAX_BACKOFF_SECONDS))

    async def _fetch(self, job_uid: str, pod: PodFacts) -> ProgressReport:
        if self._session is None:
            raise RuntimeError("the poller is used outside of its `async with` block")
        if not pod.ip:
            raise BadReport("the pod has no address")
        host = f"[{pod.ip}]" if ":" in pod.ip else pod.ip
        url = f"http://{host}:{self._port}/progress"
        async with self._session.get(url, allow_redirects=False) as response:
            if response.status != 200:
                raise BadReport(f"HTTP {response.status}")
            body = await _read_at_most(response.content, MAX_BODY_BYTES)
        try:
            report = ProgressReport.model_validate_json(body)
        except ValueError as error:
            raise BadReport(f"not a progress report: {error}") from error
        if (report.job_uid, report.pod_uid) != (job_uid, pod.uid):
            raise BadReport("the address belongs to another pod now")
        return report

    def _received(self, job_uid: str, target: _Target, report: ProgressReport) -> None:
        before = target.facts
        target.failures = 0
        target.facts = self._last[job_uid] = ProgressFacts(report=report, fetched_at=self._now())
        silent = before.unreachable_since is not None
        urgent = silent or target.told is None or _essence(target.told) != _essence(report)
        due = target.told != report and time.monotonic() - target.told_at >= self.write_interval
        if urgent or due:
            target.told, target.told_at = report, time.monotonic()
            self._enqueue(target.key, 0.0)

    def _missed(self, job_uid: str, target: _Target, error: Exception) -> None:
        target.failures = min(target.failures + 1, 10)
        if target.facts.unreachable_since is None:
            target.facts = self._last[job_uid] = replace(target.facts, unreachable_since=self._now())
            self._enqueue(target.key, self._unreachable_after + 1.0)
            reason = str(error) or type(error).__name__
            logger.debug("no progress from %s: %s", target.pod.name, reason, extra={"job": str(target.key)})


def _essence(report: ProgressReport) -> dict[str, Any]:
    """What of a report a person would want to see at once: all but the counters that move with each step."""
    return report.model_dump(exclude={"progress"})


async def _read_at_most(stream: aiohttp.StreamReader, limit: int) -> bytes:
    body = bytearray()
    async for chunk in stream.iter_any():
        body += chunk
        if len(body) > limit:
            raise BadReport(f"the answer is longer than {limit} bytes")
    return bytes(body)
