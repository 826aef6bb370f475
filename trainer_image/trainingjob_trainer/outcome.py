"""How a stage ended: what a pod's termination message and exit code say."""

from __future__ import annotations

import json
from typing import Any, Literal

from pydantic import Field

from . import errors
from .config import Config
from .errors import TrainerError

MAX_BYTES = 4000  # Kubernetes cuts termination messages at 4096
_EXIT_CODES: dict[str, int] = {
    kind.error_class: kind.exit_code
    for kind in (
        errors.TrainerError,
        errors.UserError,
        errors.DataError,
        errors.OutOfMemory,
        errors.WorkerLost,
        errors.StorageError,
        errors.Hang,
        errors.Drained,
        errors.Fenced,
    )
}


class Outcome(Config):
    """The end of a stage: either `outcome` (what comes next) or `error_class` (why it failed) is set."""

    outcome: Literal["Train", "PrepareData", "Finished"] | None = None
    error_class: str | None = Field(None, alias="class")
    cause: str = ""
    next_step: str = ""
    step: int | None = None
    attempt: int | None = None
    rank: int | None = None
    result: dict[str, Any] | None = None

    @classmethod
    def failure(cls, error: TrainerError, attempt: int | None = None) -> Outcome:
        """The outcome of a stage that ended with `error`."""
        return cls(
            error_class=error.error_class,
            cause=error.cause,
            next_step=error.next_step,
            step=error.step,
            attempt=attempt,
            rank=error.rank,
        )

    @property
    def exit_code(self) -> int:
        """The pod's exit code."""
        return 0 if self.error_class is None else _EXIT_CODES[self.error_class]

    def message(self) -> bytes:
        """The termination message: JSON of at most `MAX_BYTES`. What does not fit is cut out of the cause's middle."""
        fields = self.model_dump(mode="json", by_alias=True)
        text = _dump(fields)
        if len(text) > MAX_BYTES and self.result is not None:  # result.json has all of it
            fields["result"] = {k: v for k, v in self.result.items() if k != "evaluation"}
            text = _dump(fields)
        kept = len(self.cause)
        while len(text) > MAX_BYTES and kept > 0:
            kept = kept * 3 // 4
            fields["cause"] = f"{self.cause[: kept // 2]} ... {self.cause[len(self.cause) - kept // 2 :]}"
            text = _dump(fields)
        return text


def _dump(fields: dict[str, Any]) -> bytes:
    return json.dumps(fields, ensure_ascii=False).encode()
