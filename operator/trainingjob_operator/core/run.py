"""How a run goes on: from the status and what the pods did since to the next status. Phase and message come after."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta

from trainingjob_operator.api.status import Incident, Member, Stage, TrainingJobStatus
from trainingjob_operator.core import avoidance, elastic, failures, history, names, queueing, restarts, verdict
from trainingjob_operator.core.facts import PodFacts
from trainingjob_operator.core.failures import Failure
from trainingjob_operator.core.manifests import resolve
from trainingjob_operator.core.reported import ProgressReport, TerminationMessage
from trainingjob_operator.core.reports import merge_report
from trainingjob_operator.core.situation import Situation
from trainingjob_operator.core.stages import first_stage, gang_size, may_follow, role_of

LONGEST_CAUSE = 1024
"""Of what Kubernetes and Kueue say of a pod: their texts have 32 KiB, and it is repeated in the message."""


def begin(here: Situation, status: TrainingJobStatus) -> TrainingJobStatus:
    """A run from the start, or from where a suspended one stands: both from the first stage on."""
    resolved = resolve(here.job, here.spec, here.settings)
    # Times are whole seconds: what an earlier run suffered in this very one must lie before the start.
    earlier = [incident.time + timedelta(seconds=1) for incident in status.history[-1:]]
    begun = status.model_copy(
        update={
            "resolved": resolved,
            "selector": names.worker_selector(here.job.name),
            "given_way": 0,
            "start_time": max([here.now, *earlier]),  # as with a Job, time spent suspended does not count
            "training_start_time": None,
        }
    )
    return enter(here, begun, first_stage(here.spec))


def enter(
    here: Situation, status: TrainingJobStatus, stage: Stage, delay: float = 0.0, same_group: bool = False
) -> TrainingJobStatus:
    """The first status of `stage`: its gang is licensed, every pod in a new incarnation, after `delay` seconds.

    same_group: in a queue, the pods take the places of those that were admitted.
    """
    assert status.resolved is not None
    role, size = role_of(stage), gang_size(stage, here.spec, status.resolved)
    incarnations = [here.next_incarnation(status, role, index) for index in range(size)]
    if here.spec.custom:
        # One number for the gang: by it the pods know each other, and it counts the attempts.
        incarnations = [max(incarnations)] * size
    not_before = here.now + timedelta(seconds=delay) if delay else None
    gang = tuple(
        Member(role=role, index=index, incarnation=incarnation, not_before=not_before)
        for index, incarnation in enumerate(incarnations)
    )
    others = tuple(m for m in status.pods if m.role != role or m.index >= size)
    admissions = status.admissions + (here.spec.run_policy.queue_name is not None and not same_group)
    return status.model_copy(update={"stage": stage, "pods": (*others, *gang), "admissions": admissions})


def absorb(here: Situation, status: TrainingJobStatus) -> TrainingJobStatus:
    """`status` with the pods that were seen for the first time, and with what the head reports."""
    seen = {(p.role, p.index, p.incarnation): p.uid for p in (*here.gone, *here.pods)}
    pods = tuple(
        m.model_copy(update={"uid": seen.get((m.role, m.index, m.incarnation))})
        if m.uid is None and (m.role, m.index, m.incarnation) in seen
        else m
        for m in status.pods
    )
    status = status.model_copy(update={"pods": pods})
    if status.training_start_time is None and at_work(here, status):
        status = status.model_copy(update={"training_start_time": here.now})
    if here.spec.custom and at_work(here, status):
        recovered = history.all_recovered(status.history, status.start_time or here.now, here.now)
        status = status.model_copy(update={"history": recovered})
    report, fetched_at = here.report(status), here.progress.fetched_at
    if report is None or fetched_at is None:
        return status
    told = history.merge_reported(status.history, report.incidents, here.now)
    known = {incident.attempt for incident in status.history}
    counted = status.restarts
    for incident in told:
        if incident.pod is None and incident.attempt not in known and incident.class_ not in failures.UNCOUNTED:
            counted = restarts.count(counted, committed_step(here, status), here.now)
    told = history.recover(told, report, status.start_time or here.now)
    told = tuple(_placed(here, status, incident) for incident in told)
    status = status.model_copy(update={"history": told, "restarts": counted})
    return merge_report(status, report, fetched_at, here.spec.steps)


def _placed(here: Situation, status: TrainingJobStatus, incident: Incident) -> Incident:
    """`incident` with the node of the rank that failed, if the driver told of it during this run."""
    if incident.pod is not None or incident.node is not None or incident.rank is None:
        return incident
    pod = here.pod_of_rank(status, incident.rank)
    fits = pod is not None and pod.created_at <= incident.time
    return incident.model_copy(update={"node": pod.node}) if pod is not None and fits else incident


def outcome(here: Situation, status: TrainingJobStatus) -> TerminationMessage | None:
    """How the head ended its stage; None: it did not, or not well."""
    head = here.head(status)
    if head is None or status.stage is None or head.phase != "Succeeded" or head.termination is None:
        return None
    said = head.termination
    return said if said.outcome is not None and may_follow(status.stage, said.outcome) else None


def replace_failed(here: Situation, status: TrainingJobStatus) -> tuple[TrainingJobStatus, str | None]:
    """`status` with an incident and a successor for every pod that failed, and why the run is given up, if it is."""
    stopped = queueing.stopped(here, status)
    if stopped is not None:
        return _evicted(here, status, *stopped), None
    given_up = verdict.on_ranks(here, status)
    report, committed = here.report(status), committed_step(here, status)
    fallen: dict[Member, float] = {}  # and the seconds until their successors come
    for member in here.gang(status):
        pod = here.pod_of(member)
        failure = _failure(here, status, member, pod)
        if failure is None:
            continue
        pod = pod or here.last_state(member)
        incident = _incident(here, failure, member, pod, report)
        spare = elastic.spare(here, status, member) and not failure.fatal
        if spare:
            incident = history.harmless(incident)
        elif failure.counted and not failure.fatal and not _counted_before(here, status, incident, pod):
            counted = restarts.count(status.restarts, committed, here.now)
            status = status.model_copy(update={"restarts": counted})
        status = status.model_copy(update={"history": history.record(status.history, incident)})
        given_up = given_up or verdict.on_pod(here, status, failure, incident)
        in_a_row = status.restarts.without_progress if failure.counted and not spare else 0
        fallen[member] = restarts.delay(max(in_a_row, _ends_in_a_row(here, status, member)))
    status = _replaced(here, status, fallen)
    if given_up is None:
        status = _placed_again(here, avoidance.strike(_revive_done(here, status)))
        if queueing.needs_readmission(here, status):
            status = _readmit(here, status)
    return status, given_up


def committed_step(here: Situation, status: TrainingJobStatus) -> int:
    """The newest step that is known to be committed. Of what a custom command saves, its reported step must tell."""
    if here.spec.custom:
        return status.progress.step if status.progress is not None else 0
    report = here.report(status)
    known = [status.checkpoint.latest_step if status.checkpoint else None, report.resumed_from_step if report else None]
    return max([0, *(step for step in known if step is not None)])


def done(pod: PodFacts) -> bool:
    """Whether a pod beside the head ended in peace: the head told it that the stage is over."""
    return pod.index > 0 and pod.phase == "Succeeded"


def at_work(here: Situation, status: TrainingJobStatus) -> bool:
    """Whether training has the pods that it needs: each is ready, or done with its part."""
    if status.stage != "Train":
        return False
    pods = [here.pod_of(member) for member in here.gang(status)]
    there = [p.index for p in pods if p is not None and ((p.ready and not p.deleting) or done(p))]
    return 0 in there and len(there) >= elastic.fewest(here, status)


def _failure(here: Situation, status: TrainingJobStatus, member: Member, pod: PodFacts | None) -> Failure | None:
    if pod is not None:
        failed = failures.over(pod, here.now) and not done(pod)
        return failures.classify(pod, here.ranks_of(status, member)) if failed else None
    if member.uid is None:
        return None
    name = names.pod_name(here.job.name, member.role, member.index, member.incarnation)
    return failures.vanished(name, here.last_state(member), here.ranks_of(status, member))


def _counted_before(here: Situation, status: TrainingJobStatus, incident: Incident, pod: PodFacts | None) -> bool:
    """Whether the failure is counted already: by the driver's word, or with another pod of the gang."""
    if history.told_by_driver(status.history, incident) is not None:
        return True
    return pod is not None and restarts.same_blow(status.restarts, pod.created_at, here.now)


