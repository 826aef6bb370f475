"""JSON merge patches (RFC 7386)."""

from __future__ import annotations

import copy
from typing import Any

Json = dict[str, Any]


def merged(base: Json, changes: Json) -> Json:
    """JSON merge patch: None removes."""
    result = copy.deepcopy(base)
    for key, value in changes.items():
        if value is None:
            result.pop(key, None)
        elif isinstance(value, dict) and isinstance(result.get(key), dict):
            result[key] = merged(result[key], value)
        else:
            result[key] = value
    return result
