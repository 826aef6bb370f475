"""The operator's own metrics, `trainingjob_operator_*` (docs/metrics.md)."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector

from trainingjob_operator.core.queue import Retry

SECONDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0)


class OperatorMetrics:
    """Counts what the operator does. Its registry is its own: two operators in one process do not mix."""

    def __init__(self, queue_depth: Callable[[], int], queue_age: Callable[[], float]) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._build = Info(
            "trainingjob_operator_build", "Version of the operator.", ["version"], registry=self.registry
        )
        self._build.labels(version("trainingjob")).info({})
        self._depth = Gauge("trainingjob_operator_queue_depth", "Jobs that wait for a worker.", registry=self.registry)
        self._depth.set_function(queue_depth)
        self._age = Gauge(
            "trainingjob_operator_queue_age_seconds",
            "Time that the job has waited for a worker whose turn is next.",
            registry=self.registry,
        )
        self._age.set_function(queue_age)
        self._reconciles = Histogram(
            "trainingjob_operator_reconcile_duration_seconds",
            "Time to decide and act once for one job.",
            buckets=SECONDS,
            registry=self.registry,
        )
        self._errors = Counter(
            "trainingjob_operator_reconcile_errors",
            "Reconciles that are tried again: the API server did not let them (retry), or a defect (error).",
            ["kind"],
            registry=self.registry,
        )
        self._requests = Counter(
            "trainingjob_operator_api_requests",
            "Requests to the API server; code 0: no answer.",
            ["verb", "resource", "code"],
            registry=self.registry,
        )
        self._latency = Histogram(
            "trainingjob_operator_api_request_duration_seconds",
            "Time until the API server had answered. Watches are left out.",
            ["verb"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self._watches = Counter(
            "trainingjob_operator_watch_restarts",
            "Watches that did not end in the normal way.",
            ["resource", "reason"],
            registry=self.registry,
        )
        self._missed = Counter(
            "trainingjob_operator_missed_events",
            "Jobs of which a resync found something (the resource) in another state than the watch had told.",
            ["resource"],
            registry=self.registry,
        )
        self.leader = Gauge(
            "trainingjob_operator_leader",
            "1 for the operator that leads, 0 for a standby.",
            registry=self.registry,
        )
        self.loop_lag = Counter(
            "trainingjob_operator_event_loop_lag_seconds",
            "Time that the event loop came back later than asked for, all times together.",
            registry=self.registry,
        )

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
