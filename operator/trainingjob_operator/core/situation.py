"""A job and its pods at one instant, with the look-ups that decisions are made of."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import NamedTuple

from trainingjob_operator.api.spec import TrainingJobSpec
from trainingjob_operator.api.status import Member, Role, TrainingJobStatus
from trainingjob_operator.core.facts import Job, PodFacts, ProgressFacts
from trainingjob_operator.core.failures import over
from trainingjob_operator.core.findings import Findings
from trainingjob_operator.core.plan import Settings
from trainingjob_operator.core.reported import ProgressReport
from trainingjob_operator.core.stages import gang_size, role_of


class _Gang(NamedTuple):
    status: TrainingJobStatus  # that it is the gang of: as long as it is held here, no other has its id
    members: tuple[Member, ...]
    pods: tuple[PodFacts, ...]


def _members(status: TrainingJobStatus, spec: TrainingJobSpec) -> tuple[Member, ...]:
    if status.stage is None or status.resolved is None:
        return ()
    role, size = role_of(status.stage), gang_size(status.stage, spec, status.resolved)
    members = [m for m in status.pods if m.role == role and m.index < size]
    return tuple(sorted(members, key=lambda m: m.index))


@dataclass(frozen=True)
class Situation:
    """What is known. The status that is being decided is no part of it: it is handed around beside it."""

    job: Job
    spec: TrainingJobSpec
    pods: tuple[PodFacts, ...]
    gone: tuple[PodFacts, ...]
    """The last state of pods that exist no more and have no successor."""
    progress: ProgressFacts
    now: datetime
    settings: Settings
    findings: Findings

    @property
    def unfinished(self) -> tuple[PodFacts, ...]:
        return tuple(pod for pod in self.pods if not pod.finished)

    @property
    def working(self) -> tuple[PodFacts, ...]:
        """Pods whose end is worth waiting for: not those that are stuck on a node that is lost."""
        return tuple(pod for pod in self.pods if not over(pod, self.now))

    def gang(self, status: TrainingJobStatus) -> tuple[Member, ...]:
        """Members of the current stage, by index; empty when no run is on."""
        return self._gang(status).members

    def whole(self, status: TrainingJobStatus) -> bool:
        """Whether a run is on with a member for each pod of its stage: else somebody has edited the status."""
        if status.stage is None or status.resolved is None:
            return False
        return len(self.gang(status)) == gang_size(status.stage, self.spec, status.resolved)

    def _gang(self, status: TrainingJobStatus) -> _Gang:
        """A decision asks for it some thirty times, of two or three statuses."""
        gang = self._gangs.get(id(status))
        if gang is None:
            members = _members(status, self.spec)
            pods = tuple(pod for member in members if (pod := self.pod_of(member)) is not None)
            gang = self._gangs[id(status)] = _Gang(status, members, pods)
        return gang

    @cached_property
    def _gangs(self) -> dict[int, _Gang]:
        return {}

    def pod_of(self, member: Member) -> PodFacts | None:
        """The pod that stands for `member`."""
        return self._by_place.get((member.role, member.index, member.incarnation))

    @cached_property
    def _by_place(self) -> dict[tuple[Role, int, int], PodFacts]:
        """By index and the like: gangs have up to thousands of pods, each of which is looked up many times."""
        return {(pod.role, pod.index, pod.incarnation): pod for pod in reversed(self.pods)}

    def last_state(self, member: Member) -> PodFacts | None:
        """What was last seen of the pod of `member`, which is gone."""
        place = (member.role, member.index, member.incarnation)
        return next((pod for pod in self.gone if (pod.role, pod.index, pod.incarnation) == place), None)

    def vanished(self, status: TrainingJobStatus) -> tuple[tuple[Member, str], ...]:
        """Members of the current stage whose pod, of this uid, was there and is not any more."""
        return tuple((m, m.uid) for m in self.gang(status) if m.uid is not None and self.pod_of(m) is None)

    def gang_pods(self, status: TrainingJobStatus) -> tuple[PodFacts, ...]:
        """The pods of the current stage that are there, by index."""
        return self._gang(status).pods

    def head(self, status: TrainingJobStatus) -> PodFacts | None:
        """The pod of index 0."""
        gang = self.gang(status)
        return self.pod_of(gang[0]) if gang else None

    def taking_part(self, status: TrainingJobStatus) -> tuple[int, ...]:
        """Indexes of the pods of the attempt that is on, in the order of their ranks; empty: the head has not said."""
        report = self.report(status)
        return report.pods if report is not None else ()

    def pod_of_rank(self, status: TrainingJobStatus, rank: int) -> PodFacts | None:
        """The pod that a rank of training runs in."""
        if status.stage != "Train" or status.resolved is None:
            return None
        place, indexes = rank // status.resolved.ranks_per_pod, self.taking_part(status)
        index = indexes[place] if place < len(indexes) else place
        return next((pod for pod in self.gang_pods(status) if pod.index == index), None)

    def ranks_of(self, status: TrainingJobStatus, member: Member) -> str:
        """The ranks of a pod, in words; empty for a pod that prepares, or takes no part."""
        if member.role != "train" or status.resolved is None:
            return ""
        each, indexes = status.resolved.ranks_per_pod, self.taking_part(status) or tuple(range(member.index + 1))
        if member.index not in indexes:
            return ""
        first = indexes.index(member.index) * each
        return f"rank {first}" if each == 1 else f"ranks {first} to {first + each - 1}"

    def next_incarnation(self, status: TrainingJobStatus, role: Role, index: int) -> int:
        """Above all that the status or a pod bears."""
        licensed = [m.incarnation for m in status.pods if (m.role, m.index) == (role, index)]
        there = [p.incarnation for p in self.pods if (p.role, p.index) == (role, index)]
        return max([0, *licensed, *there]) + 1

    def report(self, status: TrainingJobStatus) -> ProgressReport | None:
        """The newest report, if it is of this stage's head."""
        report = self.progress.report
        if report is None or report.stage != status.stage:
            return None
        gang = self.gang(status)
        if not gang:
            return None
        head = self.pod_of(gang[0])
        return report if report.pod_uid == (head.uid if head is not None else gang[0].uid) else None

    def unreachable(self, status: TrainingJobStatus) -> str | None:
        """Why the progress is not known, once the head was silent for long; None: it is known."""
        head, since = self.head(status), self.progress.unreachable_since
        if head is None or head.phase != "Running":
            return None
        text = (
            f"Pod {head.name} does not answer on port 8080, so progress is not known; training is not affected. "
            "A NetworkPolicy may keep the operator from the pods."
        )
        if self.progress.fetched_at is None and any(c.message == text for c in status.conditions):
            return text  # An operator that has just started has heard nobody: what was found before it stands.
        silent = since is not None and (self.now - since).total_seconds() >= self.settings.unreachable_after
        return text if silent else None
