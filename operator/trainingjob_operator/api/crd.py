"""The CustomResourceDefinition, made from the models: `python -m trainingjob_operator.api.crd` prints it as YAML."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import yaml
from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import core_schema

from trainingjob_operator.api.cel import Rule, validations
from trainingjob_operator.api.rules import ROOT_RULES, RULES
from trainingjob_operator.api.spec import GROUP, KIND, PLURAL, VERSION, TrainingJobSpec
from trainingjob_operator.api.status import TrainingJobStatus

Json = dict[str, Any]

COLUMNS: tuple[tuple[str, str, str, int], ...] = (
    ("Phase", "string", ".status.phase", 0),
    ("Progress", "string", ".status.progress.summary", 0),
    ("Loss", "number", ".status.progress.loss", 0),
    ("Workers", "integer", ".status.workers.ready", 0),
    ("Restarts", "integer", ".status.restarts.total", 0),
    ("Age", "date", ".metadata.creationTimestamp", 0),
    ("Message", "string", ".status.message", 1),
)
# What makes two entries of a list the same, where order means nothing: so an apply merges instead of replacing.
LIST_KEYS: dict[tuple[str, str], list[str]] = {
    ("Template", "env"): ["name"],
    ("Template", "volumes"): ["name"],
    ("Template", "volumeMounts"): ["mountPath"],
    ("Template", "imagePullSecrets"): ["name"],
    ("TrainingJobStatus", "conditions"): ["type"],
}
# JSON Schema's words that mean the same in a structural schema.
KEPT = ("type", "description", "enum", "pattern", "minLength", "maxLength", "minItems", "maxItems", "maxProperties")


def crd() -> Json:
    """The CustomResourceDefinition."""
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{PLURAL}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": KIND,
                "listKind": f"{KIND}List",
                "plural": PLURAL,
                "singular": KIND.lower(),
                "shortNames": ["tj"],
                "categories": ["all"],
            },
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": {
                        "status": {},
                        "scale": {
                            "specReplicasPath": ".spec.workers.replicas",
                            "statusReplicasPath": ".status.workers.ready",
                            "labelSelectorPath": ".status.selector",
                        },
                    },
                    "additionalPrinterColumns": [
                        {"name": name, "type": kind, "jsonPath": path, **({"priority": priority} if priority else {})}
                        for name, kind, path, priority in COLUMNS
                    ],
                    "schema": {"openAPIV3Schema": _root()},
                }
            ],
        },
    }


def _root() -> Json:
    status = schema_of(TrainingJobStatus, defaults=False)
    status["properties"]["observedGeneration"]["default"] = -1
    # So that tools never take a job for current that no operator has seen.
    status["default"] = {"observedGeneration": -1}
    # One writer writes it whole. Field by field, who owns what of it would be half of a stored job, and a fifth of what
    # the API server does at each write.
    status["x-kubernetes-map-type"] = "atomic"
    text = "string"
    return {
        "type": "object",
        "description": "A training run: from raw data in S3 to a trained, evaluated and exported model.",
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": text, "description": "Version of the schema of this object."},
            "kind": {"type": text, "description": "Kind of this object."},
            "metadata": {"type": "object", "properties": {"name": {"type": text}}},
            "spec": schema_of(TrainingJobSpec, defaults=True),
            "status": status,
        },
        "x-kubernetes-validations": validations(ROOT_RULES),
    }


def schema_of(model: type[BaseModel], *, defaults: bool) -> Json:
    """Structural schema of `model`; with the models' defaults as schema defaults or without any."""
    source = model.model_json_schema(by_alias=True, schema_generator=_WithFactories)
    rules = {cls.__name__: validations(found) for cls, found in RULES.items()}
    return _Structural(source.get("$defs", {}), rules, defaults).convert(source)


class _WithFactories(GenerateJsonSchema):
    """JSON schema whose defaults include those that a factory makes."""

    def get_default_value(self, schema: core_schema.WithDefaultSchema) -> Any:
        if "default_factory" in schema and not schema.get("default_factory_takes_data"):
            return schema["default_factory"]()  # type: ignore[call-arg]
        return super().get_default_value(schema)


