"""How a run is going: losses, rates and the time left, read from the device once an interval and not once a step."""

from __future__ import annotations

import logging
import math
import resource
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from trainingjob_trainer.checkpoint.state import LoggedStep, Progress
from trainingjob_trainer.config import Training
from trainingjob_trainer.errors import DataError, UserError
from trainingjob_trainer.optim import learning_rate
from trainingjob_trainer.parallel import StepSums, Stragglers
from trainingjob_trainer.stopwatch import Phase, Reading, Stopwatch
from trainingjob_trainer.utilization import Utilization

log = logging.getLogger(__name__)

MAX_PENDING = 100  # steps whose sums may wait on the device
MAX_SKIPPED = 10  # steps in a row that moved nothing: the run does not come back from there by itself


@dataclass
class Telemetry:
    """Takes in every step's global sums and keeps `progress` up to date. The same on every rank."""

    training: Training
    progress: Progress
    tokens: bool  # whether targets are tokens
    stragglers: Stragglers
    utilization: Utilization | None = None
    stopwatch: Stopwatch = field(default_factory=Stopwatch)
    _pending: list[StepSums] = field(default_factory=list)
    _fields: dict[str, Any] = field(default_factory=dict)

    def add(self, sums: StepSums) -> bool:
        """Take in the step that comes after `progress.step`. True when it is one to report."""
        self._pending.append(sums)
        self.progress.step += 1
        self.progress.samples += self.training.global_batch_size
        due = self._logged(self.progress.step)
        if due or len(self._pending) >= MAX_PENDING:
            self.flush()
        return due

    def flush(self) -> None:
        """Read the pending sums.

        Raises `UserError` after ten steps in a row whose loss or gradient was not finite; `DataError` where the last of
        them had no data that could be read.
        """
        if not self._pending:
            return
        numbers = torch.stack([number for sums in self._pending for number in sums])
        rows: list[list[float]] = numbers.view(-1, 3).tolist()
        first = self.progress.step - len(rows) + 1
        self._pending.clear()
        targets = 0
        for step, (loss, grad_norm, count) in enumerate(rows, start=first):
            rate = learning_rate(step - 1, self.training)
            targets += round(count)
            if not self._counts(step, loss, grad_norm, count, rate):
                continue
            if self._logged(step):
                self.progress.log(LoggedStep(step=step, loss=loss, learning_rate=rate, grad_norm=grad_norm))
        self.progress.tokens += targets if self.tokens else 0
        self._measure(len(rows), targets)

    def fields(self) -> dict[str, Any]:
        """`progress` as contracts.md §4 has it."""
        progress = self.progress
        logged = progress.history[-1] if progress.history else None
        return {
            "step": progress.step,
            "steps": self.training.total_steps,
            "samples": progress.samples,
            "tokens": progress.tokens if self.tokens else None,
            "tokensPerSecond": None,
            "etaSeconds": None,
            "loss": logged.loss if logged else None,
            "learningRate": logged.learning_rate if logged else None,
            "gradNorm": logged.grad_norm if logged else None,
            **self._fields,
        }

    def rates(self) -> str:
        """What is to be known of the learning rate before the first step; nothing, if it is as everybody expects.

        Of a run that goes on, the rate now and when one was last logged: a changed schedule shows there. Of a run that
        is over before its warm-up, how far it comes: the warm-up has a length also where nobody asked for one.
        """
        step, steps, history = self.progress.step, self.training.total_steps, self.progress.history
        if step >= steps:
            return ""
        told = ""
        if step:
            before = f" ({history[-1].learning_rate:.3g} at step {history[-1].step})" if history else ""
            told = f"; learning rate {learning_rate(step, self.training):.3g}{before}"
        peak, warmup = self.training.optimizer.lr, self.training.schedule.warmup_steps
        if warmup >= steps:
            told += (
                f"; the learning rate never reaches its peak of {peak:.3g}, only "
                f"{learning_rate(steps - 1, self.training):.3g}: training.schedule.warmupSteps is {warmup} and the run "
                f"has {steps} steps"
            )
        return told

    def _logged(self, step: int) -> bool:
        return step % self.training.log_every == 0 or step == self.training.total_steps

    def _counts(self, step: int, loss: float, grad_norm: float, targets: float, rate: float) -> bool:
        """Whether the step moved the weights; otherwise it is counted as skipped."""
        progress = self.progress
        if math.isfinite(loss) and math.isfinite(grad_norm):
            progress.skipped_in_a_row = 0
            return True
        progress.skipped += 1
        progress.skipped_in_a_row += 1
        too_many, before = progress.skipped_in_a_row == MAX_SKIPPED, f"the {MAX_SKIPPED - 1} steps before it"
        if not targets:
            log.warning("step %d is skipped: all of its data is corrupt", step)
            if too_many:
                raise DataError(
                    f"All data of step {step} is corrupt, and so was that of {before}: nothing is learnt any more.",
                    "Restore the shards that the log names.",
                    step=step,
                )
            return False
        what = "gradient norm" if math.isfinite(loss) else "loss"
        log.warning("step %d is skipped: its %s is not finite; learning rate %g", step, what, rate)
        if too_many:
            raise UserError(
                f"The {what} of step {step} is not finite, as in {before}; the learning rate was {rate:g}.",
                "Lower training.optimizer.lr, lengthen training.schedule.warmupSteps, or look at the data. "
                "A run with another learning rate resumes from the last checkpoint.",
                step=step,
            )
        return False

    def _measure(self, steps: int, targets: int) -> None:
        reading = self.stopwatch.read()
        left = max(0, self.training.total_steps - self.progress.step)
        self._fields["etaSeconds"] = round(left * reading.seconds / steps, 1)
        training = reading.seconds - reading.spent.get("evaluation", 0.0)
        metrics = self._speed(steps, training / steps, reading.spent) | self._lag(steps, reading)
        if self.tokens:
            self._fields["tokensPerSecond"] = round(targets / training, 1)
        else:
            metrics["samplesPerSecond"] = round(steps * self.training.global_batch_size / training, 1)
        self._fields["metrics"] = metrics

    def _lag(self, steps: int, reading: Reading) -> dict[str, float]:
        """The slowest rank of the last report, and its seconds a step more than the median's, waits for peers left out.

        With CUDA the thread only launches what the device does, so there it is of the waits for data.
        """
        own = reading.spent.get("data", 0.0) + (0.0 if torch.cuda.is_available() else reading.ran)
        straggler = self.stragglers.exchange(own / steps)
        if straggler is None:
            return {}
        return {"slowestRank": straggler.rank, "stragglerSeconds": round(straggler.seconds, 6)}

    def _speed(self, steps: int, step_seconds: float, spent: Mapping[Phase, float]) -> dict[str, float]:
        """This rank's seconds a step, what of them it waited for data or a checkpoint, MFU, and its memory's peak."""
        speed = {
            "stepSeconds": round(step_seconds, 6),
            "dataWaitSeconds": round(spent.get("data", 0.0) / steps, 6),
            "checkpointWaitSeconds": round(spent.get("checkpoint", 0.0) / steps, 6),
        }
        if self.utilization is not None:
            speed["mfu"] = round(self.utilization.share(step_seconds), 4)
        if torch.cuda.is_available():
            return speed | {"deviceMemoryGiB": round(torch.cuda.max_memory_allocated() / 2**30, 3)}
        kibibytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return speed | {"memoryGiB": round(kibibytes / 2**20, 3)}
