"""The learning rate: a pure function of the step and the present configuration, never restored from a checkpoint."""

from __future__ import annotations

import math

from trainingjob_trainer.config import Training


def learning_rate(step: int, training: Training) -> float:
    """Learning rate of optimizer step `step`, counted from 0.

    Linear warm-up that reaches the peak at step `warmup_steps`; then constant, or a half cosine (Loshchilov & Hutter
    2017) that reaches `min_ratio` of the peak at the last step.
    """
    peak, schedule = training.optimizer.lr, training.schedule
    if step < schedule.warmup_steps:
        return peak * (step + 1) / (schedule.warmup_steps + 1)
    if schedule.name == "constant":
        return peak
    decay_steps = max(1, training.steps - 1 - schedule.warmup_steps)
    done = min(1.0, (step - schedule.warmup_steps) / decay_steps)
    return peak * (schedule.min_ratio + (1 - schedule.min_ratio) * (1 + math.cos(math.pi * done)) / 2)
