"""What all configuration objects share, and the types of their fields."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.alias_generators import to_camel

URI = r"^(s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]/.*|/.*)$"
ENDPOINT = r"^https?://[^/\s]+(/\S*)?$"
# Above zero.
QUANTITY = r"^([1-9][0-9]*(\.[0-9]+)?|0\.[0-9]*[1-9][0-9]*)(m|k|Ki|M|Mi|G|Gi|T|Ti)?$"

Uri = Annotated[str, Field(min_length=1, max_length=1024, pattern=URI)]
Name = Annotated[str, Field(min_length=1, max_length=253)]
ObjectName = Annotated[str, Field(max_length=253, pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")]
Argument = Annotated[str, Field(max_length=4096)]
LARGEST_COUNT = 2**53  # more is no count, and nothing that the API server stores


def _written(value: Any) -> Any:
    """`cpu: 8` means "8", as in a pod."""
    return str(value) if type(value) is int else value


_WrittenQuantity = Annotated[str, Field(max_length=32, pattern=QUANTITY)]
_Number = Annotated[int, Field(ge=1, le=LARGEST_COUNT)]
Quantity = Annotated[_WrittenQuantity, BeforeValidator(_written, json_schema_input_type=_Number | _WrittenQuantity)]

_UNITS = {"m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


def amount(quantity: str) -> float:
    """A `Quantity` as a number."""
    unit = quantity.lstrip("0123456789.")
    return float(quantity.removesuffix(unit)) * _UNITS.get(unit, 1)


class Config(BaseModel):
    """Base of every configuration object: camelCase on the wire, immutable, unknown fields refused.

    In JSON, which has no NaN, a metric that is not a number is the string "NaN": so it can be read again.
    """

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        extra="forbid",
        frozen=True,
        validate_default=True,
        ser_json_inf_nan="strings",
    )

    def wire(self) -> dict[str, Any]:
        """The object as JSON-able camelCase data, defaults included, absent optionals left out."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)

    def asked(self) -> dict[str, Any]:
        """The same without what is so by default: an older reader takes it, unless it is asked for what is new."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_defaults=True)


def digest(value: Any) -> str:
    """Short, stable hash of JSON-able data."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
