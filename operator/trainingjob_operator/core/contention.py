"""Gangs whose pods the scheduler places one by one: of two that hold a part of the nodes each, the younger gives way.

Else both would wait for the other's nodes for ever. The oldest never gives way, so that one of them always goes on.
Where PodGroups, a queue or another scheduler see to it that gangs are placed as a whole, none of this happens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import datetime, timedelta

from trainingjob_operator.api.status import TrainingJobStatus
from trainingjob_operator.core import elastic, run
from trainingjob_operator.core.facts import PodFacts
from trainingjob_operator.core.findings import Claim
from trainingjob_operator.core.situation import Situation

PATIENCE = timedelta(seconds=15)  # a gang that is placed in part for longer is not just on the way
FIRST_PAUSE = 10.0  # seconds before it tries again; doubled each time, and up to as much again by chance
LONGEST_PAUSE = 300.0


def claim(here: Situation, status: TrainingJobStatus) -> Claim | None:
    """What this job holds nodes for without being able to run; None: it does not."""
    return Claim(here.job.created_at, here.job.uid) if _stuck_since(here, status) is not None else None


def give_way(here: Situation, status: TrainingJobStatus) -> TrainingJobStatus:
    """`status` with the whole gang licensed anew for later, if an older job needs its nodes; else as it is."""
    since, rival = _stuck_since(here, status), here.findings.oldest_claim
    if since is None:
        return _settled(here, status)
    younger = rival is not None and rival < Claim(here.job.created_at, here.job.uid)
    if not younger or here.now < since + PATIENCE:
        return status
    assert status.stage is not None
    times = status.given_way + 1
    later = run.enter(here, status, status.stage, _pause(here.job.uid, times))
    return later.model_copy(update={"given_way": times})


def pausing(here: Situation, status: TrainingJobStatus) -> datetime | None:
    """When the gang tries again after it gave way; None: it is not waiting for that."""
    gang = here.gang(status)
    waits = [m.not_before for m in gang if m.not_before is not None and here.pod_of(m) is None]
    if not status.given_way or len(waits) < len(gang) or max(waits) <= here.now:
        return None
    return max(waits)


def next_look(here: Situation, status: TrainingJobStatus) -> datetime | None:
    """When to decide anew, as another job's claim may be older by then."""
    since = _stuck_since(here, status)
    if since is None:
        return None
    return since + PATIENCE if since + PATIENCE > here.now else here.now + PATIENCE


def _settled(here: Situation, status: TrainingJobStatus) -> TrainingJobStatus:
    """`status` without a memory of giving way, once the whole gang has nodes."""
    pods = here.gang_pods(status)
    if status.given_way and len(pods) == len(here.gang(status)) and all(pod.node is not None for pod in pods):
        return status.model_copy(update={"given_way": 0})
    return status


def _stuck_since(here: Situation, status: TrainingJobStatus) -> datetime | None:
    """Since when a part of the gang holds nodes while another part finds none; None: that is not so."""
    workers = here.spec.workers
    elsewhere = workers.template.scheduler_name is not None or here.spec.run_policy.queue_name is not None
    if status.stage != "Train" or status.phase in ("Succeeded", "Failed") or elsewhere:
        return None
    pods = here.gang_pods(status)
    if all(pod.pod_group is not None for pod in pods) or _can_do_without(here, status, pods):
        return None
    homeless = [pod.created_at for pod in pods if pod.phase == "Pending" and pod.unschedulable is not None]
    return min(homeless) if homeless and any(_holds_a_node(pod) for pod in pods) else None


def _can_do_without(here: Situation, status: TrainingJobStatus, pods: Sequence[PodFacts]) -> bool:
    """Whether those that hold nodes are enough for an elastic job."""
    placed = [pod.index for pod in pods if _holds_a_node(pod)]
    return here.spec.workers.elastic and 0 in placed and len(placed) >= elastic.fewest(here, status)


def _holds_a_node(pod: PodFacts) -> bool:
    return pod.node is not None and not pod.finished and not pod.deleting


def _pause(uid: str, times: int) -> float:
    """Seconds; each job draws its own, so that those that gave way at once do not come back at once."""
    drawn = int.from_bytes(hashlib.sha256(f"{uid}/{times}".encode()).digest()[:4], "big") / 2**32
    return min(FIRST_PAUSE * 2.0 ** (min(times, 32) - 1), LONGEST_PAUSE) * (1.0 + drawn)
