"""The learning rate: a pure function of the step and the present configuration, never restored from a checkpoint."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from trainingjob_trainer.config import Point, Schedule, Training


def learning_rate(step: int, training: Training) -> float:
    """Learning rate of optimizer step `step`, counted from 0.

    Linear warm-up that reaches the peak at step `warmup_steps`, then the schedule's shape, whose last value is that of
    the last step.
    """
    peak, schedule = training.optimizer.lr, training.schedule
    if step < schedule.warmup_steps:
        return peak * (step + 1) / (schedule.warmup_steps + 1)
    return peak * _ratio(step, schedule, training.total_steps)


def _ratio(step: int, schedule: Schedule, steps: int) -> float:
    """Share of the peak after the warm-up."""
    low, last = schedule.min_ratio, steps - 1
    match schedule.name:
        case "constant":
            return 1.0
        case "linear":
            return 1 - (1 - low) * _done(step, schedule.warmup_steps, last)
        case "cosine":  # Loshchilov & Hutter 2017
            return low + (1 - low) * (1 + math.cos(math.pi * _done(step, schedule.warmup_steps, last))) / 2
        case "warmup-stable-decay":  # Hu et al. 2024
            begin = max(schedule.warmup_steps, last - schedule.decay_steps)
            return 1 - (1 - low) * _done(step, begin, last)
        case "points":
            return _interpolate(step, schedule.points)


def _done(step: int, begin: int, end: int) -> float:
    """Share of the way from step `begin` to step `end`, from 0 to 1."""
    return min(1.0, max(0.0, (step - begin) / max(1, end - begin)))


def _interpolate(step: int, points: Sequence[Point]) -> float:
    """Piecewise linear, constant before the first and after the last point."""
    for left, right in pairwise(points):
        if step <= right.step:
            return left.ratio + (right.ratio - left.ratio) * _done(step, left.step, right.step)
    return points[-1].ratio
