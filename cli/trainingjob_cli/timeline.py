"""What a watcher has seen of a job: how long each phase took, and the losses."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise

from trainingjob_cli.jobs import Job

USUAL = ("Pending", "Preparing", "Starting", "Running", "Succeeded")
BARS = "▁▂▃▄▅▆▇█"


@dataclass
class Timeline:
    """Collected from one look after another. What came before the first look is not known, but for a new job's wait."""

    seconds: dict[str, float] = field(default_factory=dict)
    """By phase, in the order in which they came first."""
    losses: dict[int, float] = field(default_factory=dict)
    """By step."""
    _last: datetime | None = None
    _phase: str | None = None

    def look(self, job: Job, now: datetime) -> None:
        """Take in what the job says now."""
        phase = job.status.phase or "Pending"
        began = self._last or (job.created if phase == "Pending" else now)
        passed = max(0.0, (now - began).total_seconds())
        # What has passed since the last look belongs to the phase that was seen then.
        owner = self._phase or phase
        self.seconds[owner] = self.seconds.get(owner, 0.0) + passed
        self.seconds.setdefault(phase, 0.0)
        self._last, self._phase = now, phase
        progress = job.status.progress
        if progress is not None and progress.loss is not None and progress.step:
            self.losses[progress.step] = progress.loss

    def to_come(self, job: Job) -> tuple[str, ...]:
        """Phases that are usually still ahead."""
        phase = job.status.phase or "Pending"
        if job.finished:
            return ()
        behind = USUAL.index(phase) if phase in USUAL else USUAL.index("Preparing")
        return tuple(later for later in USUAL[behind + 1 :] if later != phase)


def sparkline(values: list[float], width: int) -> str:
    """The values as at most `width` bars, low to high; each bar is the mean of its share."""
    if not values:
        return ""
    count = min(width, len(values))
    edges = [round(index * len(values) / count) for index in range(count + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    low, high = min(means), max(means)
    scale = (len(BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(BARS[round((mean - low) * scale)] for mean in means)


def duration(seconds: float) -> str:
    """Seconds as people write them: 9 s, 1:07, 2:03:00."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes}:{rest:02}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
