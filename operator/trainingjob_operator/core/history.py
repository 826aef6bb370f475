"""The last ten incidents of a run: recorded when noticed, completed when the run is going again."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from trainingjob_operator.api.status import Incident
from trainingjob_operator.core.reported import ProgressReport, ReportedIncident

LENGTH = 10
# The driver's and Kubernetes' view of one event are at most this far apart.
SAME_EVENT = timedelta(seconds=120)

History = tuple[Incident, ...]


def record(history: History, incident: Incident) -> History:
    """`history` with the end of a pod, joined with what the driver had said of the same interruption."""
    told = told_by_driver(history, incident)
    if told is None:
        return _ordered((*history, incident))
    step = told.step if told.step is not None else incident.step
    joined = incident.model_copy(
        update={"time": told.time, "rank": told.rank, "step": step, "steps_lost": told.steps_lost}
    )
    return tuple(joined if known is told else known for known in history)


def told_by_driver(history: History, incident: Incident) -> Incident | None:
    """What the driver said of the interruption that a pod's end is part of; None: nothing, or of another pod.

    A pod that was cut off ends minutes after its rank was lost: no attempt has begun since, and the node is the same.
    """
    told = (
        known
        for known in history
        if known.pod is None
        and known.attempt is not None
        and known.attempt == incident.attempt
        and (abs(incident.time - known.time) <= SAME_EVENT or (known.node is not None and known.node == incident.node))
    )
    return next(told, None)


def merge_reported(history: History, incidents: Sequence[ReportedIncident], now: datetime) -> History:
    """`history` with the interruptions that the driver reports: one per attempt, never a second time.

    The driver's clock may be ahead of ours: nothing that it tells of is in the future. Of a history that is full, what
    it tells of an older attempt has been dropped.
    """
    for said in incidents:
        same = [i for i, known in enumerate(history) if _same(known, said)]
        if same:
            known = history[same[0]]
            update = {
                "attempt": said.attempt,
                "rank": said.rank if known.rank is None else known.rank,
                "step": said.step if known.step is None else known.step,
            }
            history = (*history[: same[0]], known.model_copy(update=update), *history[same[0] + 1 :])
        elif len(history) < LENGTH or said.attempt > max(known.attempt or 0 for known in history):
            history = _ordered((*history, _incident(said, now)))
    return history


def recover(history: History, report: ProgressReport | None, since: datetime) -> History:
    """`history` with the cost of each incident after `since`, once a later attempt has finished its first step."""
    if report is None or report.stage != "Train" or report.first_step_at is None:
        return history
    first_step_at = report.first_step_at
    return tuple(_recovered(i, report, first_step_at) if i.time >= since else i for i in history)


def all_recovered(history: History, since: datetime, now: datetime) -> History:
    """`history` with every incident after `since` recovered from by `now`; what it cost in steps is not known."""
    return tuple(
        i.model_copy(update={"seconds_to_recover": max(0, round((now - i.time).total_seconds()))})
        if i.time >= since and i.seconds_to_recover is None
        else i
        for i in history
    )


def interrupted(history: History, since: datetime) -> bool:
    """Whether the run has not recovered from its newest incident; one before `since` is of an earlier run."""
    return bool(history) and history[-1].time >= since and history[-1].seconds_to_recover is None


def news(old: History, new: History) -> History:
    """The incidents of `new` that `old` did not know, be it from the driver alone."""
    known = {(i.time, i.pod, i.attempt) for i in old} | {(i.time, None, i.attempt) for i in old}
    return tuple(i for i in new if (i.time, i.pod, i.attempt) not in known)


def harmless(incident: Incident) -> Incident:
    """`incident` of a pod that took no part in training: the run went on, no attempt ended by it."""
    return incident.model_copy(update={"attempt": None, "steps_lost": 0, "seconds_to_recover": 0})


def is_harmless(incident: Incident) -> bool:
    """Whether the incident interrupted nothing."""
    return incident.attempt is None and incident.seconds_to_recover == 0


def _same(known: Incident, said: ReportedIncident) -> bool:
    """Whether the driver speaks of an incident that is known, perhaps from its pod alone."""
    if known.attempt is None:
        return known.seconds_to_recover is None and abs(known.time - said.time) <= SAME_EVENT
    return known.attempt == said.attempt


def _recovered(incident: Incident, report: ProgressReport, first_step_at: datetime) -> Incident:
    if incident.seconds_to_recover is not None:
        return incident
    later = first_step_at >= incident.time
    if incident.attempt is not None and report.attempt is not None:
        later = report.attempt > incident.attempt
    if not later:
        return incident
    lost = None if incident.step is None else max(0, incident.step - (report.resumed_from_step or 0))
    seconds = max(0, round((first_step_at - incident.time).total_seconds()))
    return incident.model_copy(update={"steps_lost": lost, "seconds_to_recover": seconds})


def _incident(said: ReportedIncident, now: datetime) -> Incident:
    return Incident.model_validate(
        {
            "time": min(said.time, now),
            "class": said.class_,
            "cause": said.sentence,
            "rank": said.rank,
            "attempt": said.attempt,
            "step": said.step,
        }
    )


def _ordered(history: Sequence[Incident]) -> History:
    return tuple(sorted(history, key=lambda incident: incident.time)[-LENGTH:])
