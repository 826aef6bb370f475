"""The training loop: resume, step, log, evaluate, checkpoint, hand the model out. Runs in every rank alike."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, NoReturn, Protocol

from torch import Tensor

from trainingjob_trainer.checkpoint.attempt import Attempt
from trainingjob_trainer.checkpoint.state import Evaluated, Progress
from trainingjob_trainer.compile_cache import CompileCache, Part
from trainingjob_trainer.config import JobConfig
from trainingjob_trainer.data.augmentation import augmenter
from trainingjob_trainer.data.batches import training_rows
from trainingjob_trainer.data.manifest import HELD_OUT, MANIFEST_KEY, Manifest, SplitName
from trainingjob_trainer.data.mixture import training_reader
from trainingjob_trainer.data.prefetch import prefetch
from trainingjob_trainer.data.reader import Reader
from trainingjob_trainer.early_stopping import stops_early
from trainingjob_trainer.errors import Drained, Hang
from trainingjob_trainer.evaluation.evaluate import scalars
from trainingjob_trainer.garbage import AgreedCollections
from trainingjob_trainer.learner import Learner
from trainingjob_trainer.parallel import Ballot, Stragglers, Vote, World
from trainingjob_trainer.profiling import Profiler
from trainingjob_trainer.records import Evaluation, RunResult
from trainingjob_trainer.saves import Saves
from trainingjob_trainer.seeding import make_deterministic
from trainingjob_trainer.standstill import Stand
from trainingjob_trainer.stop import Stop
from trainingjob_trainer.tasks import TaskMetrics
from trainingjob_trainer.telemetry import Telemetry
from trainingjob_trainer.utilization import Utilization
from trainingjob_trainer.watchdog import Watchdog


class Hooks(Protocol):
    """All that training knows of its surroundings."""

    def report(self, fields: Mapping[str, Any]) -> None:
        """Take news, any fields of `/progress` (contracts.md §4). Called on rank 0 only; must return at once."""

    def stop_requested(self) -> Stop:
        """Whether this rank was asked to stop. If any was, all stop at the same step, with that step committed."""

    def stands(self, stand: Stand | None) -> None:
        """This rank stands still, like all others; None: it goes on. Not called in its main thread."""

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
    with run.saves:
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
        self.learner = Learner.of(config, manifest, world)
        self.world = world = self.learner.world
        self.compile_cache = CompileCache.of(attempt.store, config, world) if self.learner.compiled else None
        length, packing, skips = training.sequence_length, config.data.packing, config.data.on_corrupt == "skip"
        self.readers = {s: Reader(attempt.store, manifest, s, length, packing, skips) for s in HELD_OUT}
        weights = config.data.train.weights
        self.training_reader = training_reader(attempt.store, manifest, length, weights, packing, skips)
        utilization = Utilization.of(config, manifest, world)
        self.telemetry = Telemetry(training, Progress(), manifest.kind == "tokens", Stragglers(world), utilization)
        self.profiler = Profiler(training.profile, attempt, world.rank)
        seconds = training.hang_seconds
        self.watchdog = Watchdog(self.learner.model, seconds, lambda: self.progress.step, hooks.stands, hooks.hung)
        self.saves = Saves(self.learner, self.telemetry, attempt, self.watchdog, self.report)
        self.vote = Vote(world)
        self.stops_early = False

    @property
    def progress(self) -> Progress:
        """Where the run is; another object after a checkpoint was loaded."""
        return self.telemetry.progress

    def report(self, **fields: Any) -> None:
        """Give news of the whole run, once."""
        if self.world.rank == 0:
            self.hooks.report(fields)

    def restore(self) -> None:
        """Be where the run's newest checkpoint is, or at its beginning."""
        resumed_from = self.saves.restore()
        self.judge()
        if self.compile_cache is not None:
            self.compile_cache.restore()
        self.report(
            state="Training",
            message=f"Training from step {self.progress.step} on {self.learner}{self.telemetry.rates()}.",
            worldSize=self.world.size,
            resumedFromStep=resumed_from,
            progress=self.telemetry.fields(),
            checkpoint=self.saves.fields(),
        )

    def steps(self) -> None:
        """Take the steps that are left."""
        self.validate()
        if self.over():
            return
        training = self.config.training
        start = self.progress.step
        reader = self.training_reader
        order = reader.order(training.seed)
        steps = range(start, training.total_steps)
        rows = training_rows(steps, training.global_batch_size, order, self.world.data_size, self.world.data_rank)
        own_rows = (own if len(own) else [0] for own in rows)
        self.telemetry.stopwatch.read()  # from here on it counts
        pin, change = self.world.device.type == "cuda", augmenter(self.config, self.manifest)
        with AgreedCollections() as garbage, prefetch(reader, own_rows, pin=pin, change=change) as read:
            for step, batch in enumerate(self.telemetry.stopwatch.waits("data", read), start=start):
                self.between_steps(more=True)
                with self.profiler.step(step + 1), self.compiling("training"):
                    due = self.telemetry.add(self.learner.stepper(step, batch))
                self.saves.corrupt_samples += batch.skipped
                if step == start:
                    self.report(firstStepAt=datetime.now(UTC).isoformat())
                if due:
                    self.report(progress=self.telemetry.fields())
                self.hand_out_profile()
                self.after_step()
                garbage.step_done(step + 1)
                if self.over():
                    break
        self.hand_out_profile(last=True)
        self.saves.await_commit()

    def over(self) -> bool:
        """Whether no step is left, or the run has stopped getting better."""
        return self.progress.step >= self.config.training.total_steps or self.stops_early

    def judge(self) -> None:
        """Whether the run has stopped getting better: looked at when there is another evaluation, not at each step."""
        self.stops_early = stops_early(self.progress.evaluations, self.config.training.early_stopping)

    def after_step(self) -> None:
        """What is due after a step: an evaluation first, so that the checkpoint knows it."""
        self.validate()
        if self.over() or self.saves.due:
            self.saves.save()

    def validate(self) -> None:
        """Evaluate on the validation split, if that is due after the present step and has not been done.

        A run may go on from a step that lacks it: one that was asked to stop leaves its evaluation for its successor.
        """
        step, evaluations = self.progress.step, self.progress.evaluations
        due = step == self.config.training.total_steps or (step > 0 and step % self.config.evaluation.every_steps == 0)
        if due and not (evaluations and evaluations[-1].step == step):
            self.telemetry.flush()
            metrics = scalars(self.evaluate("validation", step, self.config.evaluation.max_samples))
            evaluations.append(Evaluated(step=step, metrics=metrics))
            self.judge()
            self.saves.amend()

    def between_steps(self, *, more: bool = False) -> None:
        """Do what the ranks agreed on when they voted at the last boundary, and vote anew.

        If any was asked to stop: commit and raise `Drained`. more: steps are left, so also if it is to resize. If a
        save in the background failed: raise its failure.
        """
        agreed = self.vote.result()
        if agreed.save_failed:
            self.saves.raise_failure()
        if agreed.stop is Stop.NOW or (agreed.stop is Stop.TO_RESIZE and more):
            self.stop(agreed.stop)
        if agreed.save_due:
            self.saves.save()
        self.saves.tell_commit()
        self.cast()

    def before_pass(self) -> None:
        """In an evaluation, which may take longer than there is time to stop: raise `Drained` if ranks agreed so."""
        if self.vote.result().stop is Stop.NOW:
            raise Drained("Asked to stop.")
        self.cast()

    def cast(self) -> None:
        """Vote on what is to be done at the next boundary."""
        self.vote.cast(Ballot(self.hooks.stop_requested(), self.saves.failed, self.saves.overdue))

    def stop(self, wish: Stop) -> NoReturn:
        """End the attempt, the present step committed."""
        if wish is Stop.NOW:
            self.report(state="Draining", message="Asked to stop: committing a checkpoint.")
        self.saves.save()
        self.saves.await_commit()
        step = self.progress.step
        raise Drained(f"Asked to stop; step {step} is committed.", step=step)

    def evaluate(self, split: SplitName, step: int, max_samples: int | None = None) -> TaskMetrics:
        """Metrics of the present weights, those after `step` steps, on a split; the same on every rank.

        A request to stop ends it, and the attempt: `Drained`.
        """
        which = "" if step == self.progress.step else f" the weights of step {step}, the best,"
        self.report(state="Evaluating", message=f"Evaluating{which} on the {split} split.")
        try:
            with self.telemetry.stopwatch.during("evaluation"), self.compiling("evaluation"):
                metrics = self.learner.evaluate(self.readers[split], max_samples, self.before_pass)
        except Drained:
            self.stop(Stop.NOW)
        evaluation = {"split": split, "step": step, "metrics": scalars(metrics)}
        self.report(state="Training", message="Training.", evaluation=evaluation)
        return metrics

    @contextmanager
    def compiling(self, part: Part) -> Iterator[None]:
        """A step, or an evaluation. An attempt's first one may compile: that takes long, and is kept for later ones."""
        if self.compile_cache is None or not self.compile_cache.is_first(part):
            yield
            return
        with self.watchdog.patient():
            yield
        self.compile_cache.keep(part)

    def hand_out_profile(self, *, last: bool = False) -> None:
        """What the profiler has recorded, if it has and is to record no more; `last`: no step comes."""
        step = self.progress.step
        if self.profiler.is_over(step, last=last):
            with self.watchdog.paused():
                uri = self.profiler.hand_out()
            self.report(message=f"Training. The profiler's trace up to step {step} is {uri or 'lost'}.")

    def finish(self) -> RunResult:
        """Evaluate the best weights on the test split, export them, write the report."""
        training = self.config.training
        if self.progress.step < training.total_steps:
            self.report(message=f"Stopped early at step {self.progress.step}: {training.early_stopping}.")
        self.between_steps()
        step = self.saves.take_best()
        test = self.evaluate("test", step)
        self.between_steps()
        self.report(state="Exporting", message="Exporting the model and writing the report.")
        with self.watchdog.paused():
            weights = None if self.config.model.export == "none" else self.learner.weights()
            return self.world.on_first(lambda: self.hand_out(weights, step, test))

    def hand_out(self, weights: Mapping[str, Tensor] | None, step: int, test: TaskMetrics) -> RunResult:
        """The weights after `step` steps, and all that is known of the run. On rank 0."""
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
