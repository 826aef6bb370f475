"""A queue of keys that wait to be worked on: each at most once, each by one worker at a time."""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable
from contextlib import asynccontextmanager
from typing import Generic, TypeVar

from trainingjob_operator.core.pauses import doubled

K = TypeVar("K", bound=Hashable)

logger = logging.getLogger(__name__)


FIRST_PAUSE_SECONDS = 0.2
LAST_PAUSE_SECONDS = 5.0


class Retry(Exception):
    """Raised by work that cannot be done now: it comes back after a backoff, and the log has no traceback.

    within: seconds after which it wants to come back at the latest.
    """

    def __init__(self, why: str, within: float | None = None) -> None:
        super().__init__(why)
        self.within = within


class ServerTrouble(Retry):
    """The server does not answer, or asks for less: a reason for all work to slow down.

    after: seconds that the server wants to be left alone, if it said so.
    """

    def __init__(self, message: str, after: float | None = None) -> None:
        super().__init__(message)
        self.after = after or 0.0


class WorkQueue(Generic[K]):
    """Deduplicating queue of keys with delays and, after errors, exponential backoff per key.

    A key that is added while it is worked on is worked on again afterwards: no change is missed, and none is
    handled twice at a time.

    While the server is in trouble, one key at a time is tried, with growing pauses: however many keys wait, it gets
    little to do; and as soon as it answers, none has to wait any longer.

    first_retry, last_retry: seconds before the first retry after an error, and the most that doubling leads to.
    on_done: told after each piece of work how many seconds it took, and the error, if it failed.
    """

    def __init__(
        self,
        first_retry: float = 0.2,
        last_retry: float = 60.0,
        on_done: Callable[[float, Exception | None], None] | None = None,
    ) -> None:
        self._first_retry = first_retry
        self._last_retry = last_retry
        self._on_done = on_done
        self._ready: deque[K] = deque()
        self._waiting: dict[K, float] = {}  # and since when (monotonic)
        self._working: set[K] = set()
        self._again: set[K] = set()
        self._timers: dict[K, asyncio.TimerHandle] = {}
        self._failures: dict[K, int] = {}
        self._idle_workers: deque[asyncio.Future[None]] = deque()
        self._resting = asyncio.Event()
        self._resting.set()
        self._rests_since = -math.inf  # (monotonic)
        self._stopping = False
        self._troubles = 0
        self._resume_at = 0.0
        self._probe = asyncio.Lock()

    def __len__(self) -> int:
        """Keys that could be worked on now and are not."""
        return len(self._ready)

    def age(self) -> float:
        """Seconds that the key has waited whose turn is next."""
        return time.monotonic() - self._waiting[self._ready[0]] if self._ready else 0.0

    def add(self, key: K) -> None:
        """Work on `key` as soon as a worker is free."""
        timer = self._timers.pop(key, None)
        if timer is not None:
            timer.cancel()
        if key in self._working:
            self._again.add(key)
        elif key not in self._waiting:
            self._waiting[key] = time.monotonic()
            self._ready.append(key)
            if not self._stopping:
                self._resting.clear()
            self._wake_one()

    def add_after(self, key: K, seconds: float) -> None:
        """Work on `key` in `seconds` at the latest; the earliest of several calls wins."""
        if seconds <= 0:
            self.add(key)
            return
        loop = asyncio.get_running_loop()
        timer = self._timers.get(key)
        if timer is not None:
            if timer.when() <= loop.time() + seconds:
                return
            timer.cancel()
        self._timers[key] = loop.call_later(seconds, self.add, key)

    def add_anew(self, key: K) -> None:
        """Work on `key` as if it had never failed: what it failed for may be over."""
        self.forget(key)
        self.add(key)

    def forget(self, key: K) -> None:
        """Drop a key's delay and its history of errors; what is queued already stays."""
        timer = self._timers.pop(key, None)
        if timer is not None:
            timer.cancel()
        self._failures.pop(key, None)

    async def rest(self, seconds: float) -> None:
        """Wait until no key was worked on, nor could be, for so many seconds; or until `run` is to end."""
        while True:
            await self._resting.wait()
            missing = self._rests_since + seconds - time.monotonic()
            if missing <= 0 or self._stopping:
                return
            await asyncio.sleep(missing)

    async def run(self, work: Callable[[K], Awaitable[float | None]], workers: int, grace: float = 0.0) -> None:
        """Work for ever, on up to `workers` keys at once. `work` returns after how many seconds it wants the key again.

        An error of `work` is logged, and the key comes back after a backoff. When this is cancelled, the work at hand
        is finished, if that takes no longer than `grace` seconds.
        """
        tasks = [asyncio.create_task(self._worker(work), name=f"queue worker {number}") for number in range(workers)]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._stopping = True
            self._resting.set()
            for idle in self._idle_workers:
                idle.cancel()
            await asyncio.wait(tasks, timeout=grace)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        for task in tasks:
            if not task.cancelled():
                task.result()

    async def _worker(self, work: Callable[[K], Awaitable[float | None]]) -> None:
        while not self._stopping:
            key = await self._next()
            begun = time.monotonic()
            error: Exception | None = None
            try:
                async with self._turn():
                    if self._stopping:
                        return
                    begun = time.monotonic()
                    again_after = await work(key)
                self._failures.pop(key, None)
                self._troubles = 0
                if again_after is not None:
                    self.add_after(key, again_after)
            except Exception as caught:
                error = caught
                if isinstance(caught, ServerTrouble):
                    seconds = self._pause(caught)
                else:
                    self._troubles = 0
                    seconds = self._backoff(key)
                expected = isinstance(caught, Retry)
                if isinstance(caught, Retry) and caught.within is not None:
                    seconds = min(seconds, caught.within)
                logger.log(
                    logging.WARNING if expected else logging.ERROR,
                    "try again in %.1f s: %s",
                    seconds,
                    caught,
                    extra={"job": str(key)},
                    exc_info=None if expected else caught,
                )
                self.add_after(key, seconds)
            finally:
                self._working.discard(key)
                if key in self._again:
                    self._again.discard(key)
                    self.add(key)
                if not self._ready and not self._working:
                    self._rests_since = time.monotonic()
                    self._resting.set()
            if self._on_done is not None:
                self._on_done(time.monotonic() - begun, error)

    async def _next(self) -> K:
        while not self._ready:
            idle: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._idle_workers.append(idle)
            await idle
        key = self._ready.popleft()
        del self._waiting[key]
        self._working.add(key)
        return key

    def _wake_one(self) -> None:
        while self._idle_workers:
            idle = self._idle_workers.popleft()
            if not idle.done():
                idle.set_result(None)
                return

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """In times of trouble: alone, and not before the pause is over."""
        if not self._troubles:
            yield
            return
        async with self._probe:
            await asyncio.sleep(self._resume_at - asyncio.get_running_loop().time())
            yield

    def _pause(self, trouble: ServerTrouble) -> float:
        """Seconds until the next try of any key."""
        now = asyncio.get_running_loop().time()
        if now < self._resume_at:  # One of several that were on their way when the trouble began.
            return self._resume_at - now
        seconds = doubled(FIRST_PAUSE_SECONDS, self._troubles, LAST_PAUSE_SECONDS)
        self._troubles += 1
        self._resume_at = now + max(seconds, trouble.after)
        return self._resume_at - now

    def _backoff(self, key: K) -> float:
        failures = self._failures.get(key, 0)
        self._failures[key] = failures + 1
        return doubled(self._first_retry, failures, self._last_retry) * random.uniform(0.8, 1.2)
