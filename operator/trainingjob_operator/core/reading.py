"""Reads what another version of the operator wrote, or what its CRD let through: all of it that is understood."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

M = TypeVar("M", bound=BaseModel)
Path = tuple[int | str, ...]


def understood(
    model: type[M], value: Mapping[str, Any], left_out: Callable[[ErrorDetails], bool]
) -> tuple[M, tuple[Path, ...]]:
    """`value` without its parts that `model` does not take, and where these were.

    A part that lacks what it must have is left out as a whole.

    left_out: whether to do so for an error. Raises `ValidationError` for any other, or if nothing is left.
    """
    gone: list[Path] = []
    rest: Any = value
    while True:
        try:
            return model.model_validate(rest), tuple(gone)
        except ValidationError as error:
            found = error.errors(include_url=False, include_context=False)
            parts = {_existing(rest, one["loc"]) for one in found}
            if () in parts or not all(map(left_out, found)):
                raise
            gone += sorted(parts, key=str)
            rest = _without(rest, parts)


def _existing(value: Any, path: Path) -> Path:
    """As much of `path` as there is in `value`."""
    for depth, part in enumerate(path):
        if not (part in value if isinstance(value, Mapping) else isinstance(value, list) and isinstance(part, int)):
            return path[:depth]
        value = value[part]
    return path


def _without(value: Any, parts: Set[Path], here: Path = ()) -> Any:
    if isinstance(value, Mapping):
        kept = {key: (*here, key) for key in value if (*here, key) not in parts}
        return {key: _without(value[key], parts, there) for key, there in kept.items()}
    if isinstance(value, list):
        kept_items = [(one, (*here, place)) for place, one in enumerate(value) if (*here, place) not in parts]
        return [_without(one, parts, there) for one, there in kept_items]
    return value
