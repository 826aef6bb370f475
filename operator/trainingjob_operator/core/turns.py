"""Jobs take turns at something that is dear."""

from __future__ import annotations

from datetime import datetime, timedelta


class Turns:
    """One has its turn in a pause at the most. Who does not come back is not waited for, and leaves no gap."""

    def __init__(self, pause: timedelta) -> None:
        self._pause = pause
        self._next: datetime | None = None
        self._waiting: dict[str, None] = {}  # in the order in which they came

    def wait(self, job_uid: str, now: datetime) -> float:
        """Seconds after which to ask again; 0: it is the job's turn."""
        if self._next is None or not self._next - self._pause <= now < self._next:  # a clock may be set back
            self._next = now + self._pause
            self.leave(job_uid)
            return 0.0
        self._waiting.setdefault(job_uid)
        ahead = list(self._waiting).index(job_uid)
        return (self._next - now + ahead * self._pause).total_seconds()

    def leave(self, job_uid: str) -> None:
        """The job does not want its turn, or is gone."""
        self._waiting.pop(job_uid, None)