def _incident(
    here: Situation, failure: Failure, member: Member, pod: PodFacts | None, report: ProgressReport | None
) -> Incident:
    known_step = report.progress.step if report is not None and report.progress is not None else None
    attempt = report.attempt if report is not None else None
    return Incident.model_validate(
        {
            "time": here.now,
            "class": failure.class_,
            "cause": failure.cause[:LONGEST_CAUSE],
            "pod": names.pod_name(here.job.name, member.role, member.index, member.incarnation),
            "node": pod.node if pod is not None else None,
            "rank": failure.rank,
            "attempt": member.incarnation if here.spec.custom else attempt,
            "step": known_step if failure.step is None else failure.step,
        }
    )


def _ends_in_a_row(here: Situation, status: TrainingJobStatus, member: Member) -> int:
    """How often pods of this index have ended since one last took part in training: whatever ended them, it is not
    raced."""
    since, ends = status.start_time or here.now, 0
    for incident in reversed(status.history):
        name = names.parse_pod_name(incident.pod) if incident.pod is not None else None
        if incident.time < since or name is None or (name.role, name.index) != (member.role, member.index):
            continue
        if incident.seconds_to_recover is not None and not history.is_harmless(incident):
            break
        ends += 1
    return ends


def _replaced(here: Situation, status: TrainingJobStatus, fallen: Mapping[Member, float]) -> TrainingJobStatus:
    """`status` with successors of the fallen pods.

    The agents of the trainer bring surviving pods into a new process group. Custom commands cannot be brought anywhere:
    they wait in collectives, or die, for the peer that is gone. So the whole gang starts anew.
    """
    if fallen and here.spec.custom:
        return enter(here, status, "Train", max(fallen.values()), same_group=True)
    for member, delay in fallen.items():
        status = _succeeded_by(here, status, member, delay)
    return status


