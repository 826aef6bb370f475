"""Whether a run has stopped getting better: a pure function of its evaluations, so a resumed run decides the same."""

from __future__ import annotations

from collections.abc import Sequence

from trainingjob_trainer.checkpoint.state import Evaluated
from trainingjob_trainer.config import EarlyStopping
from trainingjob_trainer.errors import UserError


def stops_early(evaluations: Sequence[Evaluated], policy: EarlyStopping | None) -> bool:
    """Whether the last `patience` evaluations were no better, by more than `min_delta`, than the best before them.

    Raises `UserError` for a metric that the task does not have.
    """
    if policy is None:
        return False
    values = [_value(evaluated, policy) for evaluated in evaluations]
    best, since = float("inf"), 0
    for value in values:
        if value < best - policy.min_delta:
            best, since = value, 0
        else:
            since += 1
    return since >= policy.patience


def _value(evaluated: Evaluated, policy: EarlyStopping) -> float:
    """The watched metric, less being better."""
    value = evaluated.metrics.get(policy.metric)
    if value is None:
        raise UserError(
            f"training.earlyStopping.metric is {policy.metric}, which this task does not have.",
            f"Use one of {', '.join(sorted(evaluated.metrics))}.",
        )
    return value if policy.mode == "min" else -value
