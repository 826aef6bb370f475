"""Gangs that get what they need pod by pod: of two that hold a part of the nodes each, the younger gives way.

Else both would wait for the other's nodes for ever. The oldest never gives way, so that one of them always goes on.
Where PodGroups or another scheduler see to it that gangs are placed as a whole, there is no such strife for nodes; but
pods take their places in a ResourceQuota one by one whoever places them. In a queue there is neither. A gang that never
fits into its quota holds a part of it from all others in vain, so it lets go as well.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

from trainingjob_operator.api.status import TrainingJobStatus
from trainingjob_operator.core import elastic, quota, run
from trainingjob_operator.core.conditions import FINISHED
from trainingjob_operator.core.facts import PodFacts
from trainingjob_operator.core.findings import Claim
from trainingjob_operator.core.obstacle import Obstacle, gave_way, told
from trainingjob_operator.core.pauses import doubled
from trainingjob_operator.core.situation import Situation

PATIENCE = timedelta(seconds=15)  # a gang that is placed in part for longer is not just on the way
FIRST_PAUSE = 10.0  # seconds before it tries again; doubled each time, and up to as much again by chance
LONGEST_PAUSE = 300.0


class _Stuck(NamedTuple):
    """A gang that holds a part of what it needs and does not get the rest. quota: as in `Claim`."""

    since: datetime
    quota: str


def claim(here: Situation, status: TrainingJobStatus) -> Claim | None:
    """What this job holds without being able to run; None: nothing."""
    stuck = _stuck(here, status)
    return Claim(here.job.created_at, here.job.uid, stuck.quota) if stuck is not None else None


def give_way(here: Situation, status: TrainingJobStatus) -> TrainingJobStatus:
    """`status` with the whole gang licensed anew for later, if what it holds is of use to an older job or of none to
    itself; else as it is."""
    stuck = _stuck(here, status)
    if stuck is None:
        return _settled(here, status)
    own = Claim(here.job.created_at, here.job.uid, stuck.quota)
    older = any(rival < own for rival in here.findings.rivals if rival.quota == stuck.quota)
    if not (older or quota.never_fits(refusal(here, status))) or here.now < stuck.since + PATIENCE:
        return status
    assert status.stage is not None
    times = status.given_way + 1
    later = run.enter(here, status, status.stage, _pause(here.job.uid, times))
    return later.model_copy(update={"given_way": times})


def refusal(here: Situation, status: TrainingJobStatus) -> Obstacle | None:
    """Why the API server last refused one of the job's objects, seen from the whole gang."""
    return quota.judged(here.findings.refusal, elastic.fewest(here, status))


def why_paused(here: Situation, status: TrainingJobStatus) -> Obstacle | None:
    """Why the gang has let go of what it held; None: it is back, or had no need to."""
    before, until = told(here.job.status), pausing(here, status)
    if quota.never_fits(before) and status.given_way and not here.gang_pods(status):
        return before
    return gave_way(until) if until is not None else None


def pausing(here: Situation, status: TrainingJobStatus) -> datetime | None:
    """When the gang tries again after it gave way; None: it is not waiting for that."""
    gang = here.gang(status)
    waits = [m.not_before for m in gang if m.not_before is not None and here.pod_of(m) is None]
    if not status.given_way or len(waits) < len(gang) or max(waits) <= here.now:
        return None
    return max(waits)


def next_look(here: Situation, status: TrainingJobStatus) -> datetime | None:
    """When to decide anew, as another job's claim may be older by then."""
    stuck = _stuck(here, status)
    if stuck is None:
        return None
    due = stuck.since + PATIENCE
    return due if due > here.now else here.now + PATIENCE


def _settled(here: Situation, status: TrainingJobStatus) -> TrainingJobStatus:
    """`status` without a memory of giving way, once the whole gang has nodes."""
    pods = here.gang_pods(status)
    if status.given_way and len(pods) == len(here.gang(status)) and all(pod.node is not None for pod in pods):
        return status.model_copy(update={"given_way": 0})
    return status


def _stuck(here: Situation, status: TrainingJobStatus) -> _Stuck | None:
    """Whether a part of the gang holds what another part does not get: nodes, or places in the namespace's quota."""
    if status.phase in FINISHED or here.spec.run_policy.queue_name is not None or _prepares(here, status):
        return None
    return _short_of_quota(here, status) or _short_of_nodes(here, status)


def _prepares(here: Situation, status: TrainingJobStatus) -> bool:
    """Whether data are being prepared: that goes on without a pod which was lost, and would have to begin anew."""
    report = here.report(status)
    return status.stage == "PrepareData" and report is not None and report.state not in (None, "Starting")


def _short_of_quota(here: Situation, status: TrainingJobStatus) -> _Stuck | None:
    refused = here.findings.refusal
    held = [pod for pod in here.gang_pods(status) if not pod.finished and not pod.deleting]
    missing = len(here.gang(status)) - len(held)
    if refused is None or refused.reason != "QuotaExceeded" or not held or not missing:
        return None
    if _can_do_without(here, status, held):
        return None
    since = max(pod.created_at for pod in held)
    return _Stuck(max(since, status.phase_time or since), here.job.namespace)


def _short_of_nodes(here: Situation, status: TrainingJobStatus) -> _Stuck | None:
    pods = here.gang_pods(status)
    held = [pod for pod in pods if _holds_a_node(pod)]
    elsewhere = here.spec.workers.template.scheduler_name is not None or all(pod.pod_group is not None for pod in pods)
    if elsewhere or not held or _can_do_without(here, status, held):
        return None
    homeless = [pod.created_at for pod in pods if pod.phase == "Pending" and pod.unschedulable is not None]
    return _Stuck(min(homeless), "") if homeless else None


def _can_do_without(here: Situation, status: TrainingJobStatus, held: Sequence[PodFacts]) -> bool:
    """Whether these pods are enough for an elastic job."""
    enough = len(held) >= elastic.fewest(here, status)
    return here.spec.workers.elastic and enough and any(pod.index == 0 for pod in held)


def _holds_a_node(pod: PodFacts) -> bool:
    return pod.node is not None and not pod.finished and not pod.deleting


def _pause(uid: str, times: int) -> float:
    """Seconds; each job draws its own, so that those that gave way at once do not come back at once."""
    drawn = int.from_bytes(hashlib.sha256(f"{uid}/{times}".encode()).digest()[:4], "big") / 2**32
    return doubled(FIRST_PAUSE, times - 1, LONGEST_PAUSE) * (1.0 + drawn)
