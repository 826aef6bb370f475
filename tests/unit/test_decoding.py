"""What the parser keeps of the API server's JSON, and what it passes over."""

from __future__ import annotations

import json
from collections.abc import Iterator
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints, is_typeddict

import pytest
from trainingjob_operator.api.status import AvoidedNode
from trainingjob_operator.core.affinity import affinity
from trainingjob_operator.core.cache import Cache
from trainingjob_operator.core.facts import PodFacts
from trainingjob_operator.core.kueue import FINALIZER, GATE, GROUP, RETRIABLE, ROLE_HASH, STOPPED
from trainingjob_operator.kube.api import PODS, SERVICES, TRAINING_JOBS
from trainingjob_operator.kube.decoding import Pod, decode, decode_event, decode_list

OWNER = {"apiVersion": "trainingjob.io/v1alpha1", "kind": "TrainingJob", "name": "a", "uid": "j1", "controller": True}
NOBODY_READS = {"managedFields": [{"manager": "x", "fieldsV1": {"f:metadata": {}}}], "generateName": "a-"}


def a_pod(state: dict[str, Any]) -> dict[str, Any]:
    """As the API server tells of it, with all that is looked for in one, and some of what is not."""
    conditions = [
        {"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"},
        {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes are available"},
        {"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI"},
        {"type": STOPPED, "status": "True", "message": "preempted"},
    ]
    failed = {"terminated": {"exitCode": 3}}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            **NOBODY_READS,
            "name": "a-train-1-2",
            "namespace": "default",
            "uid": "p1",
            "resourceVersion": "77",
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "deletionTimestamp": "2026-01-01T00:01:00Z",
            "labels": {"trainingjob.io/job-uid": "j1", "trainingjob.io/member": "true", GROUP: "a-train-1"},
            "annotations": {ROLE_HASH: "abc", RETRIABLE: "false"},
            "finalizers": [FINALIZER],
            "ownerReferences": [OWNER],
        },
        "spec": {
            "nodeName": "n2",
            "volumes": [{"name": "tmp", "emptyDir": {}}],
            "affinity": affinity(None, [AvoidedNode(name="n1", required=True)]),
            "containers": [{"name": "trainer", "image": "i", "resources": {"limits": {"memory": "1Gi"}}}],
            "schedulingGates": [{"name": GATE}],
            "schedulingGroup": {"podGroupName": "a"},
        },
        "status": {
            "phase": "Running",
            "podIP": "10.0.0.1",
            "hostIP": "10.0.0.2",
            "reason": "Evicted",
            "conditions": conditions,
            "containerStatuses": [{"name": "trainer", "image": "i", "state": state}, {"name": "b", "state": {}}],
            "initContainerStatuses": [{"name": "first", "state": failed}],
        },
    }


STATES: list[dict[str, Any]] = [
    {"running": {"startedAt": "2026-01-01T00:00:01Z"}},
    {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}},
    {"terminated": {"exitCode": 137, "reason": "OOMKilled", "message": "...", "finishedAt": "2026-01-01T00:00:09Z"}},
    {},
]


def wire(value: Any) -> bytes:
    return json.dumps(value).encode()


@pytest.mark.parametrize("state", STATES, ids=lambda state: next(iter(state), "none"))
def test_a_pod_that_is_decoded_in_part_tells_what_the_whole_pod_tells(state: dict[str, Any]) -> None:
    whole = a_pod(state)
    assert PodFacts.from_object(decode(wire(whole), PODS)) == PodFacts.from_object(whole)


def test_of_a_pod_no_objects_are_made_of_what_nobody_reads() -> None:
    pod = decode(wire(a_pod({})), PODS)
    assert not NOBODY_READS.keys() & pod["metadata"].keys()
    assert "volumes" not in pod["spec"]
    assert "hostIP" not in pod["status"]
    assert pod["spec"]["containers"] == [{"name": "trainer", "resources": {"limits": {"memory": "1Gi"}}}]


class Watched(dict[str, Any]):
    """Notes which keys are asked for, whether they are there or not."""

    def __init__(self, value: dict[str, Any], asked: set[tuple[str, ...]], path: tuple[str, ...] = ()) -> None:
        super().__init__({key: _watched(part, asked, (*path, key)) for key, part in value.items()})
        self._asked, self._path = asked, path

    def get(self, key: str, default: Any = None) -> Any:
        self._asked.add((*self._path, key))
        return super().get(key, default)

    def __getitem__(self, key: str) -> Any:
        self._asked.add((*self._path, key))
        return super().__getitem__(key)

    def __contains__(self, key: object) -> bool:
        self._asked.add((*self._path, str(key)))
        return super().__contains__(key)


def _watched(value: Any, asked: set[tuple[str, ...]], path: tuple[str, ...]) -> Any:
    if isinstance(value, dict):
        return Watched(value, asked, path)
    return [_watched(item, asked, path) for item in value] if isinstance(value, list) else value


def _kept(path: tuple[str, ...], kind: Any) -> bool:
    """Whether a decoder of this type keeps what is at this path."""
    if not is_typeddict(kind):
        return any(_kept(path, part) for part in _parts(kind)) or not any(_parts(kind))
    hints = get_type_hints(kind)
    return not path or (path[0] in hints and _kept(path[1:], hints[path[0]]))


def _parts(kind: Any) -> Iterator[Any]:
    """The typed dicts in a union or a list; none in what is kept whole."""
    if get_origin(kind) in (Union, UnionType, list):
        for part in get_args(kind):
            yield from [part] if is_typeddict(part) else _parts(part)


def test_whatever_is_asked_of_a_pod_the_decoder_keeps() -> None:
    asked: set[tuple[str, ...]] = set()
    for state in STATES:
        pod = Watched(a_pod(state), asked)
        PodFacts.from_object(pod)
        cache = Cache()
        cache.put_pod(pod)
        cache.remove_pod(pod)
    assert ("status", "containerStatuses", "state", "terminated") in asked
    assert not _kept(("metadata", "managedFields"), Pod)
    assert [".".join(path) for path in sorted(asked) if not _kept(path, Pod)] == []


def test_an_answer_about_pods_that_is_no_pod_is_whole() -> None:
    status = {"kind": "Status", "status": "Success", "code": 200, "details": {"name": "a"}}
    assert decode(wire(status), PODS) == status
    gone = {"kind": "Status", "status": "Failure", "code": 410, "reason": "Expired", "message": "too old"}
    assert decode_event(wire({"type": "ERROR", "object": gone}), PODS) == {"type": "ERROR", "object": gone}


def test_events_and_pages_of_pods_have_their_parts_and_their_version() -> None:
    bookmark = {"type": "BOOKMARK", "object": {"kind": "Pod", "metadata": {"resourceVersion": "9"}}}
    assert decode_event(wire(bookmark), PODS) == bookmark
    added = decode_event(wire({"type": "ADDED", "object": a_pod({})}), PODS)
    assert added == {"type": "ADDED", "object": decode(wire(a_pod({})), PODS)}
    page = {"kind": "PodList", "metadata": {"resourceVersion": "9", "continue": "c"}, "items": [a_pod({})]}
    assert decode_list(wire(page), PODS) == {"metadata": page["metadata"], "items": [added["object"]]}


def test_other_objects_are_whole_and_as_deep_as_they_are_stored() -> None:
    deep: dict[str, Any] = {}
    for _ in range(300):
        deep = {"a": deep}
    assert decode(wire(deep), TRAINING_JOBS) == deep
    assert decode(wire(a_pod({})), SERVICES) == a_pod({})
