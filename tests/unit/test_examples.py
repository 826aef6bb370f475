"""The examples are valid, in the models' eyes and in the generated schema's, and mean the same in both."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from trainingjob_operator.api.crd import crd
from trainingjob_operator.api.spec import API_VERSION, KIND, TrainingJobSpec

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))


def load(path: Path) -> dict[str, Any]:
    manifest: dict[str, Any] = yaml.safe_load(path.read_text())
    return manifest


def unknown_fields(value: Any, schema: dict[str, Any], path: str = "") -> Iterator[str]:
    """Fields that the API server would prune, and values of a type that it would refuse."""
    if isinstance(value, dict) and schema.get("x-kubernetes-preserve-unknown-fields"):
        return
    kinds = {
        "object": dict,
        "array": list,
        "string": str,
        "boolean": bool,
        "integer": int,
        "number": (int, float),
    }
    kind = "string" if schema.get("x-kubernetes-int-or-string") else schema["type"]  # in the examples, at least
    if not isinstance(value, kinds[kind]):
        yield f"{path} is no {kind}"
    elif isinstance(value, dict):
        for key, item in value.items():
            known = schema.get("properties", {}).get(key) or schema.get("additionalProperties")
            if known:
                yield from unknown_fields(item, known, f"{path}.{key}")
            else:
                yield f"{path}.{key}"
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from unknown_fields(item, schema["items"], f"{path}[{index}]")


def test_there_are_examples_of_both_tasks() -> None:
    kinds = {TrainingJobSpec.model_validate(load(path)["spec"]).task.kind for path in EXAMPLES}
    assert kinds == {"language-modeling", "text-classification", "image-classification", "regression"}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
class TestExample:
    def test_is_a_valid_training_job(self, path: Path) -> None:
        manifest = load(path)
        assert (manifest["apiVersion"], manifest["kind"]) == (API_VERSION, KIND)
        assert manifest["metadata"]["name"] == path.stem
        TrainingJobSpec.model_validate(manifest["spec"])

    def test_has_no_field_that_the_schema_does_not_know(self, path: Path) -> None:
        (version,) = crd()["spec"]["versions"]
        schema = version["schema"]["openAPIV3Schema"]["properties"]["spec"]
        assert list(unknown_fields(load(path)["spec"], schema)) == []

    def test_evaluates_and_saves_more_than_once(self, path: Path) -> None:
        spec = TrainingJobSpec.model_validate(load(path)["spec"])
        assert spec.checkpoint.every_steps * 2 <= spec.training.steps
        assert spec.evaluation.every_steps * 2 <= spec.training.steps
