"""Where a rank's time goes: seconds of the host's clock, by phase."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

Phase = Literal["data", "checkpoint", "evaluation"]
"""Waiting for the next batch; waiting for a checkpoint (the copy of the state, and the save before); evaluating."""

T = TypeVar("T")
SCHEDULED = Path("/proc/thread-self/schedstat")


class Reading(NamedTuple):
    """What happened since the last one."""

    seconds: float
    spent: dict[Phase, float]
    """Seconds of them by phase."""
    ran: float
    """Seconds of them in which this thread ran, or could have if a processor had been free: in which it waited neither
    for peers nor for data. Those of evaluations and checkpoints are left out."""


class Stopwatch:
    """Takes the time of phases, and of all there is between two readings."""

    def __init__(self) -> None:
        self._since = time.monotonic()
        self._spent: defaultdict[Phase, float] = defaultdict(float)
        self._ran, self._aside = ran(), 0.0

    @contextmanager
    def during(self, phase: Literal["checkpoint", "evaluation"]) -> Iterator[None]:
        """What happens in the context belongs to the phase."""
        begun, before = time.monotonic(), ran()
        try:
            yield
        finally:
            self._spent[phase] += time.monotonic() - begun
            self._aside += ran() - before

    def waits(self, phase: Phase, items: Iterable[T]) -> Iterator[T]:
        """`items`, the time until each is there taken."""
        begun = time.monotonic()
        for item in items:
            self._spent[phase] += time.monotonic() - begun
            yield item
            begun = time.monotonic()

    def read(self) -> Reading:
        """What happened since the last reading. Starts anew."""
        now, has_run = time.monotonic(), ran()
        reading = Reading(now - self._since, dict(self._spent), has_run - self._ran - self._aside)
        self._since, self._ran, self._aside = now, has_run, 0.0
        self._spent.clear()
        return reading


def ran() -> float:
    """Seconds in which this thread has run or waited for a processor only; 0 where the kernel does not say."""
    try:
        on_processor, in_queue, *_ = SCHEDULED.read_text().split()
    except (OSError, ValueError):
        return 0.0
    return (int(on_processor) + int(in_queue)) / 1e9
