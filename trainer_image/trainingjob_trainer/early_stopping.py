"""Whether a run has stopped getting better: a pure function of its evaluations, so a resumed run decides the same."""

from __future__ import annotations

from collections.abc import Sequence

from trainingjob_trainer.checkpoint.state import Evaluated
from trainingjob_trainer.config import EarlyStopping
from trainingjob_trainer.watched import badness


def stops_early(evaluations: Sequence[Evaluated], policy: EarlyStopping | None) -> bool:
    """Whether the last `patience` evaluations were no better, by more than `min_delta`, than the best before them.

    Raises `UserError` for a metric that the task does not have.
    """
    if policy is None:
        return False
    field = "training.earlyStopping.metric"
    values = [badness(evaluated.metrics, policy.metric, policy.mode, field) for evaluated in evaluations]
    best, since = float("inf"), 0
    for value in values:
        if value < best - policy.min_delta:
            best, since = value, 0
        else:
            since += 1
    return since >= policy.patience
