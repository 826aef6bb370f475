"""Limits in time of a run. All are absolute times made of the status, so that an operator's restart changes none."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from trainingjob_operator.api.status import Incident, TrainingJobStatus
from trainingjob_operator.core import history
from trainingjob_operator.core.situation import Situation


@dataclass(frozen=True)
class Deadline:
    """A time after which the run is drained and given up.

    class_: of the incident. cause: what was not done in time. way_out: what the user can do.
    """

    at: datetime
    class_: str
    cause: str
    way_out: str


def deadlines(here: Situation, status: TrainingJobStatus) -> tuple[Deadline, ...]:
    """Those of the run that is on, the earliest first."""
    began, policy = status.start_time, here.spec.run_policy
    if began is None or status.resolved is None:
        return ()
    found = []
    if policy.active_deadline_seconds is not None:
        seconds = policy.active_deadline_seconds
        cause = f"the run was not done after {seconds} seconds (runPolicy.activeDeadlineSeconds)"
        way_out = "A new TrainingJob with the same outputUri goes on from the last checkpoint"
        found.append(Deadline(began + timedelta(seconds=seconds), "DeadlineExceeded", cause, way_out))
    if policy.start_deadline_seconds is not None and status.training_start_time is None:
        seconds = policy.start_deadline_seconds
        cause = f"the workers did not all run after {seconds} seconds (runPolicy.startDeadlineSeconds)"
        way_out = "Create the job again when that is cured; with the same outputUri nothing that was done is lost"
        found.append(Deadline(began + timedelta(seconds=seconds), "StartDeadlineExceeded", cause, way_out))
    return tuple(sorted(found, key=lambda deadline: deadline.at))


def passed(here: Situation, status: TrainingJobStatus) -> Deadline | None:
    """The deadline that the run has passed."""
    return next((deadline for deadline in deadlines(here, status) if deadline.at <= here.now), None)


def recorded(
    here: Situation, status: TrainingJobStatus, deadline: Deadline, why: str
) -> tuple[TrainingJobStatus, Incident]:
    """`status` with the incident, and the incident: noted when the deadline passes, as draining removes its cause."""
    began = status.start_time or here.now
    for known in status.history:
        if known.class_ == deadline.class_ and known.time >= began:
            return status, known
    cause = f"{deadline.cause}: {why.rstrip(' .')}" if why else deadline.cause
    incident = Incident.model_validate({"time": here.now, "class": deadline.class_, "cause": cause})
    return status.model_copy(update={"history": history.record(status.history, incident)}), incident
