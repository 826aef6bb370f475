"""The CustomResourceDefinition as a document; tests/cluster/test_crd_admission.py has the API server's opinion."""

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from trainingjob_operator.api.change_rules import FIXED, OPTIONAL, WHILE_SUSPENDED
from trainingjob_operator.api.crd import crd, schema_of
from trainingjob_operator.api.rules import RULES
from trainingjob_operator.api.served import LIMITS, refused_of_status
from trainingjob_operator.api.spec import TrainingJobSpec
from trainingjob_operator.api.status import TrainingJobStatus
from trainingjob_trainer.config import TrainerSpec

Json = dict[str, Any]
FILE = Path(__file__).parents[2] / "crds" / "trainingjobs.trainingjob.io.yaml"


def nodes(schema: Json, path: str = "") -> list[tuple[str, Json]]:
    """Every schema in `schema`, with its path."""
    found = [(path, schema)]
    for key, child in schema.get("properties", {}).items():
        found += nodes(child, f"{path}.{key}")
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            found += nodes(schema[key], f"{path}[]")
    return found


SPEC, STATUS = (schema_of(model, defaults=True) for model in (TrainingJobSpec, TrainingJobStatus))


def test_the_file_is_what_the_models_generate() -> None:
    assert yaml.safe_load(FILE.read_text()) == crd(), "run `make crds`"


@pytest.mark.parametrize("schema", [SPEC, STATUS], ids=["spec", "status"])
def test_every_string_list_and_map_is_bounded(schema: Json) -> None:
    for path, node in nodes(schema):
        if node.get("x-kubernetes-int-or-string"):
            assert "x-kubernetes-validations" in node or {"maximum", "maxLength"} <= set(node), path
            continue
        if node["type"] == "string" and "enum" not in node and node.get("format") != "date-time":
            assert "maxLength" in node, path
        if node["type"] == "array":
            assert "maxItems" in node, path
        if node["type"] == "object" and "additionalProperties" in node:
            assert "maxProperties" in node, path


@pytest.mark.parametrize("schema", [SPEC, STATUS], ids=["spec", "status"])
def test_every_field_is_described(schema: Json) -> None:
    for path, node in nodes(schema):
        if not path.endswith("[]"):
            assert node.get("description"), path


@pytest.mark.parametrize("schema", [SPEC, STATUS], ids=["spec", "status"])
def test_the_schema_is_structural(schema: Json) -> None:
    for path, node in nodes(schema):
        assert not {"anyOf", "allOf", "oneOf", "$ref", "const", "title", "nullable"} & set(node), path
        assert "properties" not in node or "additionalProperties" not in node, path


def test_the_defaults_are_the_models_defaults() -> None:
    """What the API server fills in is what Python would have taken."""

    def filled(schema: Json, value: Any) -> Any:
        if "properties" not in schema:
            return value
        given = {k: v["default"] for k, v in schema["properties"].items() if "default" in v} | value
        return {k: filled(schema["properties"][k], v) for k, v in given.items()}

    small = {
        "outputUri": "s3://bucket/r",
        "data": {"train": {"uri": "s3://bucket/d"}},
        "model": {"preset": "gpt-nano"},
        "training": {"steps": 1},
    }
    by_server, by_python = filled(SPEC, small), TrainingJobSpec.model_validate(small)
    assert TrainingJobSpec.model_validate(by_server) == by_python


def test_suspend_has_no_default() -> None:
    assert "default" not in SPEC["properties"]["runPolicy"]["properties"]["suspend"]


def test_fixed_fields_are_the_runs_identity() -> None:
    """A field is fixed exactly if another value makes the state of the run directory useless."""
    spec = TrainerSpec.model_validate(
        {
            "outputUri": "s3://bucket/r",
            "task": {"kind": "image-classification"},
            "data": {"train": {"uri": "s3://bucket/d", "format": "parquet"}, "augmentation": {"shift": 1}},
            "model": {"cnn": {}},
            "training": {"steps": 1},
        }
    )
    identity = [key for key in spec.identity() if not key.startswith("model.") and key != "data.order"]
    for key in identity:
        assert any(key == path or key.startswith(f"{path}.") for path in FIXED), key
    for path in set(FIXED) - {"outputUri", "model"}:
        assert any(key == path or key.startswith(f"{path}.") for key in identity), path


def test_every_field_of_the_spec_has_a_rule_about_its_change() -> None:
    always = {
        "runPolicy.suspend",
        "runPolicy.maxRestarts",
        "runPolicy.activeDeadlineSeconds",
        "runPolicy.startDeadlineSeconds",
        "runPolicy.podsTTLSecondsAfterFinished",
    }
    ruled = {*FIXED, *WHILE_SUSPENDED, "workers.replicas", "workers.minReplicas", *always}
    for path, node in nodes(SPEC):
        name = path.removeprefix(".")
        if "properties" in node or "[]" in name or not name:
            continue
        assert any(name == rule or name.startswith(f"{rule}.") for rule in ruled), name


def test_rules_know_which_fields_may_be_absent() -> None:
    """CEL fails on a field that is not there, and a rule that fails refuses every update."""
    for path in (*FIXED, *WHILE_SUSPENDED):
        node, at = SPEC, ""
        for part in path.split("."):
            at = f"{at}.{part}".removeprefix(".")
            always_there = "default" in node["properties"][part] or part in node.get("required", [])
            assert always_there == (at not in OPTIONAL), at
            node = node["properties"][part]


def test_there_is_always_a_status_whose_phase_rules_can_ask_for() -> None:
    assert crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["status"]["default"]


def test_rules_are_attached_to_their_models() -> None:
    texts = [rule["rule"] for _, node in nodes(SPEC) for rule in node.get("x-kubernetes-validations", [])]
    for model, rules in RULES.items():
        for rule in rules:
            assert any(rule.rule in text for text in texts), model


def test_a_status_is_taken_by_the_crd_of_its_operator_and_by_a_newer_one() -> None:
    newer = copy.deepcopy(STATUS)
    newer["properties"]["phase"]["enum"].append("Dreaming")
    newer["properties"]["dreams"] = {"type": "integer"}
    newer["properties"]["message"]["maxLength"] += 1
    assert refused_of_status(crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["status"]) == []
    assert refused_of_status(newer) == []


@pytest.mark.parametrize(("path", "node"), [pytest.param(path, node, id=path) for path, node in nodes(STATUS) if path])
def test_an_older_crd_is_known_by_any_field_value_or_limit_of_the_status(path: str, node: Json) -> None:
    older = copy.deepcopy(STATUS)
    changed = dict(nodes(older))[path]
    narrower = [limit for limit in LIMITS if limit in node]
    if node.get("enum"):
        gone = changed["enum"].pop()
        assert refused_of_status(older) == [f"status{path} {gone}"]
    for limit in narrower:
        changed[limit] -= 1
        assert f"status{path} with {limit} {node[limit]}" in refused_of_status(older)
    if not path.endswith("[]"):
        parent, _, name = path.rpartition(".")
        del dict(nodes(older))[parent]["properties"][name]
        assert f"status{path}" in refused_of_status(older)
