"""Metrics: a job's as long as it exists, fresh from memory; the operator's own; and the probes."""

from __future__ import annotations

import asyncio
import threading
import urllib.request
from datetime import UTC, datetime
from typing import Any

import aiohttp
import pytest
from prometheus_client import CollectorRegistry
from trainingjob_operator.core.cache import Cache
from trainingjob_operator.core.facts import ProgressFacts, ProgressReport
from trainingjob_operator.core.queue import Retry
from trainingjob_operator.observe.jobs import JobCollector
from trainingjob_operator.observe.metrics import OperatorMetrics
from trainingjob_operator.observe.server import serve

NOW = datetime(2030, 1, 1, tzinfo=UTC)
LABELS = {"namespace": "team", "name": "job"}


def job(version: int, **status: Any) -> dict[str, Any]:
    meta = {"name": "job", "namespace": "team", "uid": "job-1", "resourceVersion": str(version)}
    return {"metadata": meta, "spec": {}, "status": status}


def incident(class_: str, minute: int) -> dict[str, str]:
    return {"time": f"2030-01-01T00:{minute:02}:00Z", "class": class_}


class World:
    """A cache, the operator's memory of progress, and a registry over both."""

    def __init__(self) -> None:
        self.cache = Cache()
        self.progress = ProgressFacts()
        self.registry = CollectorRegistry()
        self.registry.register(JobCollector(self.cache.jobs, lambda uid: self.progress))

    def value(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(name, LABELS | labels)


def test_a_jobs_metrics_exist_as_long_as_the_job() -> None:
    world = World()
    world.cache.put_job(job(1, phase="Running", workers={"desired": 2, "ready": 1}))
    assert world.value("trainingjob_phase", trainingjob_phase="Running") == 1.0
    assert world.value("trainingjob_phase", trainingjob_phase="Failed") == 0.0
    assert world.value("trainingjob_workers_ready") == 1.0
    world.cache.remove_job(job(2))
    assert world.value("trainingjob_phase", trainingjob_phase="Running") is None
    assert world.value("trainingjob_workers_ready") is None


def test_progress_comes_from_memory_while_training_and_from_the_status_afterwards() -> None:
    world = World()
    running = {"phase": "Running", "progress": {"step": 10, "steps": 100, "loss": 3.0}}
    world.cache.put_job(job(1, **running))
    assert (world.value("trainingjob_step"), world.value("trainingjob_loss")) == (10.0, 3.0)
    said = {"jobUid": "job-1", "podUid": "p", "stage": "Train", "progress": {"step": 17, "loss": 2.5}}
    world.progress = ProgressFacts(ProgressReport.model_validate(said), NOW)
    assert (world.value("trainingjob_step"), world.value("trainingjob_loss")) == (17.0, 2.5)
    assert world.value("trainingjob_steps") == 100.0
    assert world.value("trainingjob_progress_timestamp_seconds") == NOW.timestamp()
    done = {"step": 100, "steps": 100, "loss": 2.0}
    world.cache.put_job(job(2, phase="Succeeded", completionTime="2030-01-01T01:00:00Z", progress=done))
    assert (world.value("trainingjob_step"), world.value("trainingjob_loss")) == (100.0, 2.0)


def test_restarts_and_evaluation_come_from_the_status() -> None:
    world = World()
    evaluation = {"split": "test", "step": 100, "metrics": {"loss": 2.5, "accuracy": 0.4}}
    world.cache.put_job(job(1, restarts={"total": 3, "withoutProgress": 1}, evaluation=evaluation))
    assert world.value("trainingjob_restarts_total") == 3.0
    assert world.value("trainingjob_evaluation", split="test", metric="accuracy") == 0.4


def test_incidents_are_counted_by_class_although_the_status_forgets_old_ones() -> None:
    world = World()
    history = [incident("WorkerLost", minute) for minute in range(10)]
    world.cache.put_job(job(1, history=history))
    assert world.value("trainingjob_incidents_total", **{"class": "WorkerLost"}) == 10.0
    recovered = [{**entry, "secondsToRecover": 5} for entry in history[2:]]
    world.cache.put_job(job(2, history=[*recovered, incident("WorkerLost", 10), incident("Hang", 11)]))
    assert world.value("trainingjob_incidents_total", **{"class": "WorkerLost"}) == 11.0
    assert world.value("trainingjob_incidents_total", **{"class": "Hang"}) == 1.0


def test_the_operator_counts_requests_reconciles_and_its_queue() -> None:
    metrics = OperatorMetrics(lambda: 7)
    metrics.requested("create", "pods", 201, 0.01)
    metrics.requested("watch", "pods", 200, 300.0)
    metrics.reconciled(0.02, None)
    metrics.reconciled(0.02, Retry("not now"))
    metrics.reconciled(0.02, KeyError("defect"))
    metrics.watch_restarted("pods", "expired")
    value = metrics.registry.get_sample_value
    prefix = "trainingjob_operator_"
    request = {"verb": "create", "resource": "pods", "code": "201"}
    assert value(f"{prefix}api_requests_total", request) == 1.0
    assert value(f"{prefix}api_request_duration_seconds_count", {"verb": "watch"}) is None
    assert value(f"{prefix}reconcile_duration_seconds_count") == 3.0
    assert value(f"{prefix}reconcile_errors_total", {"kind": "retry"}) == 1.0
    assert value(f"{prefix}reconcile_errors_total", {"kind": "error"}) == 1.0
    assert value(f"{prefix}watch_restarts_total", {"resource": "pods", "reason": "expired"}) == 1.0
    assert value(f"{prefix}queue_depth") == 7.0


async def test_readiness_says_what_is_missing() -> None:
    metrics = OperatorMetrics(lambda: 0)
    async with (
        serve("127.0.0.1", 0, metrics.registry, lambda: "the list of pods") as port,
        aiohttp.ClientSession() as session,
    ):
        async with session.get(f"http://127.0.0.1:{port}/livez") as answer:
            assert answer.status == 200
        async with session.get(f"http://127.0.0.1:{port}/metrics") as answer:
            assert "trainingjob_operator_build_info" in await answer.text()
        async with session.get(f"http://127.0.0.1:{port}/readyz") as answer:
            assert answer.status == 503
            assert "the list of pods" in await answer.text()
    async with serve("127.0.0.1", 0, metrics.registry, lambda: "") as port, aiohttp.ClientSession() as session:
        async with session.get(f"http://127.0.0.1:{port}/readyz") as answer:
            assert answer.status == 200


async def test_livez_does_not_answer_while_the_event_loop_is_stuck() -> None:
    def livez(port: int, timeout: float) -> int:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/livez", timeout=timeout) as answer:
            return int(answer.status)

    def probe_a_stuck_loop(port: int) -> None:
        try:
            stuck.wait()
            with pytest.raises(TimeoutError):
                livez(port, 0.2)
        finally:
            probed.set()

    stuck, probed = threading.Event(), threading.Event()
    async with serve("127.0.0.1", 0, CollectorRegistry(), lambda: "") as port:
        probe = asyncio.create_task(asyncio.to_thread(probe_a_stuck_loop, port))
        await asyncio.sleep(0)
        stuck.set()
        assert probed.wait(10)  # Here the loop is stuck.
        await probe
        assert await asyncio.to_thread(livez, port, 5) == 200
