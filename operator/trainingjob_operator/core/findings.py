"""What the operator found out about a job beyond its objects: facts for `decide`, kept in the executor's memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import NamedTuple

from trainingjob_operator.core.facts import PodFacts
from trainingjob_operator.core.obstacle import Look, Obstacle, of_pod
from trainingjob_operator.core.pauses import doubled

FIRST_LOOK = 30.0  # seconds that a pod may be pending before its events are read
FIRST_GROUP_LOOK = 5.0  # or the group that it waits in, where the reason is from the beginning
LONGEST_BETWEEN_LOOKS = 480.0
LOOKED_AT = 3  # pods of a job at a time: what keeps many from starting keeps the first as well


class Claim(NamedTuple):
    """A job that holds nodes for a part of its gang while another part finds none; the least of them is the oldest.

    quota: the namespace in whose quota it holds places for a part of its gang, and not nodes.
    """

    created_at: datetime
    job_uid: str
    quota: str = ""


@dataclass(frozen=True)
class Findings:
    """refusal: why the API server last refused one of the job's objects; None: it did not, or has taken them since.
    looks: what the events of pending pods said, by the pods' uids. rivals: the other jobs that hold nodes, or
    places in this namespace's quota, without being able to run. children_due: the job's ConfigMap and the like are to
    be looked after, although no pod is made."""

    refusal: Obstacle | None = None
    looks: Mapping[str, Look] = field(default_factory=dict)
    rivals: tuple[Claim, ...] = ()
    children_due: bool = False

    def obstacle(self, pod: PodFacts) -> Obstacle | None:
        """What keeps this pod from running."""
        return of_pod(pod, self.looks.get(pod.uid))

    def next_look(self, pod: PodFacts) -> datetime | None:
        """When to read the pod's events or its group; None: its own status says enough."""
        if pod.phase != "Pending" or pod.deleting:
            return None
        if of_pod(pod, None) is not None and not pod.waits_as_group:
            return None
        look = self.looks.get(pod.uid)
        if look is None:
            return pod.created_at + timedelta(seconds=FIRST_GROUP_LOOK if pod.waits_as_group else FIRST_LOOK)
        return look.at + timedelta(seconds=doubled(FIRST_LOOK, look.count, LONGEST_BETWEEN_LOOKS))
