"""Progress as Kubeflow's trainer takes it: `{"trainerStatus": ...}`, which `transformers.Trainer` posts by itself."""

from __future__ import annotations

import math
from typing import Annotated, Any

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from ..config import LARGEST_COUNT
from .progress import EvaluationState, Progress, Report, Steps
from .server import bears

# What `transformers.Trainer` calls it -> field of `progress`. Of two names for a field the later one is better.
NAMES = {
    "current_step": "step",
    "total_steps": "steps",
    "train_loss": "loss",
    "loss": "loss",
    "learning_rate": "learning_rate",
    "grad_norm": "grad_norm",
    "num_input_tokens_seen": "tokens",
    "train_tokens_per_second": "tokens_per_second",
    "tokens_per_second": "tokens_per_second",
}
COUNTS = ("step", "steps", "tokens")
EVALUATION = "eval_"
NOT_EVALUATION = ("runtime", "samples_per_second", "steps_per_second", "model_preparation_time")  # how long it took


class Message(BaseModel):
    """Base of what is sent: fields that are not known are ignored."""

    model_config = ConfigDict(alias_generator=to_camel, extra="ignore", frozen=True)


class Metric(Message):
    """A number, as text."""

    name: Annotated[str, Field(min_length=1, max_length=64)]
    value: str | float


class TrainerStatus(Message):
    """How the command says that it is going."""

    progress_percentage: int | None = Field(None, ge=0, le=100)
    estimated_remaining_seconds: int | None = Field(None, ge=0)
    metrics: Annotated[list[Metric], Field(max_length=256)] = Field(default_factory=list)


class Posted(Message):
    """The whole body."""

    trainer_status: TrainerStatus


class Endpoint:
    """`POST /progress` of one pod."""

    def __init__(self, progress: Progress, token: str) -> None:
        self._progress = progress
        self._token = token

    async def post(self, request: web.Request) -> web.Response:
        """Take a status in: 200, or 401 without the pod's token, or 400 if it is none."""
        if not bears(request, self._token):
            return web.Response(status=401, text="The bearer token of this pod is required.")
        try:
            status = Posted.model_validate_json(await request.read()).trainer_status
        except ValidationError as error:
            return web.Response(status=400, text=str(error))
        self._progress.take(report(status, self._progress.wire()))
        return web.Response()


def report(status: TrainerStatus, before: dict[str, Any]) -> Report:
    """`status` as a report; `before`: the body of `GET /progress` up to now."""
    numbers = _numbers(status)
    known = before["progress"] or {}
    said = {field: numbers[name] for name, field in NAMES.items() if name in numbers}
    steps: dict[str, Any] = {
        name: said[name] for name in said if name not in COUNTS or 0 <= said[name] <= LARGEST_COUNT
    }
    steps |= {name: int(steps[name]) for name in COUNTS if name in steps}
    total: int = steps.get("steps") or known.get("steps") or 0
    percent = status.progress_percentage
    if percent is not None and not total:
        steps["percent"] = percent
    elif percent is not None and "step" not in steps:
        steps["step"] = total * percent // 100
    if status.estimated_remaining_seconds is not None:
        steps["eta_seconds"] = status.estimated_remaining_seconds
    rest = {name: value for name, value in numbers.items() if name not in NAMES and not name.startswith(EVALUATION)}
    fields: dict[str, Any] = {"progress": Steps(**steps, metrics=rest)}
    evaluated = _evaluated(numbers)
    if evaluated and evaluated != (before["evaluation"] or {}).get("metrics"):
        at = steps.get("step", known.get("step")) or 0
        fields["evaluation"] = EvaluationState(split="validation", step=at, metrics=evaluated)
    return Report(**fields)


def _numbers(status: TrainerStatus) -> dict[str, float]:
    """The metrics that are finite numbers."""
    numbers = {}
    for metric in status.metrics:
        try:
            number = float(metric.value)
        except ValueError:
            continue
        if math.isfinite(number):
            numbers[metric.name] = number
    return numbers


def _evaluated(numbers: dict[str, float]) -> dict[str, float]:
    named = {name.removeprefix(EVALUATION): value for name, value in numbers.items() if name.startswith(EVALUATION)}
    return {name: value for name, value in named.items() if name not in NOT_EVALUATION}
