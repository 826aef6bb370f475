"""What keeps a job's objects from being created although nothing is wrong with the job: said in its status."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from trainingjob_operator.api.status import Condition, TrainingJobStatus


@dataclass(frozen=True)
class Obstacle:
    """The API server's refusal of a child, or a foreign object that bears the child's name.

    reason: one CamelCase word. message: what is in the way and what to do.
    """

    reason: str
    message: str


def foreign(kind: str, name: str) -> Obstacle:
    """An object of this name exists and is not the job's own; it is never touched."""
    return Obstacle(
        "NameTaken",
        f"{kind} {name} exists and does not belong to this job: delete or rename it, or give the job another name.",
    )


def refused(kind: str, name: str, why: str) -> Obstacle:
    """The API server refuses the object: a quota, a missing right, Pod Security, or a template that is not valid."""
    return Obstacle("CreateRefused", f"{kind} {name} cannot be created: {why}"[:1024])


def overlay(
    status: TrainingJobStatus, written: TrainingJobStatus, obstacle: Obstacle, now: datetime
) -> TrainingJobStatus:
    """`status`, with the obstacle as its message and as condition Stalled.

    `written` is the status on the API server: a condition that it has already keeps its time, so that an obstacle that
    stays causes no further write.
    """
    stalled = Condition(
        type="Stalled",
        status="True",
        reason=obstacle.reason,
        message=obstacle.message,
        last_transition_time=now,
        observed_generation=status.observed_generation,
    )
    for condition in written.conditions:
        if condition.type == "Stalled" and condition.status == "True":
            stalled = stalled.model_copy(update={"last_transition_time": condition.last_transition_time})
    present = any(condition.type == "Stalled" for condition in status.conditions)
    kept = status.conditions if present else (*status.conditions, stalled)
    conditions = tuple(stalled if condition.type == "Stalled" else condition for condition in kept)
    return status.model_copy(update={"message": obstacle.message, "conditions": conditions})
