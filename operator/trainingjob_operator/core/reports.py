"""Parts of the status that come from the trainer: from its reports while it runs, from its last words at the end."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from typing import Any

from pydantic import ValidationError
from trainingjob_trainer.config import LARGEST_COUNT

from trainingjob_operator.api.status import CheckpointStatus, EvaluationStatus, Progress, Result, TrainingJobStatus
from trainingjob_operator.core.reported import ProgressReport, ReportedEvaluation, ReportedProgress


def merge_report(
    status: TrainingJobStatus, report: ProgressReport, fetched_at: datetime, steps: int
) -> TrainingJobStatus:
    """`status` with progress, checkpoint and evaluation of `report`; absent parts stay. steps: of the run."""
    said = report.progress
    progress = status.progress
    if said is not None or (progress is None and steps):
        progress = _progress(said or ReportedProgress(), steps, fetched_at)
    update: dict[str, Any] = {"progress": progress}
    if report.checkpoint is not None and report.checkpoint.latest_step is not None:
        known = status.checkpoint
        same = known is not None and known.latest_step == report.checkpoint.latest_step
        update["checkpoint"] = CheckpointStatus(
            latest_step=report.checkpoint.latest_step,
            latest_time=known.latest_time if known is not None and same else fetched_at,
            latest_uri=report.checkpoint.latest_uri,
            best_step=report.checkpoint.best_step,
            best_loss=_finite(report.checkpoint.best_loss),
        )
    if report.evaluation is not None:
        update["evaluation"] = _evaluation(report.evaluation)
    return status.model_copy(update=update)


def merge_result(status: TrainingJobStatus, result: Mapping[str, Any], steps: int, now: datetime) -> TrainingJobStatus:
    """`status` with what `result.json` says; a part that is missing or malformed changes nothing."""
    update: dict[str, Any] = {}
    model_uri, report_uri = _text(result.get("modelUri")), _text(result.get("reportUri"))
    if model_uri or report_uri:
        update["result"] = Result(model_uri=model_uri, report_uri=report_uri)
    if "progress" in result:  # of a custom command; the trainer's own results have a step
        with suppress(ValidationError):
            last = ReportedProgress.model_validate(result["progress"])
            update["progress"] = _progress(last, steps, now).model_copy(update={"eta": None})
    step = result.get("step")
    if isinstance(step, int) and 0 <= step <= LARGEST_COUNT:
        before = status.progress or Progress()
        update["progress"] = before.model_copy(
            update={
                "step": step,
                "steps": max(step, steps),
                "percent": percent(step, max(step, steps)),
                "summary": _summary(step, max(step, steps), percent(step, max(step, steps))),
                "eta": None,
                "updated_at": now,
            }
        )
    with suppress(ValidationError):
        update["evaluation"] = _evaluation(ReportedEvaluation.model_validate(result.get("evaluation")))
    return status.model_copy(update=update)


def scalar_metrics(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers among `metrics`, at most 64; lists and tables are in the report."""
    numbers = {str(name)[:64]: number for name, value in metrics.items() if (number := _number(value)) is not None}
    return dict(sorted(numbers.items())[:64])


def percent(step: int, steps: int) -> int:
    """Share of the steps in whole percent, 0 to 100, rounded down."""
    return min(100, 100 * step // steps) if steps else 0


def _progress(said: ReportedProgress, steps: int, at: datetime) -> Progress:
    total = said.steps or steps
    share = percent(said.step, total) if said.percent is None else said.percent
    return Progress(
        step=said.step,
        steps=total,
        percent=share,
        summary=_summary(said.step, total, share),
        samples=said.samples,
        tokens=said.tokens,
        loss=_rounded(said.loss, 4),
        learning_rate=_rounded(said.learning_rate, 8),
        tokens_per_second=_rounded(said.tokens_per_second, 1),
        eta=duration(said.eta_seconds),
        metrics=scalar_metrics(said.metrics),
        updated_at=at,
    )


def _summary(step: int, steps: int, share: int) -> str:
    return f"{step}/{steps} ({share}%)" if steps else f"{share}%" if share else f"step {step}"


def duration(seconds: float | None) -> str | None:
    """Seconds as `45s`, `3m20s`, `5h07m` or `2d03h`; None for what is no duration."""
    if seconds is None or not math.isfinite(seconds) or seconds < 0:
        return None
    whole = min(round(seconds), 10**9)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86_400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86_400}d{whole % 86_400 // 3600:02d}h"


def _evaluation(said: ReportedEvaluation) -> EvaluationStatus:
    return EvaluationStatus(split=said.split, step=said.step, metrics=scalar_metrics(said.metrics))


def _number(value: Any) -> float | None:
    """A finite number, if it is one."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    with suppress(OverflowError):  # of an integer that no float can be
        return _finite(float(value))
    return None


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _rounded(value: float | None, digits: int) -> float | None:
    finite = _finite(value)
    return None if finite is None else round(finite, digits)


def _text(value: Any) -> str | None:
    return value[:2048] if isinstance(value, str) else None
