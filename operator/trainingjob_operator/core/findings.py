"""What the operator found out about a job beyond its objects: facts for `decide`, kept in the executor's memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from trainingjob_operator.core.facts import PodFacts
from trainingjob_operator.core.obstacle import Look, Obstacle, of_pod

FIRST_LOOK = 30.0  # seconds that a pod may be pending before its events are read
LONGEST_BETWEEN_LOOKS = 480.0
LOOKED_AT = 3  # pods of a job at a time: what keeps many from starting keeps the first as well


@dataclass(frozen=True)
class Findings:
    """refusal: why the API server last refused one of the job's objects; None: it did not, or has taken them since.
    looks: what the events of pending pods said, by the pods' uids."""

    refusal: Obstacle | None = None
    looks: Mapping[str, Look] = field(default_factory=dict)

    def obstacle(self, pod: PodFacts) -> Obstacle | None:
        """What keeps this pod from running."""
        return of_pod(pod, self.looks.get(pod.uid))

    def next_look(self, pod: PodFacts) -> datetime | None:
        """When to read the pod's events; None: its own status says enough."""
        if pod.phase != "Pending" or pod.deleting or of_pod(pod, None) is not None:
            return None
        look = self.looks.get(pod.uid)
        if look is None:
            return pod.created_at + timedelta(seconds=FIRST_LOOK)
        pause = min(FIRST_LOOK * 2.0**look.count, LONGEST_BETWEEN_LOOKS)
        return look.at + timedelta(seconds=pause)
