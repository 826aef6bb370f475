"""Nodes that end a run's pods again and again: later pods go elsewhere, as long as there is an elsewhere.

The affinity is required, because a preference is outweighed by an image that lies on the bad node, or by its being
empty. But a run never waits for a better node: when the scheduler finds no other place, the requirement becomes a
preference and the pods that wait are made anew. Which nodes are avoided, and how, is part of `status.resolved`, so that
every replacement agrees; a resume forgets it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime, timedelta

from trainingjob_operator.api.status import AvoidedNode, Incident, TrainingJobStatus
from trainingjob_operator.core.failures import UNCOUNTED
from trainingjob_operator.core.names import parse_pod_name

STRIKES = 2
ONE_BLOW = timedelta(seconds=60)
MOST = 16  # avoided nodes of a run; more say nothing about any of them
BLAMELESS = (UNCOUNTED - {"NodeLost"}) | {"Storage", "Fenced"}


def strike(status: TrainingJobStatus) -> TrainingJobStatus:
    """`status` with the nodes to avoid that its history tells of; the incident that decides it says so."""
    if status.resolved is None or status.start_time is None:
        return status
    avoided = status.resolved.avoided_nodes
    known = {node.name for node in avoided}
    guilty = [node for node in _guilty(status.history, status.start_time) if node not in known]
    if not guilty:
        return status
    added = tuple(AvoidedNode(name=node, required=True) for node in guilty)
    resolved = status.resolved.model_copy(update={"avoided_nodes": (*avoided, *added)[-MOST:]})
    told = tuple(_told(status.history, incident, guilty) for incident in status.history)
    return status.model_copy(update={"resolved": resolved, "history": told})


def yielding(status: TrainingJobStatus) -> TrainingJobStatus:
    """`status` with a mere preference for other nodes: there is no other place."""
    assert status.resolved is not None
    nodes = tuple(node.model_copy(update={"required": False}) for node in status.resolved.avoided_nodes)
    return status.model_copy(update={"resolved": status.resolved.model_copy(update={"avoided_nodes": nodes})})


def _guilty(history: Sequence[Incident], since: datetime) -> list[str]:
    """Nodes that have dealt the run two blows since its start or resume."""
    by_node: dict[str, list[Incident]] = defaultdict(list)
    for incident in history:
        if incident.node is not None and incident.time >= since and incident.class_ not in BLAMELESS:
            by_node[incident.node].append(incident)
    return [node for node, incidents in by_node.items() if _blows(incidents) >= STRIKES]


def _blows(incidents: Sequence[Incident]) -> int:
    """How often the node struck: pods that fall together fall to one blow, a pod and its successor do not."""
    blows, began = 0, None
    fallen: set[object] = set()
    for incident in incidents:
        who = _who(incident)
        if began is None or incident.time - began > ONE_BLOW or who in fallen:
            blows, began, fallen = blows + 1, incident.time, set()
        fallen.add(who)
    return blows


def _who(incident: Incident) -> object:
    """Whose end it was: of a pod's place in its gang; or of a rank, and then each attempt ends for itself."""
    name = parse_pod_name(incident.pod) if incident.pod is not None else None
    return None if name is None else (name.role, name.index)


def _told(history: Sequence[Incident], incident: Incident, guilty: Sequence[str]) -> Incident:
    """`incident`, which says that its node is avoided if it is the newest of that node."""
    if incident.node not in guilty or any(i.node == incident.node and i.time > incident.time for i in history):
        return incident
    if any(i.node == incident.node for i in history[history.index(incident) + 1 :]):
        return incident
    cause = f"{incident.cause.rstrip(' .')}; later pods avoid node {incident.node}"
    return incident.model_copy(update={"cause": cause.removeprefix("; ")})
