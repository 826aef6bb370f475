"""The spec's models say what the CRD's rules say, so a spec read past the API server is no surprise."""

import re
from typing import Any

import pytest
from pydantic import ValidationError
from support import bad_specs
from support.bad_specs import BY_RULE, BY_SCHEMA, merged
from support.play import spec
from trainingjob_operator.api import change_rules
from trainingjob_operator.api.rules import RULES
from trainingjob_operator.api.spec import TrainingJobSpec
from trainingjob_operator.api.status import Progress, TrainingJobStatus
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
    with pytest.raises(ValidationError):
        TrainingJobSpec.model_validate(merged(spec(), changes))


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


NEW_FIELDS: Json = {"training": {"magic": {"deep": [1]}}, "runPolicy": {"maxRestarts": 5, "gracious": True}}


def test_fields_of_a_newer_crd_are_ignored_and_named(caplog: pytest.LogCaptureFixture) -> None:
    """Where it gives them defaults, all jobs have them: none could be run when the operator is rolled back."""
    found = job(merged(spec(), NEW_FIELDS)).spec
    assert isinstance(found, TrainingJobSpec)
    assert found == TrainingJobSpec.model_validate(merged(spec(), {"runPolicy": {"maxRestarts": 5}}))
    (said,) = caplog.messages
    assert said.endswith("ignores spec.runPolicy.gracious, spec.training.magic")


def test_a_value_of_a_newer_crd_is_named() -> None:
    found = job(merged(spec(), {**NEW_FIELDS, "task": {"kind": "dreaming"}})).spec
    assert isinstance(found, InvalidSpec)
    assert found.message.startswith("spec.task.kind: ")


TOLD: Json = {"status": "True", "reason": "R", "lastTransitionTime": "2026-01-01T00:00:00Z"}
RESOLVED: Json = {
    "image": "i",
    "templateVersion": 9,
    "configHash": "h",
    "replicas": 2,
    "ranksPerPod": 1,
    "worldSize": 2,
}
RUNNING: Json = {
    "phase": "Running",
    "observedGeneration": 3,
    "conditions": [{"type": "Ready", **TOLD}],
    "stage": "Train",
    "resolved": RESOLVED,
    "restarts": {"total": 3, "withoutProgress": 1},
    "pods": [{"role": "train", "index": index, "incarnation": 2} for index in range(2)],
    "history": [{"time": "2026-01-01T00:00:00Z", "class": "Hang"}],
}


def test_a_status_of_a_newer_operator_keeps_what_is_understood() -> None:
    read, whole = job(spec(), {**RUNNING, "newField": 1}).status, TrainingJobStatus.model_validate(RUNNING)
    assert read == whole
    told = {
        **RUNNING,
        "conditions": [{"type": "Dreaming", **TOLD}, *RUNNING["conditions"], {"type": "Awake", **TOLD, "status": 3}],
        "pods": [*RUNNING["pods"], {"role": "dreamer", "index": 0, "incarnation": 1}],
        "history": [{"class": "NoTime"}, *RUNNING["history"]],
        "progress": {"percent": 101, "step": 7},
        "checkpoint": "later",
    }
    assert job(spec(), told).status == whole.model_copy(update={"progress": Progress(step=7)})


@pytest.mark.parametrize("parts", [{}, {"phase": "Restarting"}])
def test_a_run_in_a_stage_that_is_not_known_begins_with_the_first_one_again(parts: Json) -> None:
    status = job(spec(), {**RUNNING, **parts, "stage": "Dream"}).status
    assert (status.stage, status.resolved) == (None, None)
    assert len(status.pods) == 2, "their incarnations do not come again"


@pytest.mark.parametrize(
    ("parts", "phase"),
    [
        ({}, "Restarting"),
        ({"completionTime": "2026-01-01T00:00:00Z"}, "Failed"),
        ({"completionTime": "2026-01-01T00:00:00Z", "conditions": [{"type": "Complete", **TOLD}]}, "Succeeded"),
    ],
)
def test_a_phase_that_is_not_known_is_none_of_a_new_job(parts: Json, phase: str) -> None:
    """One that is done is not run again when the operator is rolled back; of one that runs the pods are known."""
    assert job(spec(), {**RUNNING, **parts, "phase": "Dreaming"}).status.phase == phase


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
