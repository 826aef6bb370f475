"""When a checkpoint is due."""

from __future__ import annotations

import time
from collections.abc import Sequence

from trainingjob_trainer.checkpoint.state import Evaluated, Progress
from trainingjob_trainer.config import Checkpoint
from trainingjob_trainer.watched import badness

MINUTES = 10.0  # between two checkpoints, unless the spec says otherwise


class Cadence:
    """By steps and evaluations, which is the same on every rank, or by this rank's clock, which is to be agreed on."""

    def __init__(self, policy: Checkpoint) -> None:
        self._policy = policy
        minutes = policy.every_minutes or (MINUTES if policy.every_steps is None else float("inf"))
        self._seconds = 60 * minutes
        self.restart()

    def restart(self) -> None:
        """A checkpoint is made now."""
        self._since = time.monotonic()

    def overdue(self) -> bool:
        """Whether this rank's clock asks for one."""
        return time.monotonic() - self._since >= self._seconds

    def due(self, progress: Progress) -> bool:
        """Whether one is due after `progress.step` steps, whatever the clock says."""
        step, policy = progress.step, self._policy
        if any(every and step % every == 0 for every in (policy.every_steps, policy.keep_every)):
            return True
        if not policy.keep_best or not progress.evaluations or progress.evaluations[-1].step != step:
            return False
        best = best_of(progress.evaluations, policy)
        return best is not None and best.step == step


def best_of(evaluations: Sequence[Evaluated], policy: Checkpoint) -> Evaluated | None:
    """The best evaluation, the first of equals. Raises `UserError` for a metric that the task does not have."""

    def rank(evaluated: Evaluated) -> float:
        return badness(evaluated.metrics, policy.best_metric, policy.best_mode, "checkpoint.bestMetric")

    return min(evaluations, key=rank, default=None)
