"""What a real API server refuses, and in what words: each rule of the schema, on creation and on every change."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
from kubernetes import client, config
from support.bad_specs import BY_RULE, BY_SCHEMA, FIXED, FOR_GOOD, SUSPEND_FIRST, WHILE_SUSPENDED, merged
from support.play import spec

if TYPE_CHECKING:
    from trainingjob_local.cluster import LocalCluster

Json = dict[str, Any]


class Door:
    """The API server, asked what it would do. `job` is there, the others are not."""

    def __init__(self, cluster: LocalCluster, namespace: str) -> None:
        api = client.CustomObjectsApi(config.new_client_from_config(str(cluster.kubeconfig)))
        self._api, self._where = api, ("trainingjob.io", "v1alpha1", namespace, "trainingjobs")

    def create(self, fields: Json, name: str = "gpt", **options: Any) -> str:
        """What it says when it refuses; empty when it does not."""
        body = {
            "apiVersion": "trainingjob.io/v1alpha1",
            "kind": "TrainingJob",
            "metadata": {"name": name},
            "spec": fields,
        }
        return _said(lambda: self._api.create_namespaced_custom_object(*self._where, body, **options))

    def try_create(self, fields: Json, name: str = "gpt") -> str:
        """The same, and nothing is created."""
        return self.create(fields, name, dry_run="All", field_validation="Strict")

    def try_change(self, fields: Json, **beside: Json) -> str:
        """The same for a merge patch of `job`, and of what is beside its spec; nothing is changed."""
        body, options = {"spec": fields, **beside}, {"dry_run": "All"}
        return _said(lambda: self._api.patch_namespaced_custom_object(*self._where, "job", body, **options))

    def change(self, fields: Json) -> None:
        self._api.patch_namespaced_custom_object(*self._where, "job", {"spec": fields})


def _said(request: Callable[[], object]) -> str:
    try:
        request()
    except client.ApiException as refusal:
        if refusal.status not in (400, 422):
            raise
        return str(json.loads(refusal.body)["message"])
    return ""


@pytest.fixture(scope="module")
def door(cluster: LocalCluster, make_namespace: Callable[[str], str]) -> Iterator[Door]:
    """A namespace with one TrainingJob, `job`."""
    namespace = make_namespace("door")
    door = Door(cluster, namespace)
    assert door.create(spec(), "job") == ""
    yield door
    cluster.kubectl("delete", "namespace", namespace, "--wait=false")


@pytest.mark.parametrize(("changes", "field", "kind", "message"), BY_RULE, ids=lambda value: str(value)[:40])
def test_a_rule_names_the_field_the_value_and_what_is_allowed(
    door: Door, changes: Json, field: str, kind: str, message: str
) -> None:
    assert f"spec.{field}: {kind}: {message}" in door.try_create(merged(spec(), changes))


@pytest.mark.parametrize(("changes", "message"), BY_SCHEMA, ids=lambda value: str(value)[:40])
def test_the_schema_names_the_field_the_value_and_what_is_allowed(door: Door, changes: Json, message: str) -> None:
    assert message in door.try_create(merged(spec(), changes))


def test_the_spec_that_the_others_are_made_of_is_accepted(door: Door) -> None:
    assert door.try_create(spec()) == ""


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a" * 47, "the name has 47 characters: at most 46 are allowed, because pods are named after it"),
        ("gpt.small", "the name gpt.small must begin with a lower-case letter and contain only lower-case letters"),
        ("1gpt", "the name 1gpt must begin with a lower-case letter and contain only lower-case letters, digits"),
    ],
)
def test_a_name_that_pods_cannot_bear_is_refused(door: Door, name: str, message: str) -> None:
    assert f"metadata.name: Invalid value: {message}" in door.try_create(spec(), name)


@pytest.mark.parametrize("suspended", [False, True])
def test_what_the_state_depends_on_never_changes(door: Door, suspended: bool) -> None:
    door.change({"runPolicy": {"suspend": suspended}})
    for field, changes in FIXED.items():
        assert re.search(rf"spec: Forbidden: (\S+ )*{field} (\S+ )*{FOR_GOOD}", door.try_change(changes)), field


def test_what_never_changes_does_not_with_another_phase_either(door: Door) -> None:
    """The rules are skipped where the phase changes, which only writes of the status can do."""
    said = door.try_change({"training": {"seed": 2}}, status={"phase": "Running"})
    assert f"spec: Forbidden: training.seed {FOR_GOOD}" in said


def refused_for(field: str) -> str:
    """The pattern of a refusal that names the field, perhaps among others that changed with it."""
    return rf"spec: Forbidden: (\S+ )*{field} (\S+ )*{SUSPEND_FIRST}"


def test_several_fields_that_may_not_change_are_named_in_one_refusal(door: Door) -> None:
    door.change({"runPolicy": {"suspend": None}})
    said = door.try_change({"training": {"seed": 2, "emaDecay": 0.5, "logEvery": 7}})
    assert f"spec: Forbidden: training.seed training.emaDecay {FOR_GOOD}" in said
    said = door.try_change({"training": {"logEvery": 7, "hangSeconds": 400}})
    assert f"spec: Forbidden: training.hangSeconds training.logEvery {SUSPEND_FIRST}" in said


def test_what_a_resume_takes_up_changes_only_while_suspended(door: Door) -> None:
    door.change({"runPolicy": {"suspend": None}})
    for field, changes in WHILE_SUSPENDED.items():
        refused = refused_for(field)
        assert re.search(refused, door.try_change(changes)), field
        in_the_same_step = door.try_change(merged({"runPolicy": {"suspend": True}}, changes))
        assert re.search(refused, in_the_same_step), field
    door.change({"runPolicy": {"suspend": True}})
    for field, changes in WHILE_SUSPENDED.items():
        assert door.try_change(changes) == "", field
        assert re.search(refused_for(field), door.try_change(merged({"runPolicy": {"suspend": False}}, changes))), field
