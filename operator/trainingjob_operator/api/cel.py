"""CEL rules of a CustomResourceDefinition."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

Wire = dict[str, str]


@dataclass(frozen=True)
class Rule:
    """A CEL rule on `self`.

    message: shown when the rule does not hold; %d and %s in it stand for `values`, CEL expressions. (`format` is the
    only way to put numbers into a text whose cost the API server can bound.)
    field: the path that the error names, below the rule's own.
    unless: when there is nothing to ask.
    """

    rule: str
    message: str
    values: tuple[str, ...] = ()
    field: str | None = None
    reason: str = "FieldValueInvalid"
    unless: str | None = None

    @property
    def said(self) -> str:
        """The message as a CEL expression."""
        text = self.message.replace("\\", "\\\\").replace("'", "\\'")
        return f"'{text}'.format([{', '.join(self.values)}])" if self.values else f"'{text}'"


def validations(rules: Sequence[Rule]) -> list[Wire]:
    """Rules as in `x-kubernetes-validations`; those of one field, reason and `unless` are one.

    It says which of them does not hold, the first if there are several.
    They are few because the API server evaluates each at each write of the object, of its status as well, and allocates
    6 KB for each before it looks at anything.
    """
    together: dict[tuple[str | None, str, str | None], list[Rule]] = {}
    for rule in rules:
        together.setdefault((rule.field, rule.reason, rule.unless), []).append(rule)
    return [_wire(found) for found in together.values()]


def _wire(rules: Sequence[Rule]) -> Wire:
    *others, last = rules
    holds = " && ".join(f"({rule.rule})" for rule in rules) if others else last.rule
    wire = {"rule": holds if last.unless is None else f"{last.unless} || ({holds})", "reason": last.reason}
    if last.field is not None:
        wire["fieldPath"] = last.field
    if not others and not last.values:
        return wire | {"message": last.message}
    return wire | {"messageExpression": "".join(f"!({rule.rule}) ? {rule.said} : " for rule in others) + last.said}
