"""Phase, reason and message of a job whose run is on."""

from __future__ import annotations

from dataclasses import dataclass

from trainingjob_operator.api.status import Member, Phase, TrainingJobStatus
from trainingjob_operator.core import contention, elastic, names
from trainingjob_operator.core.conditions import Note
from trainingjob_operator.core.facts import PodFacts
from trainingjob_operator.core.failures import over
from trainingjob_operator.core.history import interrupted
from trainingjob_operator.core.obstacle import Obstacle
from trainingjob_operator.core.run import at_work, done
from trainingjob_operator.core.situation import Situation

STATES = {
    "Starting": "The ranks are starting",
    "Evaluating": "Evaluating",
    "Exporting": "Exporting the model",
    "Draining": "Committing a last checkpoint",
}


@dataclass(frozen=True)
class Appraisal:
    """Phase; reason: one CamelCase word, for the conditions; message: one sentence.

    stalled: the job waits for a person.
    """

    phase: Phase
    reason: str
    message: str
    stalled: bool = False


def appraise(here: Situation, status: TrainingJobStatus) -> Appraisal:
    """What to say about a run that is on."""
    phase = _phase(here, status)
    obstacle = _obstacle(here, status, phase)
    if phase == "Running" and (partly := _partly(here, status)) is not None:
        return Appraisal(phase, phase, partly)
    if obstacle is None:
        return Appraisal(phase, phase, _message(here, status, phase))
    head = here.head(status)
    if obstacle.room and not any(_in_place(pod) for pod in here.gang_pods(status)):
        phase = "Queued"
    elif phase in ("Pending", "Preparing") and (head is None or head.phase == "Pending"):
        phase = "Starting"
    return Appraisal(phase, obstacle.reason, obstacle.message, obstacle.stalled)


def notes(here: Situation, status: TrainingJobStatus, active: bool) -> tuple[Note, ...]:
    """What is worth to be said besides. active: the head runs, so that its progress should be known."""
    unreachable = here.unreachable(status) if active else None
    ungrouped = _ungrouped(here, status)
    said = (
        None if unreachable is None else Note("ProgressUnknown", "Unreachable", unreachable),
        None if ungrouped is None else Note("GangSchedulingUnavailable", "SchedulingGroupDropped", ungrouped),
    )
    return tuple(note for note in said if note is not None)


def ready_pods(here: Situation, status: TrainingJobStatus) -> int:
    """Pods of the current gang that are ready."""
    pods = [here.pod_of(member) for member in here.gang(status)]
    return sum(1 for pod in pods if pod is not None and pod.ready and not pod.deleting and not pod.finished)


def _phase(here: Situation, status: TrainingJobStatus) -> Phase:
    lost = _too_few(here, status)
    hurt = interrupted(status.history, status.start_time or here.now)
    if status.stage == "Train":
        if not lost and not hurt and (status.phase == "Running" or _under_way(here, status)):
            return "Running"
        return "Restarting" if hurt or status.phase in ("Running", "Restarting") else "Starting"
    head = here.head(status)
    if head is not None and head.phase == "Running" and not lost:
        return "Preparing"
    if hurt:
        return "Restarting"
    return "Pending" if status.stage == "Check" and status.phase != "Preparing" else "Preparing"


def _too_few(here: Situation, status: TrainingJobStatus) -> bool:
    """Whether pods are missing that the stage cannot do without."""
    gang = here.gang(status)
    there = [member.index for member in gang if not _lost(here, member)]
    return len(there) < elastic.fewest(here, status) or (bool(gang) and 0 not in there)


def _lost(here: Situation, member: Member) -> bool:
    """Whether nobody works for `member`: its pod is not there, on its way out, or over before its time."""
    pod = here.pod_of(member)
    if pod is None or pod.phase == "Pending":
        return True
    return not done(pod) and (pod.deleting or over(pod, here.now))


def _ungrouped(here: Situation, status: TrainingJobStatus) -> str | None:
    """Why the worker pods are not scheduled as a gang although they should be."""
    if status.stage != "Train" or status.resolved is None or status.resolved.pod_group is None:
        return None
    pods = [here.pod_of(member) for member in here.gang(status)]
    dropped = [pod.name for pod in pods if pod is not None and pod.pod_group is None]
    if not dropped:
        return None
    return (
        f"The API server dropped spec.schedulingGroup of pod {dropped[0]}, so the scheduler places the worker pods one "
        "by one. Turn the feature gate GenericWorkload on in kube-apiserver and kube-scheduler."
    )


