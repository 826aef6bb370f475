"""Metrics of each job, `trainingjob_*` (docs/metrics.md): written at each scrape from what the operator knows.

They exist as long as the job does. Progress comes from memory, so it is as fresh as the last poll. Ten thousand jobs
have a quarter of a million samples, so the text is made here and not by objects of a library, and in slices: between
two of them the event loop does its other work.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from typing import Literal, NamedTuple, get_args

from trainingjob_operator.api.status import Phase, TrainingJobStatus
from trainingjob_operator.core.books import ON_THE_WAY
from trainingjob_operator.core.cache import Key
from trainingjob_operator.core.facts import InvalidSpec, Job, PodFacts, ProgressFacts
from trainingjob_operator.core.reports import scalar_metrics

SLICE = 100  # jobs that are written in one go


class Family(NamedTuple):
    """A metric, and its labels besides `namespace` and `name`."""

    name: str
    kind: Literal["gauge", "counter", "stateset", "info"]
    text: str
    labels: tuple[str, ...] = ()

    @property
    def sample(self) -> str:
        """Name of its samples."""
        return self.name + {"counter": "_total", "info": "_info"}.get(self.kind, "")

    def header(self, openmetrics: bool) -> str:
        """What stands before its samples. The older format knows neither state sets nor infos."""
        name, kind = (self.name, self.kind) if openmetrics else (self.sample, OLDER.get(self.kind, self.kind))
        return f"# HELP {name} {self.text}\n# TYPE {name} {kind}\n"


OLDER = {"stateset": "gauge", "info": "gauge"}
FAMILIES = (
    Family("trainingjob_phase", "stateset", "Phase of the job.", ("trainingjob_phase",)),
    Family("trainingjob_progress_ratio", "gauge", "Share of the run that is done, 0 to 1."),
    Family("trainingjob_step", "gauge", "Finished optimizer steps."),
    Family("trainingjob_steps", "gauge", "Optimizer steps of the whole run."),
    Family("trainingjob_loss", "gauge", "Training loss at the last reported step."),
    Family("trainingjob_learning_rate", "gauge", "Learning rate at the last reported step."),
    Family("trainingjob_tokens_per_second", "gauge", "Throughput over all ranks."),
    Family("trainingjob_eta_seconds", "gauge", "Seconds to the last step."),
    Family(
        "trainingjob_reported",
        "gauge",
        "Further numbers: where a step's time goes, or a custom command's.",
        ("metric",),
    ),
    Family("trainingjob_evaluation", "gauge", "Newest evaluation.", ("split", "metric")),
    Family("trainingjob_checkpoint_step", "gauge", "Step of the newest committed checkpoint."),
    Family("trainingjob_checkpoint_timestamp_seconds", "gauge", "When that checkpoint was first heard of."),
    Family("trainingjob_workers_desired", "gauge", "Pods that the current stage wants."),
    Family("trainingjob_workers_ready", "gauge", "Pods of the current stage that are ready."),
    Family("trainingjob_gpus", "gauge", "GPUs that worker pods on nodes hold."),
    Family("trainingjob_failures", "counter", "Failures that count towards maxRestarts."),
    Family(
        "trainingjob_failures_without_progress", "gauge", "Those since a new checkpoint; more than maxRestarts end it."
    ),
    Family("trainingjob_restarts", "counter", "Interruptions of the run, by class.", ("class",)),
    Family("trainingjob_start_latency_seconds", "gauge", "Time spent in phases on the way to training.", ("phase",)),
    Family("trainingjob_queue_wait_seconds", "gauge", "Time spent Queued."),
    Family("trainingjob_progress_timestamp_seconds", "gauge", "When the trainer was last heard of."),
    Family("trainingjob_start_time_seconds", "gauge", "When the run was started, or resumed."),
    Family("trainingjob_completion_time_seconds", "gauge", "When the job was finished."),
    Family("trainingjob_pod", "info", "A pod of the job that has not ended.", ("pod", "role", "index", "node")),
)
_SAMPLE = {family.name: family.sample for family in FAMILIES}
_PHASES: tuple[str, ...] = get_args(Phase)


class JobMetrics:
    """Writes the metrics of all jobs.

    jobs: those to tell about; progress: what a job's trainer reported, and pods: a job's pods (both by job uid).
    """

    def __init__(
        self,
        jobs: Callable[[], Iterable[tuple[Key, Job]]],
        progress: Callable[[str], ProgressFacts],
        pods: Callable[[str], Sequence[PodFacts]],
        now: Callable[[], datetime],
    ) -> None:
        self._jobs = jobs
        self._progress = progress
        self._pods = pods
        self._now = now

    async def text(self, openmetrics: bool) -> str:
        """All families, in the OpenMetrics format (without its end mark) or in the older text format."""
        lines: dict[str, list[str]] = {family.name: [] for family in FAMILIES}
        for number, (key, job) in enumerate(list(self._jobs()), start=1):
            own = f'namespace="{key.namespace}",name="{key.name}"'
            for family, value, labels in samples(job, self._progress(job.uid), self._pods(job.uid), self._now()):
                lines[family].append(f"{_SAMPLE[family]}{{{own}{labels}}} {_number(value)}\n")
            if number % SLICE == 0:
                await asyncio.sleep(0)
        return "".join(part for family in FAMILIES for part in (family.header(openmetrics), *lines[family.name]))


def samples(
    job: Job, progress: ProgressFacts, pods: Sequence[PodFacts], now: datetime
) -> Iterator[tuple[str, float, str]]:
    """What is known of a job: family, value, and the family's own labels as text that begins with a comma."""
    status = job.status
    for phase in _PHASES:
        yield "trainingjob_phase", phase == status.phase, f',trainingjob_phase="{phase}"'
    for name, value in _numbers(status, progress).items():
        if value is not None:
            yield name, value, ""
    for name, value in _reported(status, progress).items():
        yield "trainingjob_reported", value, f',metric="{_escaped(name)}"'
    if status.evaluation is not None:
        split = _escaped(status.evaluation.split)
        for name, value in status.evaluation.metrics.items():
            yield "trainingjob_evaluation", value, f',split="{split}",metric="{_escaped(name)}"'
    for class_, count in status.restarts.by_class.items():
        yield "trainingjob_restarts", count, f',class="{_escaped(class_)}"'
    yield from _waits(status, now)
    yield from _pod_samples(job, pods)


