"""What the status keeps for those who measure: how long the job waited in which phase, and what interrupted it."""

from __future__ import annotations

from collections import Counter
from datetime import datetime
from typing import Any

from trainingjob_operator.api.status import Phase, TrainingJobStatus
from trainingjob_operator.core import history

ON_THE_WAY: tuple[Phase, ...] = ("Pending", "Queued", "Preparing", "Starting")
"""Phases on the way to training."""


def booked(old: TrainingJobStatus, new: TrainingJobStatus, created_at: datetime, now: datetime) -> TrainingJobStatus:
    """`new`, decided at `now`, with the books of `old` brought forward: they change with what is written anyway."""
    update: dict[str, Any] = {}
    if new.phase != old.phase:
        update["phase_time"] = now if old.phase is not None else created_at
        update["waited"] = _waited(old, now)
    news = history.news(old.history, new.history)
    if news:
        by_class = Counter(old.restarts.by_class) + Counter(incident.class_ for incident in news)
        update["restarts"] = new.restarts.model_copy(update={"by_class": dict(by_class)})
    return new.model_copy(update=update) if update else new


def _waited(old: TrainingJobStatus, now: datetime) -> dict[str, int]:
    if old.phase not in ON_THE_WAY or old.phase_time is None:
        return old.waited
    seconds = max(0, round((now - old.phase_time).total_seconds()))
    return {**old.waited, old.phase: old.waited.get(old.phase, 0) + seconds}
