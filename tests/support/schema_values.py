"""Values that a structural schema allows, and values that it forbids."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

Json = dict[str, Any]
Path = tuple[str, ...]
TEXT = st.text(st.characters(codec="ascii", exclude_categories=["C"]), max_size=20)
KEYS = st.from_regex(r"[a-z]{1,8}", fullmatch=True)


def leaves(schema: Json, path: Path = ()) -> Iterator[tuple[Path, Json]]:
    """Every field that is no group of fields, with its schema."""
    if "properties" not in schema:
        yield path, schema
    for name, child in schema.get("properties", {}).items():
        yield from leaves(child, (*path, name))


def change(path: Path, value: Any) -> Json:
    """The merge patch that sets a field."""
    for name in reversed(path):
        value = {name: value}
    patch: Json = value
    return patch


def valid(schema: Json) -> st.SearchStrategy[Any]:
    """What the schema allows. Rules in CEL may still forbid it."""
    match schema.get("type"):
        case "string":
            return _text(schema)
        case "boolean":
            return st.booleans()
        case "integer":
            return st.integers(schema["minimum"], schema["maximum"])
        case "number":
            above, below = schema.get("exclusiveMinimum", False), schema.get("exclusiveMaximum", False)
            bounds = {"min_value": schema.get("minimum"), "max_value": schema.get("maximum")}
            return st.floats(**bounds, exclude_min=above, exclude_max=below).filter(
                lambda number: not 0 < abs(number) < 1e-6  # Kubernetes writes it in another way.
            )
        case None if "x-kubernetes-int-or-string" in schema:
            return st.just(schema["default"]) | st.integers(1, 9)
        case "array":
            least = schema.get("minItems", 0)
            return st.lists(valid(schema["items"]), min_size=max(1, least), max_size=max(2, least))
        case _:
            return _object(schema)


def invalid(schema: Json) -> st.SearchStrategy[Any]:
    """What the schema forbids: out of bounds, or of another type."""
    match schema.get("type"):
        case "string" if "enum" in schema:
            return TEXT.filter(lambda text: text not in schema["enum"])
        case "string" if "pattern" in schema:
            return TEXT.filter(lambda text: re.search(schema["pattern"], text) is None)
        case "string":
            return st.just("x" * (schema["maxLength"] + 1)) | st.integers()
        case None if "x-kubernetes-int-or-string" in schema:
            return st.just(0) | st.just("many")
        case "integer" | "number" if "maximum" in schema:
            return st.sampled_from([schema["maximum"] + 1, schema.get("minimum", 0) - 1])
        case _:
            return TEXT


def drawn(strategy: st.SearchStrategy[Any], examples: int = 3) -> list[Any]:
    """Some values, the same ones in each run."""
    values: list[Any] = []

    @settings(
        max_examples=examples, derandomize=True, database=None, deadline=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(strategy)
    def take(value: Any) -> None:
        values.append(value)

    take()
    return values


def _text(schema: Json) -> st.SearchStrategy[str]:
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    longest = schema.get("maxLength", 20)
    if "pattern" in schema:
        fits = st.from_regex(schema["pattern"], fullmatch=True)
        return fits.filter(lambda text: len(text) <= longest and text.isprintable())
    return TEXT.filter(lambda text: schema.get("minLength", 0) <= len(text) <= longest)


def _object(schema: Json) -> st.SearchStrategy[Any]:
    if "properties" not in schema:
        values = valid(schema["additionalProperties"]) if "additionalProperties" in schema else TEXT
        return st.dictionaries(KEYS, values, min_size=1, max_size=2)
    required = set(schema.get("required", ()))
    fields = {name: valid(child) for name, child in schema["properties"].items()}
    needed = {name: strategy for name, strategy in fields.items() if name in required}
    return st.fixed_dictionaries(needed, optional={n: s for n, s in fields.items() if n not in required})
