"""The operator's own metrics, `trainingjob_operator_*` (docs/metrics.md)."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from typing import Any, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector
from prometheus_client.metrics import MetricWrapperBase

from trainingjob_operator.core.queue import Retry

SECONDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0)
M = TypeVar("M", bound=MetricWrapperBase)


class OperatorMetrics:
    """Counts what the operator does. Its registry is its own: two operators in one process do not mix."""

    def __init__(self, queue_depth: Callable[[], int], queue_age: Callable[[], float]) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._build = self._new(Info, "build", "Version of the operator.", "version")
        self._build.labels(version("trainingjob")).info({})
        self._depth = self._new(Gauge, "queue_depth", "Jobs that wait for a worker.")
        self._depth.set_function(queue_depth)
        waited = "Time that the job has waited for a worker whose turn is next."
        self._age = self._new(Gauge, "queue_age_seconds", waited)
        self._age.set_function(queue_age)
        took = "Time to decide and act once for one job."
        self._reconciles = self._new(Histogram, "reconcile_duration_seconds", took, buckets=SECONDS)
        self._errors = self._new(
            Counter,
            "reconcile_errors",
            "Reconciles that are tried again: the API server did not let them (retry), or a defect (error).",
            "kind",
        )
        self._requests = self._new(
            Counter, "api_requests", "Requests to the API server; code 0: no answer.", "verb", "resource", "code"
        )
        self._latency = self._new(
            Histogram,
            "api_request_duration_seconds",
            "Time until the API server had answered. Watches are left out.",
            "verb",
            buckets=SECONDS,
        )
        self._watches = self._new(
            Counter, "watch_restarts", "Watches that did not end in the normal way.", "resource", "reason"
        )
        self._missed = self._new(
            Counter,
            "missed_events",
            "Jobs of which a resync found something (the resource) in another state than the watch had told.",
            "resource",
        )
        self.leader = self._new(Gauge, "leader", "1 for the operator that leads, 0 for a standby.")
        lag = "Time that the event loop came back later than asked for, all times together."
        self.loop_lag = self._new(Counter, "event_loop_lag_seconds", lag)

    def _new(self, kind: type[M], name: str, what: str, *labels: str, **options: Any) -> M:
        return kind(f"trainingjob_operator_{name}", what, labels, registry=self.registry, **options)

    def reconciled(self, seconds: float, error: Exception | None) -> None:
        """A job was worked on."""
        self._reconciles.observe(seconds)
        if error is not None:
            self._errors.labels("retry" if isinstance(error, Retry) else "error").inc()

    def requested(self, verb: str, resource: str, code: int, seconds: float) -> None:
        """The API server was asked."""
        self._requests.labels(verb, resource, str(code)).inc()
        if verb != "watch":
            self._latency.labels(verb).observe(seconds)

    def watch_restarted(self, resource: str, reason: str) -> None:
        """A watch broke off."""
        self._watches.labels(resource, reason).inc()

    def missed(self, resource: str, jobs: int) -> None:
        """A resync found so many jobs, or jobs' pods, changed or gone of which the watch had told nothing."""
        self._missed.labels(resource).inc(jobs)
