"""A pod's affinity: what the user asks for, and away from the nodes that are avoided."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trainingjob_operator.api.status import AvoidedNode

Json = dict[str, Any]

REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"
PREFERRED = "preferredDuringSchedulingIgnoredDuringExecution"


def affinity(wanted: Mapping[str, Any] | None, avoided: Sequence[AvoidedNode]) -> Json | None:
    """`wanted`, an affinity as in a pod, with the nodes to avoid. What is no affinity is left for the API server."""
    if not avoided:
        return None if wanted is None else dict(wanted)
    whole: Json = dict(wanted or {})
    node = whole.get("nodeAffinity") or {}
    if not isinstance(node, dict):
        return whole
    node = dict(node)
    never = [_other_than(n.name) for n in avoided if n.required]
    rather_not = [_other_than(n.name) for n in avoided if not n.required]
    if never:
        node[REQUIRED] = _required(node.get(REQUIRED), never)
    if rather_not:
        node[PREFERRED] = _more(node.get(PREFERRED), [{"weight": 100, "preference": {"matchFields": rather_not}}])
    return {**whole, "nodeAffinity": node}


def required_elsewhere(pod_spec: Mapping[str, Any]) -> bool:
    """Whether this pod must stay off some node: an affinity that `affinity` has made says so."""
    try:
        terms = pod_spec["affinity"]["nodeAffinity"][REQUIRED]["nodeSelectorTerms"]
        fields = [field for term in terms for field in term.get("matchFields") or ()]
        return any((field["key"], field["operator"]) == ("metadata.name", "NotIn") for field in fields)
    except (KeyError, TypeError, AttributeError):
        return False


def _required(selector: Any, fields: Sequence[Json]) -> Any:
    """A node selector, of whose terms any may hold, with more that must hold."""
    if selector is None:
        return {"nodeSelectorTerms": [{"matchFields": [*fields]}]}
    terms = selector.get("nodeSelectorTerms") if isinstance(selector, dict) else None
    if not isinstance(terms, list):
        return selector
    return {**selector, "nodeSelectorTerms": [_narrowed(term, fields) for term in terms]}


def _narrowed(term: Any, fields: Sequence[Json]) -> Any:
    """A term without a rule matches no node, and would match the others if it got one."""
    if not isinstance(term, dict) or not term:
        return term
    return {**term, "matchFields": _more(term.get("matchFields"), fields)}


def _more(found: Any, items: Sequence[Json]) -> Any:
    return [*(found or ()), *items] if found is None or isinstance(found, list) else found


def _other_than(node: str) -> Json:
    """By the node's name: its label kubernetes.io/hostname may say something else."""
    return {"key": "metadata.name", "operator": "NotIn", "values": [node]}
