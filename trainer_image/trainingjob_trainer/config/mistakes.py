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
    return "; ".join(_mistake(found, model) for found in error.errors()[:MOST])


def _mistake(found: Any, model: type[BaseModel]) -> str:
    place = [str(part) for part in found["loc"]]
    field = ".".join(place)
    match found["type"]:
        case "extra_forbidden":
            known = _names(model, place[:-1])
            return f"{field} is no field{nearest(place[-1], known)}"
        case "missing":
            return f"{field} is required"
        case "literal_error":
            known = re.findall(r"'([^']*)'", found["ctx"]["expected"])
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


def _names(model: type[BaseModel], place: Sequence[str]) -> list[str]:
    """The fields of the object at a place in a model; none if it is not known which object that is."""
    for part in place:
        field = next((f for name, f in model.model_fields.items() if part in (f.alias, name)), None)
        inner = [] if field is None else _models(field.annotation)
        if len(inner) != 1:
            return []
        model = inner[0]
    return [field.alias or name for name, field in model.model_fields.items()]


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models(argument)]


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
