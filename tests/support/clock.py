"""The watchdog's time, which passes as tests tell it to: however slow the machine, nothing hangs by chance."""

from __future__ import annotations

import threading

from support.runs import wait_until


class Clock:
    """Stands for the module `time` in `watchdog`."""

    def __init__(self) -> None:
        self._now = 0.0
        self._looks = 0

    def monotonic(self) -> float:
        self._looks += threading.current_thread().name == "watchdog"
        return self._now

    def skip(self, seconds: float) -> None:
        """So much time passes."""
        self._now += seconds

    def look(self) -> None:
        """The watchdog looks at what has passed."""
        seen = self._looks
        wait_until("the watchdog has looked", lambda: self._looks >= seen + 2, every=0.001)
