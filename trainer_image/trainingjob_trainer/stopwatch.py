"""Where a rank's time goes: seconds of the host's clock, by phase."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Literal, TypeVar

Phase = Literal["data", "checkpoint", "evaluation"]
"""Waiting for the next batch; waiting for a checkpoint (the copy of the state, and the save before); evaluating."""

T = TypeVar("T")


class Stopwatch:
    """Takes the time of phases, and of all there is between two readings."""

    def __init__(self) -> None:
        self._since = time.monotonic()
        self._spent: defaultdict[Phase, float] = defaultdict(float)

    @contextmanager
    def during(self, phase: Phase) -> Iterator[None]:
        """What happens in the context belongs to the phase."""
        begun = time.monotonic()
        try:
            yield
        finally:
            self._spent[phase] += time.monotonic() - begun

    def waits(self, phase: Phase, items: Iterable[T]) -> Iterator[T]:
        """`items`, the time until each is there taken."""
        iterator = iter(items)
        while True:
            with self.during(phase):
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            yield item

    def read(self) -> tuple[float, dict[Phase, float]]:
        """Seconds since the last reading, and what of them the phases took. Starts anew."""
        now = time.monotonic()
        seconds, spent = now - self._since, dict(self._spent)
        self._since = now
        self._spent.clear()
        return seconds, spent
