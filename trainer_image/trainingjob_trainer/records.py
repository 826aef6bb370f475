"""What the driver leaves in the run directory: how each attempt ended, and the result."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from pydantic import Field, ValidationError

from .config import Config
from .errors import StorageError, TrainerError
from .storage import NotFound, PreconditionFailed, Store

RESULT_KEY = "result.json"


def now() -> str:
    """The time, RFC 3339 in UTC."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class Incident(Config):
    """An attempt's end by a failure."""

    attempt: int
    error_class: str = Field(alias="class")
    cause: str
    next_step: str = ""
    rank: int | None = None
    step: int | None = None
    time: str = Field(default_factory=now)

    @classmethod
    def of(cls, error: TrainerError, attempt: int, step: int | None) -> Incident:
        """The end of `attempt` by `error`, when `step` steps were done."""
        return cls.model_validate(
            {
                "attempt": attempt,
                "class": error.error_class,
                "cause": error.cause[-2000:],
                "next_step": error.next_step,
                "rank": error.rank,
                "step": step,
            }
        )

    def save(self, store: Store) -> None:
        """Write `incidents/<attempt>.json`."""
        store.put(f"incidents/{self.attempt}.json", self.model_dump_json(by_alias=True, indent=1).encode())


class Evaluation(Config):
    """Metrics of the trained model on a split."""

    split: str
    step: int
    metrics: dict[str, Any]


class RunResult(Config):
    """What a run led to. `plan_hash` says which plan it answers; without `model_uri` nothing was to be exported."""

    version: int = 1
    plan_hash: str
    attempt: int
    step: int
    model_uri: str | None = None
    report_uri: str
    evaluation: Evaluation
    completed_at: str = Field(default_factory=now)

    def save(self, store: Store) -> RunResult:
        """Write `result.json` and return what stands there: an equal plan's earlier result stays."""
        data = self.model_dump_json(by_alias=True, indent=1).encode()
        try:
            store.put(RESULT_KEY, data, if_none_match=True)
            return self
        except PreconditionFailed:
            current, etag = store.get_with_etag(RESULT_KEY)
        earlier = _parse(current, store)
        if earlier.plan_hash == self.plan_hash:
            return earlier
        store.put(RESULT_KEY, data, if_match=etag)
        return self


def load_result(store: Store) -> RunResult | None:
    """The run's result, if it has one."""
    try:
        return _parse(store.get(RESULT_KEY), store)
    except NotFound:
        return None


def _parse(data: bytes, store: Store) -> RunResult:
    try:
        return RunResult.model_validate_json(data)
    except ValidationError as error:
        raise StorageError(
            f"{store.uri(RESULT_KEY)} is not a result: {error.errors()[0]['msg']}.", "Delete it, or restore it."
        ) from error
