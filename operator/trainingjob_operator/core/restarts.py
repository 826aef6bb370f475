"""How often a run may fail, and how long a successor waits."""

from __future__ import annotations

from datetime import datetime, timedelta

from trainingjob_operator.api.status import Restarts
from trainingjob_operator.core.pauses import doubled

FIRST_DELAY = 10.0  # seconds before the second attempt without progress; doubled with each further one
LONGEST_DELAY = 300.0
ONE_BLOW = timedelta(seconds=60)


def same_blow(restarts: Restarts, pod_created_at: datetime, now: datetime) -> bool:
    """Whether a pod's end belongs to the failure that was counted last.

    Pods of a gang that fall together are one failure: a pod that was there already when the last failure was counted,
    and ends within a minute of it, fell to the same blow. So did one that ends in the very second in which that was
    counted: it may have been created in it, or by a clock that is ahead of ours.
    """
    last = restarts.last_failure_time
    return last is not None and (pod_created_at < last or last == now) and now - last <= ONE_BLOW


def count(restarts: Restarts, committed_step: int, now: datetime) -> Restarts:
    """`restarts` with one more failure; committed_step: the newest committed step now."""
    progressed = committed_step > restarts.committed_step
    return restarts.model_copy(
        update={
            "total": restarts.total + 1,
            "without_progress": 1 if progressed else restarts.without_progress + 1,
            "committed_step": max(committed_step, restarts.committed_step),
            "last_failure_time": now,
        }
    )


def exhausted(restarts: Restarts, max_restarts: int, max_total: int, progress: str) -> str | None:
    """Why the run is given up; None: it goes on. progress: what the failures lacked, in words."""
    failed = restarts.without_progress
    if failed > max_restarts:
        times = f"{failed} failure{'s' if failed > 1 else ''}"
        return f"given up after {times} without {progress} (maxRestarts {max_restarts})"
    if restarts.total > max_total:
        return f"given up after {restarts.total} failures in all"
    return None


def delay(in_a_row: int) -> float:
    """Seconds until the successor is created: none the first time, then more and more.

    in_a_row: ends of a pod, or counted failures of the run, with no progress in between.
    """
    if in_a_row <= 1:
        return 0.0
    return doubled(FIRST_DELAY, in_a_row - 2, LONGEST_DELAY)
