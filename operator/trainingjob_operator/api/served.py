"""What the CRD that an API server has does not take of a status as this operator writes it.

Fields that a CRD does not have are dropped without a word, values that it does not have are refused: an operator newer
than its CRD would lose what it counts, and its jobs would stand still.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trainingjob_operator.api.crd import schema_of
from trainingjob_operator.api.status import TrainingJobStatus

LIMITS = ("maximum", "maxLength", "maxItems", "maxProperties")


def refused_of_status(served: Mapping[str, Any]) -> list[str]:
    """Fields, values and limits that the served schema of `status` lacks; none if the CRD is as new as the operator."""
    return _refused("status", schema_of(TrainingJobStatus, defaults=False), served)


def _refused(path: str, own: Mapping[str, Any], served: Mapping[str, Any]) -> list[str]:
    if own.get("type") != served.get("type"):
        return [f"{path} of type {own.get('type')}"]
    if "enum" in served:
        return [f"{path} {value}" for value in own.get("enum", ()) if value not in served["enum"]]
    found = [
        f"{path} with {limit} {own.get(limit)}"
        for limit in LIMITS
        if limit in served and (limit not in own or served[limit] < own[limit])
    ]
    for name, schema in own.get("properties", {}).items():
        known = served.get("properties", {}).get(name)
        there = f"{path}.{name}"
        found += [there] if known is None else _refused(there, schema, known)
    for within, there in (("items", f"{path}[]"), ("additionalProperties", f"{path}.*")):
        if within in own:
            found += _refused(there, own[within], served.get(within, {}))
    return found
