"""What trainers say: in their reports while they run, and as last words in their termination messages."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel
from trainingjob_trainer.config import LARGEST_COUNT

from trainingjob_operator.api.status import Stage


class Report(BaseModel):
    """Base of what a trainer says: unknown fields are ignored, text is cut, never refused for its length."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="ignore", frozen=True)


def _cut(limit: int) -> BeforeValidator:
    return BeforeValidator(lambda value: value[:limit] if isinstance(value, str) else value)


SAID_CLASSES = frozenset(
    {
        "Internal",
        "UserError",
        "DataError",
        "OutOfMemory",
        "WorkerLost",
        "Storage",
        "Hang",
        "Fenced",
        "Drained",
        "Resized",
    }
)
"""The classes that a pod may give a failure. Each is a reason of events and a label of metrics, so a pod cannot make up
more; nor may it give those that only Kubernetes knows, which are not counted."""


def _known(value: Any) -> Any:
    return value if value is None or str(value) in SAID_CLASSES else "Internal"


def _in_utc(moment: datetime) -> datetime:
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    if moment < datetime.fromtimestamp(0, UTC):
        raise ValueError("no time of a run")
    return moment


SaidClass = Annotated[str, BeforeValidator(_known)]
Count = Annotated[int, Field(ge=0, le=LARGEST_COUNT)]
Moment = Annotated[datetime, AfterValidator(_in_utc)]
Sentence = Annotated[str, _cut(1024)]
Address = Annotated[str, _cut(2048)]


class Told(Report):
    """A failure as the trainer tells it: a sentence, and below it the last lines of a traceback, if there is one."""

    cause: Annotated[str, _cut(4096)] = ""

    @property
    def sentence(self) -> str:
        """What happened."""
        return self.cause.strip().partition("\n")[0].strip()[:1024]

    @property
    def traceback(self) -> tuple[str, ...]:
        """The last lines of the traceback."""
        return tuple(self.cause.strip().splitlines()[1:])


class TerminationMessage(Told):
    """What the agent left in `/dev/termination-log` (docs/contracts.md §3)."""

    outcome: Literal["Train", "PrepareData", "Finished"] | None = None
    class_: SaidClass | None = Field(None, alias="class")
    next_step: Sentence = ""
    step: Count | None = None
    attempt: Count | None = None
    rank: Count | None = None
    result: dict[str, Any] | None = None


class ReportedProgress(Report):
    """Part `progress` of a report."""

    step: Count = 0
    steps: Count | None = None
    samples: Count | None = None
    tokens: Count | None = None
    tokens_per_second: float | None = None
    eta_seconds: float | None = None
    loss: float | None = None
    learning_rate: float | None = None
    grad_norm: float | None = None
    percent: int | None = Field(None, ge=0, le=100)
    metrics: dict[str, Any] = Field(default_factory=dict)


class ReportedCheckpoint(Report):
    """Part `checkpoint` of a report."""

    latest_step: Count | None = None
    latest_uri: Address | None = None
    best_step: Count | None = None
    best_loss: float | None = None


class ReportedEvaluation(Report):
    """Part `evaluation` of a report; metrics may hold more than numbers."""

    split: Annotated[str, _cut(64)]
    step: Count
    metrics: dict[str, Any] = Field(default_factory=dict)


class ReportedIncident(Told):
    """An interruption that the driver survived or found."""

    attempt: Count
    class_: SaidClass = Field(alias="class")
    rank: Count | None = None
    step: Count | None = None
    time: Moment


class ProgressReport(Report):
    """Answer of `GET /progress` (docs/contracts.md §4)."""

    job_uid: str
    pod_uid: str
    stage: Stage
    attempt: Count | None = None
    state: str | None = None
    message: Sentence | None = None
    progress: ReportedProgress | None = None
    checkpoint: ReportedCheckpoint | None = None
    evaluation: ReportedEvaluation | None = None
    world_size: Count | None = None
    pods: tuple[Count, ...] = ()  # indexes of the pods of this attempt
    resumed_from_step: Count | None = None
    first_step_at: Moment | None = None
    incidents: tuple[ReportedIncident, ...] = ()


def last_words(text: str) -> TerminationMessage | None:
    """The agent's termination message, or None for anything else (the tail of a log, an empty file)."""
    try:
        return TerminationMessage.model_validate_json(text)
    except ValidationError:
        return None
