"""The checkpoints of a run as its loop sees them: where it begins, when one is due, made, waited for and told of."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

import torch

from trainingjob_trainer.checkpoint.attempt import Attempt
from trainingjob_trainer.checkpoint.cadence import Cadence, best_of
from trainingjob_trainer.checkpoint.checkpointer import Checkpointer
from trainingjob_trainer.checkpoint.commits import amend, check_encoding, commits, encoding_of, latest, step_prefix
from trainingjob_trainer.checkpoint.retention import best_commits
from trainingjob_trainer.checkpoint.state import weights_of
from trainingjob_trainer.errors import UserError
from trainingjob_trainer.learner import Learner
from trainingjob_trainer.telemetry import Telemetry
from trainingjob_trainer.watchdog import Watchdog


class Saves:
    """Of one attempt, whose state is the learner's and the telemetry's progress. Every rank calls at the same step."""

    def __init__(
        self,
        learner: Learner,
        telemetry: Telemetry,
        attempt: Attempt,
        watchdog: Watchdog,
        report: Callable[..., None],
    ) -> None:
        self._learner, self._telemetry, self._attempt = learner, telemetry, attempt
        self._watchdog, self._report = watchdog, report
        self._policy, self._skips = learner.config.checkpoint, learner.config.data.on_corrupt == "skip"
        identity, encoding = learner.config.identity_hash(), encoding_of(learner.manifest)
        self._checkpointer = Checkpointer(attempt, learner.world, identity, self._policy, encoding)
        self._cadence = Cadence(self._policy)
        self._told_step = 0  # of the newest checkpoint that was reported
        self.corrupt_samples = 0  # that this rank has skipped since the last checkpoint

    def __enter__(self) -> Self:
        self._checkpointer.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._checkpointer.__exit__(kind, error, trace)

    def restore(self) -> int | None:
        """Take the newest checkpoint's state, and give its step, or the initial state. Raises `UserError`."""
        commit = self._learner.world.on_first(lambda: latest(self._attempt.store))
        if commit is None:
            self._learner.begin()
            return None
        if commit.identity_hash != self._checkpointer.identity_hash:
            raise UserError(
                f"{self._attempt.store.uri()} holds checkpoints of another run.",
                "Choose another outputUri, or set runPolicy.onExistingRun: Overwrite.",
            )
        check_encoding(commit, self._learner.manifest, self._attempt.store)
        self._telemetry.progress = self._checkpointer.load(commit, self._learner.tensors())
        self._told_step = commit.step
        return commit.step

    @property
    def due(self) -> bool:
        """Whether one is due after the present step, whatever the clock says."""
        return self._cadence.due(self._telemetry.progress)

    @property
    def overdue(self) -> bool:
        """Whether this rank's clock asks for one. It waits for the save before; training does not."""
        return self._checkpointer.idle and self._cadence.overdue()

    @property
    def failed(self) -> bool:
        """Whether the save in the background has failed, as far as this rank knows."""
        return self._checkpointer.failed

    def raise_failure(self) -> None:
        """Raise that of the save in the background."""
        self._checkpointer.wait()

    def save(self) -> None:
        """Have a checkpoint of the present step committed, unless it is already; training goes on meanwhile."""
        if self._checkpointer.saved_step != self._telemetry.progress.step:
            self._telemetry.flush()
            self._count_corrupt_samples()
            with self._waiting():
                self._checkpointer.save(self._learner.tensors(), self._telemetry.progress)
            self._cadence.restart()

    def amend(self) -> None:
        """Have the newest evaluation in the COMMIT of its step, if that was written before: the best is found by it."""
        progress = self._telemetry.progress
        if self._checkpointer.saved_step == progress.step:
            metrics = progress.evaluations[-1].metrics
            with self._waiting():
                self._learner.world.on_first(lambda: amend(progress.step, metrics, self._attempt))

    def await_commit(self) -> None:
        """Return when the newest save is committed."""
        with self._waiting():
            self._checkpointer.wait()
        self.tell_commit()

    def tell_commit(self) -> None:
        """Report a checkpoint that was committed since the last one."""
        if self._told_step != self._checkpointer.committed_step:
            self._told_step = self._checkpointer.committed_step
            self._report(checkpoint=self.fields())

    def take_best(self) -> int:
        """Have the weights of the best checkpoint, if one is kept as such, else keep the last; the step they are of.

        It is found by what is committed, so a run that dies after its last step chooses the same again.
        """
        step = self._telemetry.progress.step
        store, world = self._attempt.store, self._learner.world
        found = world.on_first(lambda: best_commits(commits(store), self._policy)[:1])
        if not found or found[0].step == step:
            return step
        with self._waiting():
            self._checkpointer.fill(found[0], weights_of(self._learner.tensors()))
        return found[0].step

    def fields(self) -> dict[str, Any] | None:
        """`checkpoint` as contracts.md §4 has it."""
        if not self._told_step:
            return None
        best = best_of(self._telemetry.progress.evaluations, self._policy)
        return {
            "latestStep": self._told_step,
            "latestUri": self._attempt.store.uri(step_prefix(self._told_step)),
            "bestStep": best.step if best else None,
            "bestLoss": best.metrics.get("loss") if best else None,
        }

    def _count_corrupt_samples(self) -> None:
        if self._skips:
            world = self._learner.world
            counted = world.once(torch.tensor(self.corrupt_samples, device=world.device))
            world.sum(counted)
            self._telemetry.progress.corrupt_samples += int(counted)
            self.corrupt_samples = 0

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        """Storage may take its time."""
        with self._watchdog.paused(), self._telemetry.stopwatch.during("checkpoint"):
            yield
