"""Metrics of each job, `trainingjob_*` (docs/metrics.md): made at each scrape from what the operator knows.

They exist as long as the job does. Progress comes from memory, so it is as fresh as the last poll.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from typing import NamedTuple, get_args

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric, StateSetMetricFamily
from prometheus_client.registry import Collector

from trainingjob_operator.api.status import Incident, Phase, TrainingJobStatus
from trainingjob_operator.core.cache import Key
from trainingjob_operator.core.facts import Job, ProgressFacts

LABELS = ("namespace", "name")
GAUGES = {
    "trainingjob_step": "Finished optimizer steps.",
    "trainingjob_steps": "Optimizer steps of the whole run.",
    "trainingjob_loss": "Training loss at the last reported step.",
    "trainingjob_learning_rate": "Learning rate at the last reported step.",
    "trainingjob_tokens_per_second": "Throughput over all ranks.",
    "trainingjob_eta_seconds": "Seconds to the last step.",
    "trainingjob_checkpoint_step": "Step of the newest committed checkpoint.",
    "trainingjob_workers_desired": "Pods that the current stage wants.",
    "trainingjob_workers_ready": "Pods of the current stage that are ready.",
    "trainingjob_progress_timestamp_seconds": "When the trainer was last heard of.",
    "trainingjob_start_time_seconds": "When the operator took the job up.",
    "trainingjob_completion_time_seconds": "When the job was finished.",
}


class _Incidents(NamedTuple):
    seen: frozenset[tuple[object, ...]]
    counts: Counter[str]


class JobCollector(Collector):
    """Collects all jobs' metrics. jobs: those in the cache; progress: what a job's trainer reported (by job uid)."""

    def __init__(self, jobs: Callable[[], Iterable[tuple[Key, Job]]], progress: Callable[[str], ProgressFacts]) -> None:
        self._jobs = jobs
        self._progress = progress
        self._incidents: dict[str, _Incidents] = {}

    def collect(self) -> Iterator[Metric]:
        """All families."""
        phases = StateSetMetricFamily("trainingjob_phase", "Phase of the job.", labels=LABELS)
        restarts = CounterMetricFamily("trainingjob_restarts", "Counted failures.", labels=LABELS)
        incidents = CounterMetricFamily(
            "trainingjob_incidents", "Interruptions by class, since the operator started.", labels=[*LABELS, "class"]
        )
        evaluations = GaugeMetricFamily(
            "trainingjob_evaluation", "Newest evaluation.", labels=[*LABELS, "split", "metric"]
        )
        gauges = {name: GaugeMetricFamily(name, text, labels=LABELS) for name, text in GAUGES.items()}
        jobs = list(self._jobs())
        for key, job in jobs:
            status = job.status
            phases.add_metric(key, {phase: phase == status.phase for phase in get_args(Phase)})
            restarts.add_metric(key, status.restarts.total)
            for class_, count in self._count_incidents(job).items():
                incidents.add_metric([*key, class_], count)
            if status.evaluation is not None:
                for metric, value in status.evaluation.metrics.items():
                    evaluations.add_metric([*key, status.evaluation.split, metric], value)
            for name, number in _numbers(status, self._progress(job.uid)).items():
                if number is not None:
                    gauges[name].add_metric(key, number)
        alive = {job.uid for _, job in jobs}
        self._incidents = {uid: known for uid, known in self._incidents.items() if uid in alive}
        yield from (phases, restarts, incidents, evaluations, *gauges.values())

    def _count_incidents(self, job: Job) -> Counter[str]:
        """The status keeps the last ten incidents: count those that were not there at the last scrape."""
        if not job.status.history:
            return Counter()
        known = self._incidents.get(job.uid, _Incidents(frozenset(), Counter()))
        current = {_identity(incident): incident.class_ for incident in job.status.history}
        counts = known.counts + Counter(class_ for identity, class_ in current.items() if identity not in known.seen)
        self._incidents[job.uid] = _Incidents(frozenset(current), counts)
        return counts


def _identity(incident: Incident) -> tuple[object, ...]:
    return (incident.time, incident.class_, incident.pod, incident.attempt, incident.rank)


def _timestamp(time: datetime | None) -> float | None:
    return None if time is None else time.timestamp()


def _numbers(status: TrainingJobStatus, facts: ProgressFacts) -> dict[str, float | None]:
    numbers: dict[str, float | None] = {
        "trainingjob_workers_desired": status.workers.desired,
        "trainingjob_workers_ready": status.workers.ready,
        "trainingjob_start_time_seconds": _timestamp(status.start_time),
        "trainingjob_completion_time_seconds": _timestamp(status.completion_time),
        "trainingjob_progress_timestamp_seconds": _timestamp(facts.fetched_at),
    }
    if status.checkpoint is not None:
        numbers["trainingjob_checkpoint_step"] = status.checkpoint.latest_step
    written = status.progress
    if written is not None:
        numbers |= {
            "trainingjob_step": written.step,
            "trainingjob_steps": written.steps,
            "trainingjob_loss": written.loss,
            "trainingjob_learning_rate": written.learning_rate,
            "trainingjob_tokens_per_second": written.tokens_per_second,
        }
    newest = facts.report.progress if facts.report is not None and status.completion_time is None else None
    if newest is not None:
        numbers |= {
            "trainingjob_step": newest.step,
            "trainingjob_loss": newest.loss,
            "trainingjob_learning_rate": newest.learning_rate,
            "trainingjob_tokens_per_second": newest.tokens_per_second,
            "trainingjob_eta_seconds": newest.eta_seconds,
        }
        if newest.steps is not None:
            numbers["trainingjob_steps"] = newest.steps
    return numbers
