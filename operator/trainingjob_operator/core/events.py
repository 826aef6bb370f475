"""Events about a job: what changed from one status to the next that a person would want to know."""

from __future__ import annotations

from trainingjob_operator.api.status import Incident, Phase, TrainingJobStatus
from trainingjob_operator.core import history, obstacle
from trainingjob_operator.core.plan import EventFact

TOLD: dict[Phase, str] = {
    "Preparing": "Preparing",
    "Starting": "Starting",
    "Running": "Running",
    "Suspended": "Suspended",
    "Succeeded": "Succeeded",
}


def events(old: TrainingJobStatus, new: TrainingJobStatus) -> tuple[EventFact, ...]:
    """New incidents, then the new phase, if it is one that is told, then what is newly in the way.

    That a new job of kind custom is Starting is no news: it has just been applied."""
    told = [_incident(i) for i in history.news(old.history, new.history)]
    before, now = obstacle.told(old), obstacle.told(new)
    if new.phase != old.phase and new.phase is not None:
        if new.phase == "Failed":
            told.append(EventFact("Warning", "Failed", new.message))
        elif new.phase in TOLD and (new.phase != "Starting" or (old.phase is not None and now is None)):
            told.append(EventFact("Normal", TOLD[new.phase], new.message))
    yielded = _required(old) - _required(new) if new.resolved is not None else set()
    if yielded:
        message = f"No other node takes the pods: {', '.join(sorted(yielded))} may run them again."
        told.append(EventFact("Normal", "NodeUsedAgain", message))
    if now is not None and (before is None or before.reason != now.reason):
        told.append(EventFact("Warning", now.reason, now.message))
    return tuple(told)


def _required(status: TrainingJobStatus) -> set[str]:
    """Nodes on which no pod of the run may run."""
    nodes = status.resolved.avoided_nodes if status.resolved is not None else ()
    return {node.name for node in nodes if node.required}


def _incident(incident: Incident) -> EventFact:
    wished = incident.class_ == "Resized"
    told = incident.cause or f"{incident.class_} of {incident.pod or 'a rank'}"
    return EventFact("Normal" if wished else "Warning", incident.class_, told)