def _under_way(here: Situation, status: TrainingJobStatus) -> bool:
    """Whether the first step of the attempt is done. A custom command need not report its steps: there, pods count."""
    if here.spec.custom:
        return at_work(here, status)
    report = here.report(status)
    return report is not None and report.first_step_at is not None


def _obstacle(here: Situation, status: TrainingJobStatus, phase: Phase) -> Obstacle | None:
    """What keeps a child of the job from being created, or a pod that the run waits for from running."""
    refusal = contention.refusal(here, status)
    if refusal is not None or phase == "Running":
        return refusal
    return contention.why_paused(here, status) or _pending(here, status)


def _pending(here: Situation, status: TrainingJobStatus) -> Obstacle | None:
    """What keeps a pod of the gang from running."""
    found = (here.findings.obstacle(pod) for pod in here.gang_pods(status))
    return next((obstacle for obstacle in found if obstacle is not None), None)


def _in_place(pod: PodFacts) -> bool:
    """Whether the pod has a node."""
    return pod.node is not None or pod.phase != "Pending"


def _message(here: Situation, status: TrainingJobStatus, phase: Phase) -> str:
    report, gang = here.report(status), here.gang(status)
    if phase == "Restarting":
        return _recovering(here, status, gang)
    if report is not None and report.message and phase in ("Preparing", "Running"):
        return report.message
    if phase == "Pending":
        return "Waiting for the pod that checks configuration and data to start."
    if phase == "Preparing":
        if status.stage == "Check":
            return "Checking configuration, credentials and data."
        return f"Preparing the data on {len(gang)} pod{'s' if len(gang) > 1 else ''}."
    if phase == "Starting":
        return f"Starting training: {ready_pods(here, status)} of {len(gang)} worker pods are ready."
    ranks = status.resolved.world_size if status.resolved is not None else len(gang)
    state = STATES.get((report.state if report is not None else None) or "", "Training")
    return f"{state} on {ranks} rank{'s' if ranks > 1 else ''}."


def _partly(here: Situation, status: TrainingJobStatus) -> str | None:
    """What an elastic run says that does not train on all of its workers; None: it does."""
    if not here.spec.workers.elastic:
        return None
    gang = here.gang(status)
    indexes = here.taking_part(status)
    absent = [m for m in gang if (m.index not in indexes if indexes else _lost(here, m))]
    if not absent:
        return None
    report = here.report(status)
    state = STATES.get((report.state if report is not None else None) or "", "Training")
    obstacle = here.findings.refusal or _pending(here, status)
    why = obstacle.message if obstacle is not None else _why_absent(here, absent[0])
    return f"{state} on {len(gang) - len(absent)} of {len(gang)} workers. {why}"


def _why_absent(here: Situation, member: Member) -> str:
    name = names.pod_name(here.job.name, member.role, member.index, member.incarnation)
    pod = here.pod_of(member)
    if pod is None and member.not_before is not None and member.not_before > here.now:
        return f"Pod {name} is tried again at {member.not_before:%H:%M:%S} UTC."
    if pod is None or pod.phase == "Pending" or not pod.ready:
        return f"Pod {name} is starting."
    if pod.deleting:
        return f"Pod {name} is being stopped."
    return f"Pod {name} has yet to join."


def _recovering(here: Situation, status: TrainingJobStatus, gang: tuple[Member, ...]) -> str:
    waits = [m.not_before for m in gang if m.not_before is not None and here.pod_of(m) is None]
    then = f"; the next try is at {max(waits):%H:%M:%S} UTC" if waits and max(waits) > here.now else ""
    if not status.history:
        return f"Waiting for all worker pods to be there again{then}."
    incident = status.history[-1]
    if incident.class_ == "Resized" or (incident.class_ == "Drained" and incident.pod is None):
        return f"Going on with another number of workers: {incident.cause.rstrip(' .')}."
    where = incident.pod or (f"rank {incident.rank}" if incident.rank is not None else "the run")
    cause = incident.cause.rstrip(" .")
    return f"Recovering from {incident.class_} of {where}{then}{': ' if cause else ''}{cause}."
