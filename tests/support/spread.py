"""What ranks do in the tests of parallel layouts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from trainingjob_trainer.config import JobConfig

from support.rank_functions import build, masked_batch, own_rows, take, whole

Array = np.ndarray[Any, Any]


class Series(NamedTuple):
    """Of the steps of one rank, and the whole weights after them."""

    losses: list[float]
    norms: list[float]
    weights: dict[str, Array]


def in_turn(calls: list[tuple[Callable[..., Any], tuple[Any, ...]]]) -> list[Any]:
    """Many functions in the same ranks, whose start takes longer than they do."""
    return [function(*args) for function, args in calls]


def series_of(config: JobConfig, exact: bool) -> Series:
    """The run's steps on masked batches; `exact`: in float64."""
    stepper = build(config, exact)
    sums = take(stepper, range(config.training.steps))
    weights = {name: whole(parameter) for name, parameter in stepper.model.named_parameters()}
    return Series([step.loss.item() for step in sums], [step.grad_norm.item() for step in sums], weights)


def gradients_of(config: JobConfig) -> tuple[float, dict[str, Array]]:
    """Loss of the first step and its whole gradients, in float64."""
    stepper = build(config, exact=True)
    batch = masked_batch(0, config.training.global_batch_size, config.training.sequence_length)
    loss = stepper.backward(0, own_rows(stepper, batch)).loss.item()
    return loss, {n: whole(p.grad) for n, p in stepper.model.named_parameters() if p.grad is not None}
