"""CEL rules of a CustomResourceDefinition."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Rule:
    """A CEL rule on `self`.

    message: shown when the rule does not hold; %d and %s in it stand for `values`, CEL expressions. (`format` is the
    only way to put numbers into a text whose cost the API server can bound.)
    field: the path that the error names, below the rule's own.
    """

    rule: str
    message: str
    values: tuple[str, ...] = ()
    field: str | None = None
    reason: str = "FieldValueInvalid"

    def wire(self) -> dict[str, str]:
        """The rule as in `x-kubernetes-validations`."""
        path = {} if self.field is None else {"fieldPath": self.field}
        if not self.values:
            return {"rule": self.rule, "message": self.message, "reason": self.reason, **path}
        text = self.message.replace("\\", "\\\\").replace("'", "\\'")
        said = f"'{text}'.format([{', '.join(self.values)}])"
        return {"rule": self.rule, "messageExpression": said, "reason": self.reason, **path}
