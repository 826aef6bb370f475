"""What has to be done to pods and children so that they are as the status says: a function of status and pods alone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence, Set
from dataclasses import dataclass

from trainingjob_operator.api.status import Member, TrainingJobStatus
from trainingjob_operator.core import names, queueing
from trainingjob_operator.core.facts import PodFacts
from trainingjob_operator.core.manifests import children, pod, pod_group
from trainingjob_operator.core.plan import Manifest, ObjectRef, PodRef, Relabel
from trainingjob_operator.core.pod_template import Place
from trainingjob_operator.core.situation import Situation

Key = tuple[str, int, int]

KEPT_PER_INDEX = 3  # ended pods, so that their logs can be read


@dataclass(frozen=True)
class Upkeep:
    """The pod part of a plan. wait: seconds until the next pod may be created."""

    ensure: tuple[Manifest, ...] = ()
    drop_member: tuple[PodRef, ...] = ()
    relabel: tuple[Relabel, ...] = ()
    create_pods: tuple[Manifest, ...] = ()
    delete_pods: tuple[PodRef, ...] = ()
    give_up: tuple[PodRef, ...] = ()
    wait: float | None = None


def keep_running(here: Situation, status: TrainingJobStatus) -> Upkeep:
    """The gang of `status` is there, and no other pod runs."""
    resolved, stage = status.resolved, status.stage
    assert resolved is not None
    assert stage is not None
    gang = here.gang(status)
    wanted: set[Key] = {(m.role, m.index, m.incarnation) for m in gang}
    places = {(m.role, m.index) for m in gang}
    strangers = [p for p in here.unfinished if (p.role, p.index, p.incarnation) not in wanted]
    missing = [m for m in gang if here.pod_of(m) is None]
    due = [m for m in missing if m.not_before is None or m.not_before <= here.now]
    due = [m for m in due if queueing.has_place(here, m)]
    group = queueing.membership(here, status)
    looked_after = bool(due) or here.findings.children_due
    return Upkeep(
        ensure=(*children(here.job, here.spec, resolved), *_gang(here, status)) if looked_after else (),
        drop_member=tuple(ref(p) for p in strangers if p.member and (p.role, p.index) in places),
        relabel=tuple(relabel(here, m, p.uid) for m in gang if (p := here.pod_of(m)) is not None and _unlabelled(p)),
        create_pods=tuple(
            pod(here.job, here.spec, resolved, Place(stage, m.index, len(gang), m.incarnation), group) for m in due
        ),
        delete_pods=_deletions([*strangers, *_left_behind(here.pods, wanted)]),
        give_up=_given_up(here, queueing.group(here, status)),
        wait=_wait(here, missing),
    )


def _gang(here: Situation, status: TrainingJobStatus) -> tuple[Manifest, ...]:
    """The PodGroup of the worker pods, if they have one, and the API server still knows of such things."""
    resolved = status.resolved
    if status.stage != "Train" or resolved is None or resolved.pod_group is None or not here.settings.pod_groups:
        return ()
    return (pod_group(here.job, here.spec, resolved),)


def drain(here: Situation) -> Upkeep:
    """No pod runs; those that ended stay."""
    return Upkeep(
        delete_pods=_deletions([*here.unfinished, *_left_behind(here.pods, set())]), give_up=_given_up(here, None)
    )


def leave_nothing(here: Situation) -> Upkeep:
    """No pod is left."""
    return Upkeep(delete_pods=_deletions(here.pods), give_up=_given_up(here, None))


def relabel(here: Situation, member: Member, uid: str) -> Relabel:
    """The labels that the pod of `member` should have."""
    job, place = here.job, (member.role, member.index, member.incarnation)
    labels = names.job_labels(job.name, job.uid) | names.place_labels(*place) | {names.LABEL_MEMBER: "true"}
    return Relabel(PodRef(names.pod_name(job.name, *place), uid), labels)


def child_refs(here: Situation, status: TrainingJobStatus) -> tuple[ObjectRef, ...]:
    """The objects that go with the pods' time to live; the Secret, which may only be created, goes with the job."""
    job = here.job
    refs = [ObjectRef("Service", names.service_name(job.name))]
    if status.resolved is not None:
        refs.append(ObjectRef("ConfigMap", names.config_map_name(job.name, status.resolved.config_hash)))
        if status.resolved.pod_group is not None:
            refs.append(ObjectRef("PodGroup", status.resolved.pod_group))
    return tuple(refs)


def _unlabelled(p: PodFacts) -> bool:
    return not p.finished and not p.deleting and (p.mislabelled or not p.member)


def _wait(here: Situation, missing: Sequence[Member]) -> float | None:
    waits = [(m.not_before - here.now).total_seconds() for m in missing if m.not_before is not None]
    return min((w for w in waits if w > 0), default=None)


def _left_behind(pods: Sequence[PodFacts], wanted: Set[Key]) -> list[PodFacts]:
    """Ended pods that are not kept for their logs: those that hold their resources still, of the others those beyond
    the newest three of each role and index."""
    ended: dict[tuple[str, int], list[PodFacts]] = defaultdict(list)
    for p in pods:
        if p.finished and (p.role, p.index, p.incarnation) not in wanted:
            ended[(p.role, p.index)].append(p)
    newest_first = [sorted(group, key=lambda p: p.incarnation, reverse=True) for group in ended.values()]
    return [p for group in newest_first for place, p in enumerate(group) if p.lingering or place >= KEPT_PER_INDEX]


def _given_up(here: Situation, group: str | None) -> tuple[PodRef, ...]:
    return tuple(ref(p) for p in queueing.to_give_up(here.pods, group))


def _deletions(pods: Sequence[PodFacts]) -> tuple[PodRef, ...]:
    return tuple(ref(p) for p in pods if not p.deleting)


def ref(p: PodFacts) -> PodRef:
    return PodRef(p.name, p.uid)
