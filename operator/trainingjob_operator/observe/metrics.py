"""The operator's own metrics, `trainingjob_operator_*` (docs/metrics.md)."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector

from trainingjob_operator.core.queue import Retry

SECONDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0)


class OperatorMetrics:
    """Counts what the operator does. Its registry is its own: two operators in one process do not mix."""

    def __init__(self, queue_depth: Callable[[], int]) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        build = Info("trainingjob_operator_build", "Version of the operator.", registry=self.registry)
        build.info({"version": version("trainingjob")})
        depth = Gauge("trainingjob_operator_queue_depth", "Jobs that wait for a worker.", registry=self.registry)
        depth.set_function(queue_depth)
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
        self.leader = Gauge(
            "trainingjob_operator_leader",
            "1 for the operator that leads, 0 for a standby.",
            registry=self.registry,
        )
        self.loop_lag = Gauge(
            "trainingjob_operator_event_loop_lag_seconds",
            "How much later than asked for the event loop came back, the last time.",
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
