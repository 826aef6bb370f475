"""`decide`: from what is known about a job to what is to be done. Pure: no I/O, no clock, no randomness.

First the next status is found, then the deeds that follow from it: so a deed is always licensed by a status.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from trainingjob_operator.api.status import TrainingJobStatus, Workers
from trainingjob_operator.core import contention, deadlines, elastic, run, upkeep
from trainingjob_operator.core.appraisal import Appraisal, appraise, notes, ready_pods
from trainingjob_operator.core.books import booked
from trainingjob_operator.core.conditions import FINISHED, Note, after_the_end, conditions
from trainingjob_operator.core.deadlines import Deadline
from trainingjob_operator.core.events import events
from trainingjob_operator.core.facts import InvalidSpec, Job, PodFacts, ProgressFacts
from trainingjob_operator.core.findings import LOOKED_AT, Findings
from trainingjob_operator.core.obstacle import not_understood
from trainingjob_operator.core.plan import Plan, Relabel, Settings
from trainingjob_operator.core.reports import merge_result
from trainingjob_operator.core.situation import Situation
from trainingjob_operator.core.upkeep import Upkeep
from trainingjob_operator.core.writes import postponed

NOTHING_FOUND = Findings()
NO_WORKERS = Workers()


def decide(
    job: Job,
    pods: Sequence[PodFacts],
    progress: ProgressFacts,
    now: datetime,
    settings: Settings,
    findings: Findings = NOTHING_FOUND,
) -> Plan:
    """The plan for `job`, given its pods, the newest report of its head, and what was found in its way.

    `now` has a time zone.
    """
    if job.deleting:
        return Plan()
    now = now.replace(microsecond=0)
    if isinstance(job.spec, InvalidSpec):
        return _unreadable(job, job.spec, pods, now)
    own = tuple(pod for pod in pods if pod.job_uid == job.uid)
    there, gone = tuple(pod for pod in own if not pod.gone), tuple(pod for pod in own if pod.gone)
    here = Situation(job, job.spec, there, gone, progress, now, settings, findings)
    if job.status.phase in FINISHED:
        return _after_the_end(here)
    status = run.absorb(here, job.status)
    last_words = run.outcome(here, status)
    if last_words is not None and last_words.outcome == "Finished":
        return _succeed(here, status, last_words.result or {})
    if here.spec.suspended or (status.phase == "Suspending" and here.working):
        return _suspend(here, status)
    if status.phase == "Suspending" or not here.whole(status):
        status = run.begin(here, status)
    elif (deadline := deadlines.passed(here, status)) is not None:
        return _overdue(here, status, deadline)
    elif last_words is not None and last_words.outcome is not None and last_words.outcome != "Finished":
        status = run.enter(here, status, last_words.outcome)
    else:
        status, verdict = run.replace_failed(here, status)
        if verdict is not None:
            return _fail(here, status, verdict)
        status = contention.give_way(here, status)
    return _go_on(here, status)


def _go_on(here: Situation, status: TrainingJobStatus) -> Plan:
    status = elastic.resize(here, status)
    deeds = upkeep.keep_running(here, status)
    head = here.head(status)
    polled = head if head is not None and head.phase == "Running" and head.ip else None
    due = tuple(pod for at, pod in _looks(here, status) if at <= here.now)
    workers = Workers(desired=len(here.gang(status)), ready=ready_pods(here, status))
    return _plan(here, status, appraise(here, status), deeds, workers, wants_progress=polled, look_at=due)


def _suspend(here: Situation, status: TrainingJobStatus) -> Plan:
    if here.working:
        message = "Waiting for the pods to commit a checkpoint and to end."
        return _drain(here, status, Appraisal("Suspending", "Suspending", message))
    status = status.model_copy(update={"resolved": None, "stage": None})
    step = run.committed_step(here, status)
    where = f" at step {step}" if step else "" if here.spec.custom else " before its first checkpoint"
    message = f"Suspended{where}: set spec.runPolicy.suspend to false to go on."
    return _plan(here, status, Appraisal("Suspended", "Suspended", message), upkeep.drain(here))


def _overdue(here: Situation, status: TrainingJobStatus, deadline: Deadline) -> Plan:
    """A deadline has passed: the pods are drained, then the job has failed."""
    waiting = deadline.class_ == "StartDeadlineExceeded"
    why = appraise(here, status).message if waiting else ""
    status, incident = deadlines.recorded(here, status, deadline, why)
    if here.working:
        message = f"The pods are drained, because {incident.cause}."
        return _drain(here, status, Appraisal(status.phase or "Pending", deadline.class_, message))
    return _fail(here, status, f"{deadline.class_}: {incident.cause}. {deadline.way_out}.")


def _drain(here: Situation, status: TrainingJobStatus, said: Appraisal) -> Plan:
    """No pod shall run. said: unless the API server refuses to have them end."""
    refusal = here.findings.refusal
    if refusal is not None:
        said = Appraisal(said.phase, refusal.reason, refusal.message, refusal.stalled)
    return _plan(here, status, said, upkeep.drain(here))


def _succeed(here: Situation, status: TrainingJobStatus, result: dict[str, Any]) -> Plan:
    status = merge_result(status, result, here.spec.steps, here.now)
    status = status.model_copy(update={"completion_time": here.now})
    step = status.progress.step if status.progress is not None else here.spec.steps
    uri = status.result.model_uri if status.result is not None else None
    message = f"Finished at step {step}" if step else "Finished"
    message += f"; the model is at {uri}." if uri else "."
    return _plan(here, status, Appraisal("Succeeded", "Succeeded", message), upkeep.drain(here))


def _fail(here: Situation, status: TrainingJobStatus, why: str) -> Plan:
    status = status.model_copy(update={"completion_time": here.now})
    return _plan(here, status, Appraisal("Failed", why.partition(":")[0], why[:4096]), upkeep.drain(here))


def _unreadable(job: Job, spec: InvalidSpec, pods: Sequence[PodFacts], now: datetime) -> Plan:
    """A spec that only another version's CRD lets through: said once. What runs goes on, and what is done stays so."""
    found = not_understood(spec.message)
    if job.status.phase in FINISHED:
        own = (p for p in pods if p.job_uid == job.uid and not p.gone)
        return Plan(delete_pods=tuple(upkeep.ref(p) for p in own if not p.finished and not p.deleting))
    said = Appraisal(job.status.phase or "Pending", found.reason, found.message, found.stalled)
    status = _with(job.status, said, (), job.generation, now)
    status = booked(job.status, status, job.created_at, now)
    changed = status != job.status
    return Plan(status=status if changed else None, events=events(job.status, status) if changed else ())


