"""The spec's models say what the CRD's rules say, so a spec read past the API server is no surprise."""

import re
from typing import Any

import pytest
from support import bad_specs
from support.bad_specs import BY_RULE, BY_SCHEMA, merged
from support.play import spec
from trainingjob_operator.api import change_rules
from trainingjob_operator.api.rules import RULES
from trainingjob_operator.core.facts import InvalidSpec, Job

Json = dict[str, Any]


def job(fields: Json, status: dict[str, Any] | None = None) -> Job:
    metadata = {"name": "gpt", "namespace": "n", "uid": "u", "creationTimestamp": "2026-01-01T00:00:00Z"}
    return Job.from_object({"metadata": metadata, "spec": fields, "status": status})


@pytest.mark.parametrize(("changes", "field", "kind", "message"), BY_RULE, ids=lambda value: str(value)[:40])
def test_the_models_say_what_the_rules_say(changes: Json, field: str, kind: str, message: str) -> None:
    found = job(merged(spec(), changes)).spec
    assert isinstance(found, InvalidSpec)
    where, _, said = found.message.partition(": ")
    assert said == message
    assert f"spec.{field}".startswith(where.replace(".0", "[0]"))


@pytest.mark.parametrize("changes", [changes for changes, said in BY_SCHEMA if "Duplicate" not in said], ids=str)
def test_the_models_refuse_what_the_schema_refuses(changes: Json) -> None:
    found = job(merged(spec(), changes)).spec
    assert isinstance(found, InvalidSpec)
    assert found.message.startswith("spec.")


def test_every_rule_is_tried() -> None:
    """A rule that no bad spec runs into could be wrong."""
    for rule in (rule for model in RULES.values() for rule in model if "oldSelf" not in rule.rule):
        parts = re.split(r"%d|%s|%\.\df", rule.message)
        pattern = ".+".join(re.escape(part) for part in parts)
        assert any(re.fullmatch(pattern, message) for *_, message in BY_RULE), rule.message


def test_every_field_that_may_not_change_is_tried() -> None:
    assert set(bad_specs.FIXED) == set(change_rules.FIXED)
    assert set(bad_specs.WHILE_SUSPENDED) == set(change_rules.WHILE_SUSPENDED) - {
        "task.custom"
    }  # of another kind of task: tested there


def test_a_status_of_a_newer_operator_keeps_what_is_understood() -> None:
    status = {"phase": "Running", "observedGeneration": 3, "newField": 1, "pods": []}
    assert job(spec(), status).status.phase == "Running"
    assert job(spec(), {**status, "phase": "Dreaming"}).status.phase is None


def test_a_finished_job_stays_so_although_a_newer_operator_has_told_more_of_it() -> None:
    """Else it would be run again when the operator is rolled back."""
    told = {"status": "True", "reason": "R", "lastTransitionTime": "2026-01-01T00:00:00Z"}
    conditions = [{"type": "Complete", **told}, {"type": "Certified", **told}]
    status = job(spec(), {"phase": "Succeeded", "conditions": conditions}).status
    assert status.phase == "Succeeded"
    assert [condition.type for condition in status.conditions] == ["Complete"]


@pytest.mark.parametrize("field", ["affinity", "env.0.valueFrom", "volumes.0"])
def test_what_is_handed_on_as_it_is_is_no_deeper_than_parts_of_pods_are(field: str) -> None:
    def template(levels: int) -> Json:
        value: Any = {}
        for _ in range(levels - 1):
            value = {"nested": [value]} if levels % 2 else {"nested": value}
        made = {"affinity": value, "env.0.valueFrom": [{"name": "A", "valueFrom": value}]}
        return {field.partition(".")[0]: made.get(field, [{"name": "v", **value}])}

    def read(levels: int) -> Any:
        return job(merged(spec(), {"workers": {"replicas": 1, "template": template(levels)}})).spec

    assert not isinstance(read(16), InvalidSpec)
    for levels in (100, 601):
        found = read(levels)
        assert isinstance(found, InvalidSpec)
        said = "is nested more than 32 levels deep, which no part of a pod is"
        assert found.message == f"spec.workers.template.{field}: {said}"
