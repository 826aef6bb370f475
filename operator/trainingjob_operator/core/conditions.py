"""Conditions of a TrainingJob, in kstatus' terms.

Reconciling: on the way to what the spec wants. Ready: there. Stalled: it will not get there by itself, because it has
failed or waits for a person. Of the three one holds at a time. A suspended job has no Ready condition: it is where the
spec wants it, so nothing waits for it, and yet it is not running.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from trainingjob_operator.api.status import Condition, ConditionType, Phase, TrainingJobStatus
from trainingjob_operator.core.obstacle import Obstacle

ON_THE_WAY: frozenset[Phase] = frozenset({"Pending", "Queued", "Preparing", "Starting", "Restarting", "Suspending"})
FINISHED: frozenset[Phase] = frozenset({"Succeeded", "Failed"})


class Note(NamedTuple):
    """A condition that is worth to be said while it is true, whatever the phase is."""

    type: ConditionType
    reason: str
    message: str


def conditions(
    phase: Phase,
    reason: str,
    message: str,
    notes: Sequence[Note],
    before: Sequence[Condition],
    generation: int,
    now: datetime,
    stalled: bool = False,
) -> tuple[Condition, ...]:
    """All conditions of a job in `phase`.

    reason, message: of the conditions that hold. notes: conditions that are there only while they are true.
    before: the conditions up to now, whose transition times are kept where the status stays. stalled: on the way, and
    a person has to clear it.
    """
    stalled = stalled and phase in ON_THE_WAY
    holds: dict[ConditionType, bool] = {
        "Ready": phase in ("Running", "Succeeded"),
        "Reconciling": phase in ON_THE_WAY and not stalled,
        "Stalled": phase == "Failed" or stalled,
        "Suspended": phase == "Suspended",
        "Complete": phase == "Succeeded",
        "Failed": phase == "Failed",
        "Finished": phase in FINISHED,
    }
    if phase == "Suspended":
        del holds["Ready"]
    known = {c.type: c for c in before}
    told = [(Note(kind, reason, message if true else ""), true) for kind, true in holds.items()]
    told += [(note, True) for note in notes]
    return tuple(_condition(note, true, known.get(note.type), generation, now) for note, true in told)


def _condition(note: Note, true: bool, before: Condition | None, generation: int, now: datetime) -> Condition:
    status = "True" if true else "False"
    return Condition(
        type=note.type,
        status=status,
        reason=note.reason,
        message=note.message,
        last_transition_time=before.last_transition_time if before is not None and before.status == status else now,
        observed_generation=generation,
    )


def after_the_end(
    status: TrainingJobStatus, generation: int, refusal: Obstacle | None, now: datetime
) -> TrainingJobStatus:
    """`status` of a finished job, which still holds for this generation of the spec, and what keeps its pods there."""
    seen = {"observed_generation": generation}
    found = {c.type: c.model_copy(update=seen) for c in status.conditions}
    before = found.pop("CleanupRefused", None)
    if refusal is not None and refusal.reason == "DeleteRefused":
        note = Note("CleanupRefused", refusal.reason, refusal.message)
        found[note.type] = _condition(note, True, before, generation, now)
    return status.model_copy(update={**seen, "conditions": tuple(found.values())})
