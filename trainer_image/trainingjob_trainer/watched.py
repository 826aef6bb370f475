"""Metrics that a field of the spec names."""

from __future__ import annotations

import math
from collections.abc import Mapping

from trainingjob_trainer.errors import UserError


def badness(metrics: Mapping[str, float], metric: str, mode: str, field: str) -> float:
    """The value of the metric that `field` of the spec names, less being better; infinite if it is not a number.

    Raises `UserError` for a metric that the task does not have.
    """
    if metric not in metrics:
        raise UserError(
            f"{field} is {metric}, which this task does not have.", f"Use one of {', '.join(sorted(metrics))}."
        )
    value = metrics[metric] if mode == "min" else -metrics[metric]
    return math.inf if math.isnan(value) else value
