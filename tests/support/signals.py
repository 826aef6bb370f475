"""What the operator tells Prometheus of itself, as its code says it."""

from __future__ import annotations

from prometheus_client.metrics import MetricWrapperBase
from trainingjob_operator.observe.metrics import OperatorMetrics


def operators_own() -> dict[str, tuple[str, ...]]:
    """Names as in a query, except that histograms have no suffix; and their labels."""
    metrics = OperatorMetrics(lambda: 0, lambda: 0.0)
    own = {}
    for collector in vars(metrics).values():
        if isinstance(collector, MetricWrapperBase):
            (family,) = collector.collect()
            suffix = {"counter": "_total", "info": "_info"}.get(family.type, "")
            own[family.name + suffix] = collector._labelnames
    exported = {f.name for f in metrics.registry.collect() if f.name.startswith("trainingjob")}
    assert len(own) == len(exported), "a metric is no attribute"
    return own