def _numbers(status: TrainingJobStatus, facts: ProgressFacts) -> dict[str, float | None]:
    """The families with one sample a job. The report in memory is newer than the status, until the job is finished."""
    numbers: dict[str, float | None] = {
        "trainingjob_workers_desired": status.workers.desired,
        "trainingjob_workers_ready": status.workers.ready,
        "trainingjob_failures": status.restarts.total,
        "trainingjob_failures_without_progress": status.restarts.without_progress,
        "trainingjob_start_time_seconds": _timestamp(status.start_time),
        "trainingjob_completion_time_seconds": _timestamp(status.completion_time),
        "trainingjob_progress_timestamp_seconds": _timestamp(facts.fetched_at),
    }
    if status.checkpoint is not None:
        numbers["trainingjob_checkpoint_step"] = status.checkpoint.latest_step
        numbers["trainingjob_checkpoint_timestamp_seconds"] = _timestamp(status.checkpoint.latest_time)
    written = status.progress
    if written is not None:
        numbers |= {
            "trainingjob_progress_ratio": written.percent / 100,
            "trainingjob_step": written.step,
            "trainingjob_steps": written.steps or None,
            "trainingjob_loss": written.loss,
            "trainingjob_learning_rate": written.learning_rate,
            "trainingjob_tokens_per_second": written.tokens_per_second,
        }
    newest = facts.report.progress if facts.report is not None and status.completion_time is None else None
    if newest is not None:
        steps = newest.steps or numbers.get("trainingjob_steps")
        numbers |= {
            "trainingjob_step": newest.step,
            "trainingjob_steps": steps,
            "trainingjob_loss": newest.loss,
            "trainingjob_learning_rate": newest.learning_rate,
            "trainingjob_tokens_per_second": newest.tokens_per_second,
            "trainingjob_eta_seconds": newest.eta_seconds,
        }
        if newest.percent is not None:
            numbers["trainingjob_progress_ratio"] = newest.percent / 100
        elif steps:
            numbers["trainingjob_progress_ratio"] = min(1.0, newest.step / steps)
    return numbers


def _reported(status: TrainingJobStatus, facts: ProgressFacts) -> dict[str, float]:
    """The numbers beside those that all jobs have."""
    newest = facts.report.progress if facts.report is not None and status.completion_time is None else None
    if newest is not None:
        return scalar_metrics(newest.metrics) if newest.metrics else {}
    return status.progress.metrics if status.progress is not None else {}


def _waits(status: TrainingJobStatus, now: datetime) -> Iterator[tuple[str, float, str]]:
    """Seconds spent in the phases before training; the one at hand still grows."""
    for phase in ON_THE_WAY:
        seconds: float | None = status.waited.get(phase)
        if phase == status.phase and status.phase_time is not None:
            seconds = (seconds or 0) + max(0.0, (now - status.phase_time).total_seconds())
        if seconds is None:
            continue
        if phase == "Queued":
            yield "trainingjob_queue_wait_seconds", seconds, ""
        else:
            yield "trainingjob_start_latency_seconds", seconds, f',phase="{phase}"'


def _pod_samples(job: Job, pods: Sequence[PodFacts]) -> Iterator[tuple[str, float, str]]:
    gpus = 0 if isinstance(job.spec, InvalidSpec) else job.spec.workers.resources.gpus
    held = 0
    for pod in pods:
        if pod.finished:
            continue
        held += gpus if pod.role == "train" and pod.node else 0
        node = pod.node or ""
        yield "trainingjob_pod", 1, f',pod="{pod.name}",role="{pod.role}",index="{pod.index}",node="{node}"'
    yield "trainingjob_gpus", held, ""


def _timestamp(time: datetime | None) -> float | None:
    return None if time is None else time.timestamp()


def _number(value: float) -> str:
    if math.isfinite(value):
        return repr(float(value))
    return "NaN" if math.isnan(value) else "+Inf" if value > 0 else "-Inf"


def _escaped(value: str) -> str:
    """A label's value that need not be a Kubernetes name."""
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