def _evicted(here: Situation, status: TrainingJobStatus, member: Member, pod: PodFacts, why: str) -> TrainingJobStatus:
    """`status` after Kueue has taken back the quota of the whole gang: it waits in the queue again."""
    failure = Failure("Preempted", f"Kueue took back the quota of the gang: {why}")
    incident = _incident(here, failure, member, pod, here.report(status))
    return _readmit(here, status.model_copy(update={"history": history.record(status.history, incident)}))


def _readmit(here: Situation, status: TrainingJobStatus) -> TrainingJobStatus:
    """`status` with the whole gang in a new group, no earlier than successors that are licensed already."""
    assert status.stage is not None
    waits = [(m.not_before - here.now).total_seconds() for m in here.gang(status) if m.not_before is not None]
    before = status.model_copy(update={"pods": here.job.status.pods})
    return enter(here, before, status.stage, max(waits, default=0.0))


def _succeeded_by(here: Situation, status: TrainingJobStatus, member: Member, delay: float) -> TrainingJobStatus:
    """`status` with a successor of `member` licensed."""
    successor = Member(
        role=member.role,
        index=member.index,
        incarnation=here.next_incarnation(status, member.role, member.index),
        not_before=here.now + timedelta(seconds=delay) if delay else None,
    )
    pods = tuple(successor if (m.role, m.index) == (member.role, member.index) else m for m in status.pods)
    return status.model_copy(update={"pods": pods})


def _placed_again(here: Situation, status: TrainingJobStatus) -> TrainingJobStatus:
    """`status` with successors for pods that find no place because they keep off nodes: rather there than nowhere."""
    assert status.resolved is not None
    strict = any(node.required for node in status.resolved.avoided_nodes)
    waiting = [(member, here.pod_of(member)) for member in here.gang(status)]
    kept_off = [(m, pod) for m, pod in waiting if pod is not None and pod.kept_off and pod.node is None]
    if not strict or not any(pod.unschedulable is not None and not pod.gated for _, pod in kept_off):
        return status
    return _replaced(here, avoidance.yielding(status), dict.fromkeys((member for member, _ in kept_off), 0.0))


def _revive_done(here: Situation, status: TrainingJobStatus) -> TrainingJobStatus:
    """`status` with successors for pods that ended in peace with a head that has been replaced since."""
    gang = here.gang(status)
    head = here.pod_of(gang[0]) if gang else None
    left = [(member, pod) for member in gang[1:] if (pod := here.pod_of(member)) is not None and done(pod)]
    return _replaced(
        here,
        status,
        {
            member: 0.0
            for member, pod in left
            if head is None or (pod.finished_at is not None and head.created_at >= pod.finished_at)
        },
    )
