"""Whether a changed status is worth a write now. Every write costs the API server and all who watch."""

from __future__ import annotations

from collections.abc import Set
from typing import Any

from trainingjob_operator.api.status import StatusModel, TrainingJobStatus
from trainingjob_operator.core.situation import Situation


def postponed(here: Situation, status: TrainingJobStatus) -> float | None:
    """Seconds that the write of `status` can wait; None: it is due.

    Mere progress (steps, ready pods, the wording of the message) is written once in an interval; what a person would
    care about is written at once and takes the progress along.
    """
    old = here.job.status
    if _loud(status) != _loud(old):
        return None
    written = [here.progress.status_written_at, old.progress.updated_at if old.progress is not None else None]
    last = max((w for w in written if w is not None), default=None)
    if last is None:
        return None
    wait = here.settings.progress_interval - (here.now - last).total_seconds()
    return wait if wait > 0 else None


def _loud(status: TrainingJobStatus) -> tuple[Any, ...]:
    """`status` without what changes all the time. Plain data: copies of models take a quarter of a decision's time."""
    return (
        _without(status, {"message", "progress", "workers", "conditions", "pods"}),
        [_without(condition, {"message"}) for condition in status.conditions],
        [_without(member, {"uid"}) for member in status.pods],
    )


def _without(model: StatusModel, names: Set[str]) -> dict[str, Any]:
    return {name: value for name, value in vars(model).items() if name not in names}
