"""The API server's JSON as Python objects; of a pod, only the parts that the operator reads.

Pods are most of what it is told, and three quarters of one (field managers, volumes, probes, environments) nobody here
looks at: the parser passes over them, and makes no objects of them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypedDict

import msgspec
from pydantic_core import from_json

from .api import PODS, Resource


class Metadata(TypedDict, total=False):
    name: str
    namespace: str
    uid: str
    resourceVersion: str
    creationTimestamp: str | None
    deletionTimestamp: str | None
    labels: dict[str, str] | None
    annotations: dict[str, str] | None
    finalizers: list[str] | None
    ownerReferences: list[dict[str, Any]] | None


class Container(TypedDict, total=False):
    name: str
    resources: dict[str, Any] | None


class PodSpec(TypedDict, total=False):
    nodeName: str
    affinity: dict[str, Any] | None
    containers: list[Container] | None
    schedulingGates: list[dict[str, Any]] | None
    schedulingGroup: dict[str, Any] | None


class ContainerStatus(TypedDict, total=False):
    name: str
    state: dict[str, Any] | None


class PodCondition(TypedDict, total=False):
    type: str
    status: str
    reason: str | None
    message: str | None


class PodStatus(TypedDict, total=False):
    phase: str
    podIP: str
    reason: str
    conditions: list[PodCondition] | None
    containerStatuses: list[ContainerStatus] | None
    initContainerStatuses: list[ContainerStatus] | None


class Pod(TypedDict, total=False):
    """What of a pod is read, by `PodFacts` and by the cache."""

    kind: str
    metadata: Metadata
    spec: PodSpec
    status: PodStatus


class _PodList(TypedDict):
    metadata: dict[str, Any]
    items: list[Pod]


class _PodEvent(TypedDict):
    type: str
    object: Pod


_pod = msgspec.json.Decoder(Pod).decode
_pod_list = msgspec.json.Decoder(_PodList).decode
_pod_event = msgspec.json.Decoder(_PodEvent).decode


def decode(text: bytes, resource: Resource) -> Any:
    """An object; of pods, if they are the resource, their parts. An answer that is no pod, a Status say, is whole."""
    return _parts(_pod, text) if resource == PODS else _whole(text)


def decode_list(text: bytes, resource: Resource) -> Any:
    """A page of a LIST."""
    return _parts(_pod_list, text) if resource == PODS else _whole(text)


def decode_event(line: bytes, resource: Resource) -> Any:
    """A line of a watch. An event that tells of an error has a Status for its object."""
    event = _parts(_pod_event, line) if resource == PODS else _whole(line)
    return _whole(line) if event["type"] == "ERROR" else event


def _parts(decoder: Callable[[bytes], Any], text: bytes) -> Any:
    try:
        return decoder(text)
    except msgspec.MsgspecError:
        return _whole(text)


def _whole(text: bytes) -> Any:
    """JSON as deep as API servers store it: the quick parser gives up at 200 levels."""
    try:
        return from_json(text)
    except ValueError:
        return json.loads(text)
