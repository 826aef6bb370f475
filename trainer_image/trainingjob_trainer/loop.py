"""The training loop: resume, step, log, evaluate, checkpoint, hand the model out. Runs in every rank alike."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import UTC, datetime
from typing import Any, NoReturn, Protocol

import torch
from torch import Tensor

from trainingjob_trainer.checkpoint.attempt import Attempt
from trainingjob_trainer.checkpoint.cadence import Cadence, best_of
from trainingjob_trainer.checkpoint.checkpointer import Checkpointer
from trainingjob_trainer.checkpoint.commits import commits, latest, step_prefix
from trainingjob_trainer.checkpoint.retention import best_commits
from trainingjob_trainer.checkpoint.state import Evaluated, Progress, state_tensors, weights_of
from trainingjob_trainer.compile_cache import CompileCache, Part
from trainingjob_trainer.config import JobConfig
from trainingjob_trainer.data.batches import training_rows
from trainingjob_trainer.data.manifest import HELD_OUT, MANIFEST_KEY, Manifest, SplitName
from trainingjob_trainer.data.mixture import training_reader
from trainingjob_trainer.data.prefetch import prefetch
from trainingjob_trainer.data.reader import Reader
from trainingjob_trainer.early_stopping import stops_early
from trainingjob_trainer.errors import Drained, Hang, UserError
from trainingjob_trainer.evaluation.evaluate import evaluate, scalars
from trainingjob_trainer.garbage import AgreedCollections
from trainingjob_trainer.models import build_model, init_weights
from trainingjob_trainer.optim import WeightAverage, build_optimizer
from trainingjob_trainer.parallel import (
    Ballot,
    Stragglers,
    Vote,
    World,
    compiles,
    full_state,
    layout_of,
    parallelize,
    pass_dtype,
    pass_precision,
    reshard,
    statistics,
)
from trainingjob_trainer.profiling import Profiler
from trainingjob_trainer.records import Evaluation, RunResult
from trainingjob_trainer.seeding import make_deterministic
from trainingjob_trainer.step import Dealing, Stepper
from trainingjob_trainer.stop import Stop
from trainingjob_trainer.tasks import TaskMetrics, build_task
from trainingjob_trainer.telemetry import Telemetry
from trainingjob_trainer.utilization import Utilization
from trainingjob_trainer.watchdog import Watchdog

log = logging.getLogger(__name__)


class Hooks(Protocol):
    """All that training knows of its surroundings."""

    def report(self, fields: Mapping[str, Any]) -> None:
        """Take news, any fields of `/progress` (contracts.md §4). Called on rank 0 only; must return at once."""

    def stop_requested(self) -> Stop:
        """Whether this rank was asked to stop. If any was, all stop at the same step, with that step committed."""

    def hung(self, error: Hang) -> NoReturn:
        """Tell of it and end the process at once: its main thread answers to nothing. Not called in that thread."""


def train(config: JobConfig, attempt: Attempt, hooks: Hooks) -> RunResult:
    """Train to the last step from wherever the run's newest checkpoint stands, evaluate, export, report.

    To be called by every rank, with torch's default process group initialised, or without one for a single rank.
    Raises a `TrainerError`; `Drained` after a stop request, when a checkpoint is committed.
    """
    if config.training.deterministic:
        make_deterministic()
    run = _Run(config, attempt, hooks)
    with run.checkpointer:
        run.restore()
        with run.watchdog:
            run.steps()
            return run.finish()


class _Run:
    """One attempt at a run: the parts that stay the same from step to step, and the phases."""

    def __init__(self, config: JobConfig, attempt: Attempt, hooks: Hooks) -> None:
        world = World.join()
        manifest = world.on_first(lambda: Manifest.model_validate_json(attempt.store.get(MANIFEST_KEY)))
        samples = manifest.num_samples("train", config.training.sequence_length)
        training = config.training.in_steps(samples)
        self.plan_hash = config.plan_hash()
        self.config = config = config.model_copy(update={"training": training})
        self.manifest, self.attempt, self.hooks = manifest, attempt, hooks
        dtype = world.on_first(lambda: pass_dtype(training.precision, world.device))
        with torch.device("meta"):
            model = build_model(config, manifest)
        self.layout = world.on_first(lambda: layout_of(config, model, world.size, world.device))
        self.world = world = world.arranged(self.layout)
        self.model = parallelize(model, world, training, dtype).to_empty(device=world.device)
        self.average = WeightAverage(self.model, training.ema_decay) if training.ema_decay else None
        compiled = compiles(training, world.device)
        self.compile_cache = CompileCache.of(attempt.store, config, world) if compiled else None
        self.stepper = Stepper(
            self.model,
            build_optimizer(self.model, training.optimizer),
            build_task(config, manifest, compiled),
            training,
            world,
            Dealing.of(training, world),
            dtype,
            self.average,
            statistics(self.model),
        )
        length, packing, skips = training.sequence_length, config.data.packing, config.data.on_corrupt == "skip"
        self.readers = {s: Reader(attempt.store, manifest, s, length, packing, skips) for s in HELD_OUT}
        weights = config.data.train.weights
        self.training_reader = training_reader(attempt.store, manifest, length, weights, packing, skips)
        self.checkpointer = Checkpointer(attempt, world, config.identity_hash(), config.checkpoint)
        utilization = Utilization.of(config, manifest, world)
        self.telemetry = Telemetry(training, Progress(), manifest.kind == "tokens", Stragglers(world), utilization)
        self.profiler = Profiler(training.profile, attempt, world.rank)
        self.cadence = Cadence(config.checkpoint)
        self.vote = Vote(world)
        self.watchdog = Watchdog(self.model, training.hang_seconds, lambda: self.progress.step, hooks.hung)
        self.told_step = 0  # of the newest checkpoint that was reported
        self.corrupt_samples = 0  # of this rank since the last checkpoint

    @property
    def _precision(self) -> str:
        return str(self.stepper.dtype).removeprefix("torch.")

    @property
    def progress(self) -> Progress:
        return self.telemetry.progress

    def restore(self) -> None:
        """Take the newest checkpoint's state, or the initial one."""
        commit = self.world.on_first(lambda: latest(self.attempt.store))
        if commit is None:
            self._begin()
            if self.average is not None:
                self.average.restart()
        elif commit.identity_hash != self.checkpointer.identity_hash:
            raise UserError(
                f"{self.attempt.store.uri()} holds checkpoints of another run.",
                "Choose another outputUri, or set runPolicy.onExistingRun: Overwrite.",
            )
        else:
            self.telemetry.progress = self.checkpointer.load(commit, self._tensors())
        self.told_step = self.checkpointer.committed_step
        if self.compile_cache is not None:
            self.compile_cache.restore()
        self._report(
            state="Training",
            message=f"Training from step {self.progress.step} on {self.world.size} rank(s) in {self._precision}: "
            f"{self.layout}{self.telemetry.rates()}.",
            worldSize=self.world.size,
            resumedFromStep=commit.step if commit else None,
            progress=self.telemetry.fields(),
            checkpoint=self._checkpoint_fields(),
        )

    def _begin(self) -> None:
        """The weights before the first step: random ones, or those of another model."""
        if self.config.model.init_from is None:
            init_weights(self.model, self.config.training.seed)
            return
        from trainingjob_trainer.beginning import begin

        begin(self.model, self.config, self.manifest, self.world)

    def steps(self) -> None:
        """Take the steps that are left."""
        if self.over():
            return
        training = self.config.training
        start = self.progress.step
        reader = self.training_reader
        order = reader.order(training.seed)
        steps = range(start, training.total_steps)
        rows = training_rows(steps, training.global_batch_size, order, self.world.data_size, self.world.data_rank)
        self.telemetry.stopwatch.read()  # from here on it counts
        own_rows = (own or [0] for own in rows)
        with AgreedCollections() as garbage, prefetch(reader, own_rows, pin=self.world.device.type == "cuda") as read:
            for step, batch in enumerate(self.telemetry.stopwatch.waits("data", read), start=start):
                self.between_steps(more=True)
                with self.profiler.step(step + 1):
                    due = self.telemetry.add(self.stepper(step, batch))
                self.corrupt_samples += batch.skipped
                if step == start:
                    self.first_step_done()
                if due:
                    self._report(progress=self.telemetry.fields())
                self.hand_out_profile()
                self.after_step()
                garbage.step_done(step + 1)
                if self.over():
                    break
        self.hand_out_profile(last=True)
        self.await_commit()

    def hand_out_profile(self, *, last: bool = False) -> None:
        """What the profiler has recorded, if it has and is to record no more; `last`: no step comes."""
        step = self.progress.step
        if self.profiler.is_over(step, last=last):
            with self.watchdog.paused():
                uri = self.profiler.hand_out()
            self._report(message=f"Training. The profiler's trace up to step {step} is {uri or 'lost'}.")

    def first_step_done(self) -> None:
        """Tell of the attempt's first step."""
        self._report(firstStepAt=datetime.now(UTC).isoformat())
        self.keep_compiled("training")

    def keep_compiled(self, part: Part) -> None:
        """Have what was compiled for it spare later attempts the time."""
        if self.compile_cache is not None and self.world.rank == 0:
            self.compile_cache.keep(part)

    def over(self) -> bool:
        """Whether no step is left, or the run has stopped getting better."""
        training, progress = self.config.training, self.progress
        return progress.step >= training.total_steps or stops_early(progress.evaluations, training.early_stopping)

    def after_step(self) -> None:
        """What is due after a step: an evaluation first, so that the checkpoint knows it."""
        step = self.progress.step
        if step == self.config.training.total_steps or step % self.config.evaluation.every_steps == 0:
            self.telemetry.flush()
            metrics = scalars(self.evaluate("validation", step, self.config.evaluation.max_samples))
            self.progress.evaluations.append(Evaluated(step=step, metrics=metrics))
        if self.over() or self.cadence.due(self.progress):
            self.save()

    def between_steps(self, *, more: bool = False) -> None:
        """Do what the ranks agreed on when they voted at the last boundary, and vote anew.

        If any was asked to stop: commit and raise `Drained`. more: steps are left, so also if it is to resize. If a
        save in the background failed: raise its failure.
        """
        agreed, step = self.vote.result(), self.progress.step
        if agreed.save_failed:
            self.checkpointer.wait()
        stops = agreed.stop is Stop.NOW or (agreed.stop is Stop.TO_RESIZE and more)
        if agreed.stop is Stop.NOW:
            self._report(state="Draining", message="Asked to stop: committing a checkpoint.")
        if stops or agreed.save_due:
            self.save()
        if stops:
            self.await_commit()
            raise Drained(f"Asked to stop; step {step} is committed.", step=step)
        self.tell_commit()
        overdue = self.checkpointer.idle and self.cadence.overdue()  # the clock waits for the save before, not training
        self.vote.cast(Ballot(self.hooks.stop_requested(), self.checkpointer.failed, overdue))

    def save(self) -> None:
        """Have a checkpoint of the present step committed, unless it is already; training goes on meanwhile."""
        if self.checkpointer.saved_step != self.progress.step:
            self.telemetry.flush()
            self._count_corrupt_samples()
            with self._waiting():
                self.checkpointer.save(self._tensors(), self.progress)
            self.cadence.restart()

    def await_commit(self) -> None:
        """Return when the newest save is committed."""
        with self._waiting():
            self.checkpointer.wait()
        self.tell_commit()

    def tell_commit(self) -> None:
        """Report a checkpoint that was committed since the last one."""
        if self.told_step != self.checkpointer.committed_step:
            self.told_step = self.checkpointer.committed_step
            self._report(checkpoint=self._checkpoint_fields())

    def evaluate(self, split: SplitName, step: int, max_samples: int | None = None) -> TaskMetrics:
        """Metrics of the present weights, those after `step` steps, on a split; the same on every rank."""
        self._report(state="Evaluating", message=f"Evaluating on the {split} split.")
        evaluating = self.telemetry.stopwatch.during("evaluation")
        self.world.share(self.stepper.statistics)
        with evaluating, self._evaluated_weights(), pass_precision(self.world, self.stepper.dtype):
            metrics = evaluate(
                self.model,
                self.stepper.task,
                self.readers[split],
                self.world.device,
                max_samples=max_samples,
                group=self.world.data_group,
            )
        reshard(self.model)
        self.keep_compiled("evaluation")
        evaluation = {"split": split, "step": step, "metrics": scalars(metrics)}
        self._report(state="Training", message="Training.", evaluation=evaluation)
        return metrics

    def finish(self) -> RunResult:
        """Evaluate the best weights on the test split, export them, write the report."""
        self.between_steps()
        step = self.take_best()
        test = self.evaluate("test", step)
        self.between_steps()
        self._report(state="Exporting", message="Exporting the model and writing the report.")
        with self.watchdog.paused():
            weights = None
            if self.config.model.export != "none":
                with self._evaluated_weights():
                    weights = full_state(self.model, self.world)
            return self.world.on_first(lambda: self._hand_out(weights, step, test))

    def take_best(self) -> int:
        """Have the weights of the best checkpoint, if one is kept as such, else keep the last; the step they are of.

        It is found by what is committed, so a run that dies after its last step chooses the same again.
        """
        policy = self.config.checkpoint
        found = self.world.on_first(lambda: best_commits(commits(self.attempt.store), policy)[:1])
        if not found or found[0].step == self.progress.step:
            return self.progress.step
        with self._waiting():
            self.checkpointer.fill(found[0], weights_of(self._tensors()))
        return found[0].step

    def _hand_out(self, weights: Mapping[str, Tensor] | None, step: int, test: TaskMetrics) -> RunResult:
        from trainingjob_trainer.evaluation.export import export_model  # imports transformers
        from trainingjob_trainer.evaluation.report import write_report

        config, manifest, attempt = self.config, self.manifest, self.attempt
        return RunResult(
            plan_hash=self.plan_hash,
            attempt=attempt.number,
            step=self.progress.step,
            model_uri=None if weights is None else export_model(config, manifest, weights, attempt, step),
            report_uri=write_report(config, manifest, self.progress, step, test, attempt),
            evaluation=Evaluation(split="test", step=step, metrics=test),
        )

    def _count_corrupt_samples(self) -> None:
        if self.config.data.on_corrupt == "skip":
            counted = self.world.once(torch.tensor(self.corrupt_samples, device=self.world.device))
            self.world.sum(counted)
            self.progress.corrupt_samples += int(counted)
            self.corrupt_samples = 0

    def _tensors(self) -> dict[str, Tensor]:
        """What a checkpoint holds. Collective."""
        self.world.share(self.stepper.statistics)
        return state_tensors(self.model, self.stepper.optimizer, self.average)

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        """For a checkpoint: storage may take its time."""
        with self.watchdog.paused(), self.telemetry.stopwatch.during("checkpoint"):
            yield

    def _evaluated_weights(self) -> AbstractContextManager[None]:
        """The weights that are evaluated and exported: the average, if there is one, in place of the last ones."""
        return nullcontext() if self.average is None else self.average.in_place()

    def _checkpoint_fields(self) -> dict[str, Any] | None:
        if not self.told_step:
            return None
        best = best_of(self.progress.evaluations, self.config.checkpoint)
        return {
            "latestStep": self.told_step,
            "latestUri": self.attempt.store.uri(step_prefix(self.told_step)),
            "bestStep": best.step if best else None,
            "bestLoss": best.metrics.get("loss") if best else None,
        }

    def _report(self, **fields: Any) -> None:
        if self.world.rank == 0:
            self.hooks.report(fields)