def _after_the_end(here: Situation) -> Plan:
    """Nothing runs any more; after the time to live nothing is left but the TrainingJob."""
    status = after_the_end(here.job.status, here.job.generation, here.findings.refusal, here.now)
    ttl = here.spec.run_policy.pods_ttl_seconds_after_finished
    ends = status.completion_time + timedelta(seconds=ttl) if ttl is not None and status.completion_time else None
    if ends is None or ends > here.now:
        deeds = upkeep.drain(here)
        wait = (ends - here.now).total_seconds() if ends is not None else None
        return _finish(here, status, deeds, requeue_after=wait)
    # The members in the status say that children may be there: they go when the last pod has gone.
    children = upkeep.child_refs(here, status) if status.pods else ()
    if not here.pods:
        status = status.model_copy(update={"pods": ()})
    return _finish(here, status, upkeep.leave_nothing(here), delete_children=children)


def _with(
    status: TrainingJobStatus, said: Appraisal, notes: Sequence[Note], generation: int, now: datetime
) -> TrainingJobStatus:
    """`status` with phase, message and conditions."""
    found = conditions(said.phase, said.reason, said.message, notes, status.conditions, generation, now, said.stalled)
    return status.model_copy(
        update={
            "observed_generation": generation,
            "phase": said.phase,
            "message": said.message,
            "conditions": found,
        }
    )


def _plan(
    here: Situation,
    status: TrainingJobStatus,
    said: Appraisal,
    deeds: Upkeep,
    workers: Workers = NO_WORKERS,
    wants_progress: PodFacts | None = None,
    look_at: tuple[PodFacts, ...] = (),
) -> Plan:
    """The plan for a job whose status, phase and deeds are decided."""
    active = wants_progress is not None
    status = _with(status, said, notes(here, status, active), here.job.generation, here.now)
    status = status.model_copy(update={"workers": workers})
    if status.phase in FINISHED:
        status, waits = after_the_end(status, here.job.generation, here.findings.refusal, here.now), [_ttl(here)]
    else:
        waits = [deeds.wait, *_timers(here, status)]
    return _finish(
        here,
        status,
        deeds,
        requeue_after=_soonest(waits),
        wants_progress=wants_progress,
        claim=contention.claim(here, status),
        look_at=look_at,
    )


def _finish(here: Situation, status: TrainingJobStatus, deeds: Upkeep, **rest: Any) -> Plan:
    """The plan, with the status only if it is worth a write now."""
    status = booked(here.job.status, status, here.job.created_at, here.now)
    changed = status != here.job.status
    wait = postponed(here, status) if changed else None
    if wait is not None:
        rest["requeue_after"] = _soonest([wait, rest.get("requeue_after")])
    written = changed and wait is None
    return Plan(
        confirm_gone=_given_up(here) if written else (),
        status=status if written else None,
        ensure=deeds.ensure,
        drop_member=deeds.drop_member,
        relabel=deeds.relabel,
        create_pods=deeds.create_pods,
        delete_pods=deeds.delete_pods,
        give_up=deeds.give_up,
        events=events(here.job.status, status) if written else (),
        **rest,
    )


def _given_up(here: Situation) -> tuple[Relabel, ...]:
    """Pods of which nothing is seen, although the last status says that they were there."""
    before = here.job.status
    if before.phase in FINISHED:
        return ()
    return tuple(upkeep.relabel(here, member, uid) for member, uid in here.vanished(before))


def _timers(here: Situation, status: TrainingJobStatus) -> list[float]:
    """Seconds to each instant at which time alone changes the decision."""
    instants = [deadline.at for deadline in deadlines.deadlines(here, status)]
    if here.progress.unreachable_since is not None:
        silent = timedelta(seconds=here.settings.unreachable_after)
        instants.append(here.progress.unreachable_since + silent)
    instants += [at for at, _ in _looks(here, status)]
    instants += [at for at in (contention.next_look(here, status), contention.pausing(here, status)) if at is not None]
    instants += [p.deletion_due + timedelta(seconds=31) for p in here.unfinished if p.deleting and p.deletion_due]
    waits = [(instant - here.now).total_seconds() for instant in instants]
    return [w for w in waits if w > 0]


def _looks(here: Situation, status: TrainingJobStatus) -> list[tuple[datetime, PodFacts]]:
    """When to read the events of which pods, because nothing else says why they do not run."""
    looks = ((here.findings.next_look(pod), pod) for pod in here.gang_pods(status))
    return [(at, pod) for at, pod in looks if at is not None][:LOOKED_AT]


def _ttl(here: Situation) -> float | None:
    ttl = here.spec.run_policy.pods_ttl_seconds_after_finished
    return None if ttl is None else float(ttl)


def _soonest(waits: Sequence[float | None]) -> float | None:
    return min((w for w in waits if w is not None), default=None)
