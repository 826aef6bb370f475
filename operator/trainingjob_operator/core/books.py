"""What the status keeps for those who measure: how long the job waited in which phase, and what interrupted it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from trainingjob_operator.api.status import Incident, Phase, TrainingJobStatus
from trainingjob_operator.core import history

ON_THE_WAY: tuple[Phase, ...] = ("Pending", "Queued", "Preparing", "Starting")
"""Phases on the way to training."""
CLASSES = 32
"""Classes of incidents that are told apart; trainers may invent them."""
OTHER = "Other"


def booked(old: TrainingJobStatus, new: TrainingJobStatus, created_at: datetime, now: datetime) -> TrainingJobStatus:
    """`new`, decided at `now`, with the books of `old` brought forward: they change with what is written anyway."""
    update: dict[str, Any] = {}
    if new.phase != old.phase:
        update["phase_time"] = now if old.phase is not None else created_at
        update["waited"] = _waited(old, now)
    news = history.news(old.history, new.history)
    if news:
        update["restarts"] = new.restarts.model_copy(update={"by_class": _counted(old.restarts.by_class, news)})
    return new.model_copy(update=update) if update else new


def _waited(old: TrainingJobStatus, now: datetime) -> dict[str, int]:
    if old.phase not in ON_THE_WAY or old.phase_time is None:
        return old.waited
    seconds = max(0, round((now - old.phase_time).total_seconds()))
    return {**old.waited, old.phase: old.waited.get(old.phase, 0) + seconds}


def _counted(counts: dict[str, int], news: Sequence[Incident]) -> dict[str, int]:
    counts = dict(counts)
    for incident in news:
        name = incident.class_ if incident.class_ in counts or len(counts) < CLASSES - 1 else OTHER
        counts[name] = counts.get(name, 0) + 1
    return counts
