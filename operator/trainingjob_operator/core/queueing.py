"""A run in a queue (`runPolicy.queueName`): its pods are admitted as a group, and end as a group.

A group is named by role and admission. Kueue gives the quota of a pod that succeeded away and never back, and admits
a group only as a whole: so whoever must begin again after that, or after an eviction, begins in a new group.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from trainingjob_operator.api.status import Member, TrainingJobStatus
from trainingjob_operator.core import names
from trainingjob_operator.core.facts import PodFacts
from trainingjob_operator.core.kueue import Membership
from trainingjob_operator.core.situation import Situation
from trainingjob_operator.core.stages import role_of


def group(here: Situation, status: TrainingJobStatus) -> str | None:
    """Name of the group that the pods of the current stage are in; None: in none."""
    if here.spec.run_policy.queue_name is None or status.stage is None or status.resolved is None:
        return None
    return names.group_name(here.job.name, role_of(status.stage), status.admissions)


def membership(here: Situation, status: TrainingJobStatus) -> Membership | None:
    """For a new pod of the current stage."""
    queue, name = here.spec.run_policy.queue_name, group(here, status)
    if queue is None or name is None:
        return None
    hashes = [pod.queued.role_hash for pod in here.pods if pod.queued is not None and pod.queued.group == name]
    return Membership(queue, name, len(here.gang(status)), next((h for h in hashes if h is not None), None))


def has_place(here: Situation, member: Member) -> bool:
    """Whether a pod for `member` would not be one too many: in a queue, its predecessors must have ended."""
    if here.spec.run_policy.queue_name is None:
        return True
    there = (p for p in here.pods if p.lingering or not p.finished)
    return not any((p.role, p.index) == (member.role, member.index) for p in there)


def stopped(here: Situation, status: TrainingJobStatus) -> tuple[Member, PodFacts, str] | None:
    """The first pod of the current group that Kueue has stopped, and Kueue's words."""
    if group(here, status) is None:
        return None
    members = {(m.role, m.index, m.incarnation): m for m in here.gang(status)}
    for pod in (*here.pods, *here.gone):
        member = members.get((pod.role, pod.index, pod.incarnation))
        if member is not None and pod.queued is not None and pod.queued.stopped is not None:
            return member, pod, pod.queued.stopped
    return None


def needs_readmission(here: Situation, status: TrainingJobStatus) -> bool:
    """Whether a pod that succeeded has got a successor in the same group, which Kueue would never admit."""
    if group(here, status) is None:
        return False
    licensed = {(m.role, m.index): m.incarnation for m in here.gang(status)}
    for member in here.gang(here.job.status):
        pod = here.pod_of(member)
        replaced = licensed.get((member.role, member.index), member.incarnation) != member.incarnation
        if replaced and pod is not None and pod.phase == "Succeeded":
            return True
    return False


def to_give_up(pods: Sequence[PodFacts], current: str | None) -> tuple[PodFacts, ...]:
    """A pod of each group that is no longer wanted, so that Kueue lets go of its pods and quota once they have ended.

    Nobody needs to be told of a group whose pods all succeed.
    """
    groups: dict[str, list[PodFacts]] = defaultdict(list)
    for pod in pods:
        if pod.queued is not None and pod.queued.group != current:
            groups[pod.queued.group].append(pod)
    chosen = []
    for members in groups.values():
        told = any(pod.queued is not None and pod.queued.given_up for pod in members)
        held = [pod for pod in members if pod.queued is not None and pod.queued.held]
        if held and not told and any(pod.phase != "Succeeded" for pod in members):
            chosen.append(held[0])
    return tuple(chosen)