class _Structural:
    """JSON Schema to Kubernetes' structural schema: references inlined, `X or null` is an optional X."""

    def __init__(self, definitions: Mapping[str, Json], rules: Mapping[str, list[Json]], defaults: bool) -> None:
        self._definitions = definitions
        self._rules = rules
        self._defaults = defaults

    def convert(self, source: Json) -> Json:
        """Structural schema of one JSON schema."""
        source = self._resolved(source)
        if "anyOf" in source:
            return self._number_or_word(source)
        result: Json = {key: source[key] for key in KEPT if key in source}
        if "const" in source:
            result["enum"] = [source["const"]]
        if source.get("format") == "date-time":
            result["format"] = "date-time"
        _bounds(source, result)
        if result.get("type") == "object":
            self._object(source, result)
        elif result.get("type") == "array":
            result["items"] = self.convert(source["items"])
        default = source.get("default")
        if self._defaults and default is not None and not _is_absence(default, result):
            result["default"] = _minimal(default, result)
        return result

    def _resolved(self, source: Json) -> Json:
        """`source` without references and without the alternative null; what stands beside a reference wins."""
        beside = {key: value for key, value in source.items() if key not in ("$ref", "anyOf", "allOf")}
        if "$ref" in source:
            return {**self._resolved(self._definitions[source["$ref"].rpartition("/")[2]]), **beside}
        if "anyOf" in source:
            real = [option for option in source["anyOf"] if option.get("type") != "null"]
            return {"anyOf": real, **beside} if len(real) > 1 else {**self._resolved(real[0]), **beside}
        return source

    def _number_or_word(self, source: Json) -> Json:
        """An integer or a text: one of a pattern, or a certain word, for which bounds are in CEL only."""
        number, word = source["anyOf"]
        low, high, allowed = number["minimum"], number["maximum"], word.get("const")
        kept: Json = {key: source[key] for key in ("description", "default") if key in source}
        if allowed is None:
            bounds = {"minimum": low, "maximum": high, "pattern": word["pattern"], "maxLength": word["maxLength"]}
            return {"x-kubernetes-int-or-string": True, **kept, **bounds}
        rule = Rule(
            f"type(self) == int ? self >= {low} && self <= {high} : self == '{allowed}'",
            f"must be a number from {low} to {high}, or {allowed}",
        )
        return {"x-kubernetes-int-or-string": True, **kept, "x-kubernetes-validations": validations([rule])}

    def _object(self, source: Json, result: Json) -> None:
        properties = source.get("properties")
        if properties is not None:
            result["properties"] = {
                key: self._property(source["title"], key, value) for key, value in properties.items()
            }
            if source.get("required"):
                result["required"] = sorted(source["required"])
        extra = source.get("additionalProperties")
        if extra is True:
            result["x-kubernetes-preserve-unknown-fields"] = True
        elif isinstance(extra, dict):
            result["additionalProperties"] = self.convert(extra)
        rules = self._rules.get(source.get("title", ""), [])
        if properties is not None and rules:
            result["x-kubernetes-validations"] = rules

    def _property(self, owner: str, key: str, source: Json) -> Json:
        result = self.convert(source)
        if (owner, key) in LIST_KEYS:
            result |= {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": LIST_KEYS[(owner, key)]}
        return result


def _bounds(source: Json, result: Json) -> None:
    """Numeric bounds; exclusive ones are a flag in Kubernetes."""
    for bound, exclusive in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
        if exclusive in source:
            result[bound], result[exclusive] = source[exclusive], True
        elif bound in source:
            result[bound] = source[bound]
    if result.get("type") == "integer":
        result["format"] = "int64"


def _is_absence(default: Any, schema: Json) -> bool:
    """An empty collection is what absence means anyway; as a default it would only swell every stored object."""
    return default in ([], {}) and "properties" not in schema


def _minimal(default: Any, schema: Json) -> Any:
    """`default` without what the schema's own properties default to, and without nulls and empty collections."""
    if not isinstance(default, dict) or "properties" not in schema:
        return default
    kept: Json = {}
    for key, value in default.items():
        known = schema["properties"][key]
        if value is None or _is_absence(value, known):
            continue
        small = _minimal(value, known)
        if "default" not in known or small != known["default"]:
            kept[key] = small
    return kept


def main() -> None:
    yaml.safe_dump(crd(), sys.stdout, sort_keys=False, width=120, allow_unicode=True)


if __name__ == "__main__":
    main()
