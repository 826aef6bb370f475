"""What is wrong with a configuration, for people: the field, its value, what is allowed, and the nearest known name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from trainingjob_trainer.config.base import ENDPOINT, QUANTITY, URI

MOST = 5  # named at once
# What texts of these patterns look like.
_FORMS = {
    URI: "s3://bucket/name or an absolute path",
    ENDPOINT: "http://host:port or https://host",
    QUANTITY: "an amount as Kubernetes writes it, such as 500m or 4Gi",
}


def mistakes(error: ValidationError, model: type[BaseModel]) -> str:
    """The first mistakes that the validation of `model` has found, in a sentence."""
    told: dict[str, str] = {}  # by field: one that takes a number or a word has a mistake as each of them
    for found in error.errors():
        place = _place(model, [str(part) for part in found["loc"]])
        field = ".".join(place)
        if field not in told:
            told[field] = _mistake(found, place, model)
        elif found["type"] == "literal_error":
            told[field] += f", nor one of {', '.join(_choices(found))}"
    return "; ".join([*told.values()][:MOST])


def _mistake(found: Any, place: Sequence[str], model: type[BaseModel]) -> str:
    field = ".".join(place)
    match found["type"]:
        case "extra_forbidden":
            known = _names(model, place[:-1])
            return f"{field} is no field{nearest(place[-1], known) or _known(known)}"
        case "missing":
            return f"{field} is required"
        case "literal_error":
            known = _choices(found)
            return f"{field} is {found['input']!r}, not one of {', '.join(known)}{nearest(found['input'], known)}"
        case "value_error":
            return f"{field}: {found['ctx']['error']}" if field else str(found["ctx"]["error"])
        case "string_pattern_mismatch" if found["ctx"]["pattern"] in _FORMS:
            return f"{field} is {_short(found['input'])}, not {_FORMS[found['ctx']['pattern']]}"
        case _:
            return f"{field} is {_short(found['input'])}: {found['msg'][:1].lower()}{found['msg'][1:]}"


def nearest(name: object, known: Sequence[str]) -> str:
    """A question in brackets if one of the known names is like it, else nothing."""
    near = get_close_matches(str(name), known, 1)
    return f" (do you mean {near[0]}?)" if near else ""


def _choices(found: Any) -> list[str]:
    return re.findall(r"'([^']*)'", found["ctx"]["expected"])


def _known(names: Sequence[str]) -> str:
    """What to choose from, if it is known."""
    return f"; known are {', '.join(names)}" if names else ""


def _names(model: type[BaseModel], place: Sequence[str]) -> list[str]:
    """The fields of the object at a place in a model; none if it is not known which object that is."""
    inner: type[BaseModel] | None = model
    for part in place:
        if inner is not None and not part.isdecimal():  # of a list all are alike
            inner = _inner(inner, part)
    return [] if inner is None else [field.alias or name for name, field in inner.model_fields.items()]


def _place(model: type[BaseModel], place: Sequence[str]) -> list[str]:
    """The place of a mistake in a model, without what pydantic adds to tell the types that a field may have."""
    inner: type[BaseModel] | None = model
    known = []
    for part in place:
        if inner is not None or part.isdecimal():
            known.append(part)
        if inner is not None and not part.isdecimal():
            inner = _inner(inner, part)
    return known


def _inner(model: type[BaseModel], name: str) -> type[BaseModel] | None:
    """The kind of object that a field holds, or several of, if it does."""
    field = next((f for python, f in model.model_fields.items() if name in (f.alias, python)), None)
    inner = [] if field is None else _models(field.annotation)
    return inner[0] if len(inner) == 1 else None


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models(argument)]


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
