"""Metrics: a job's as long as it exists, fresh from memory; the operator's own; and the probes."""

from __future__ import annotations

import asyncio
import math
import threading
import urllib.request
from datetime import UTC, datetime, timedelta
from typing import Any

import aiohttp
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client import parser as older
from prometheus_client.openmetrics import parser as openmetrics
from support.runs import PATIENCE
from trainingjob_operator.api.spec import API_VERSION, KIND
from trainingjob_operator.core.cache import Cache
from trainingjob_operator.core.facts import ProgressFacts
from trainingjob_operator.core.queue import Retry
from trainingjob_operator.core.reported import ProgressReport
from trainingjob_operator.observe.jobs import FAMILIES, SLICE, JobMetrics
from trainingjob_operator.observe.metrics import OperatorMetrics
from trainingjob_operator.observe.server import serve

NOW = datetime(2030, 1, 1, tzinfo=UTC)
PARSERS = {True: openmetrics, False: older}


def job(version: int, spec: dict[str, Any] | None = None, **status: Any) -> dict[str, Any]:
    meta = {"name": "job", "namespace": "team", "uid": "job-1", "resourceVersion": str(version)}
    return {"metadata": meta, "spec": spec or {}, "status": status}


class World:
    """A cache, and the operator's memory of progress."""

    def __init__(self) -> None:
        self.cache = Cache()
        self.progress = ProgressFacts()
        self.now = NOW

    async def text(self, in_openmetrics: bool = True) -> str:
        metrics = JobMetrics(self.cache.jobs, lambda uid: self.progress, self.cache.pods, lambda: self.now)
        return await metrics.text(in_openmetrics) + ("# EOF\n" if in_openmetrics else "")

    async def families(self, in_openmetrics: bool = True) -> dict[str, Any]:
        parser = PARSERS[in_openmetrics]
        found = list(parser.text_string_to_metric_families(await self.text(in_openmetrics)))
        assert len({family.name for family in found}) == len(found)
        return {family.name: family for family in found}

    async def values(self, name: str) -> dict[tuple[str, ...], float]:
        """Samples of this name by the values of their own labels, in the order of the labels' names."""
        samples = [s for family in (await self.families()).values() for s in family.samples if s.name == name]
        for sample in samples:
            assert (sample.labels.pop("namespace"), sample.labels.pop("name")) == ("team", "job")
        return {tuple(s.labels[label] for label in sorted(s.labels)): s.value for s in samples}

    async def value(self, name: str, *labels: str) -> float | None:
        return (await self.values(name)).get(labels)


@pytest.fixture
def world() -> World:
    return World()


async def test_a_jobs_metrics_exist_as_long_as_the_job(world: World) -> None:
    world.cache.put_job(job(1, phase="Running", workers={"desired": 2, "ready": 1}))
    assert await world.value("trainingjob_phase", "Running") == 1.0
    assert await world.value("trainingjob_phase", "Failed") == 0.0
    assert await world.value("trainingjob_workers_ready") == 1.0
    world.cache.remove_job(job(2))
    assert [s for family in (await world.families()).values() for s in family.samples] == []


async def test_progress_comes_from_memory_while_training_and_from_the_status_afterwards(world: World) -> None:
    running = {"phase": "Running", "progress": {"step": 10, "steps": 100, "percent": 10, "loss": 3.0}}
    world.cache.put_job(job(1, **running))
    assert (await world.value("trainingjob_step"), await world.value("trainingjob_loss")) == (10.0, 3.0)
    said = {"step": 17, "loss": 2.5, "metrics": {"reward": 0.5}}
    report = {"jobUid": "job-1", "podUid": "p", "stage": "Train", "progress": said}
    world.progress = ProgressFacts(ProgressReport.model_validate(report), NOW)
    assert (await world.value("trainingjob_step"), await world.value("trainingjob_loss")) == (17.0, 2.5)
    assert await world.value("trainingjob_steps") == 100.0
    assert await world.value("trainingjob_progress_ratio") == 0.17
    assert await world.value("trainingjob_reported", "reward") == 0.5
    assert await world.value("trainingjob_progress_timestamp_seconds") == NOW.timestamp()
    done = {"step": 100, "steps": 100, "percent": 100, "loss": 2.0}
    world.cache.put_job(job(2, phase="Succeeded", completionTime="2030-01-01T01:00:00Z", progress=done))
    assert (await world.value("trainingjob_step"), await world.value("trainingjob_loss")) == (100.0, 2.0)
    assert await world.value("trainingjob_progress_ratio") == 1.0


async def test_restarts_checkpoint_and_evaluation_come_from_the_status(world: World) -> None:
    evaluation = {"split": "test", "step": 100, "metrics": {"loss": 2.5, "accuracy": 0.4}}
    restarts = {"total": 3, "withoutProgress": 1, "byClass": {"Crashed": 3, "Evicted": 7}}
    checkpoint = {"latestStep": 90, "latestTime": "2030-01-01T00:00:00Z"}
    world.cache.put_job(job(1, restarts=restarts, evaluation=evaluation, checkpoint=checkpoint))
    assert await world.value("trainingjob_failures_total") == 3.0
    assert await world.value("trainingjob_failures_without_progress") == 1.0
    assert await world.values("trainingjob_restarts_total") == {("Crashed",): 3.0, ("Evicted",): 7.0}
    assert await world.value("trainingjob_checkpoint_step") == 90.0
    assert await world.value("trainingjob_checkpoint_timestamp_seconds") == NOW.timestamp()
    assert await world.value("trainingjob_evaluation", "accuracy", "test") == 0.4


async def test_a_wait_grows_until_it_is_over(world: World) -> None:
    waited = {"Pending": 3, "Queued": 40}
    world.cache.put_job(job(1, phase="Starting", phaseTime="2030-01-01T00:00:00Z", waited=waited))
    world.now += timedelta(seconds=5)
    assert await world.values("trainingjob_start_latency_seconds") == {("Pending",): 3.0, ("Starting",): 5.0}
    assert await world.value("trainingjob_queue_wait_seconds") == 40.0
    waited |= {"Starting": 5}
    world.cache.put_job(job(2, phase="Running", phaseTime="2030-01-01T00:00:05Z", waited=waited))
    world.now += timedelta(seconds=5)
    assert await world.values("trainingjob_start_latency_seconds") == {("Pending",): 3.0, ("Starting",): 5.0}
    world.cache.put_job(job(3, phase="Queued", phaseTime="2030-01-01T00:00:00Z", waited=waited))
    assert await world.value("trainingjob_queue_wait_seconds") == 50.0


def pod(index: int, phase: str, node: str | None) -> dict[str, Any]:
    owner = {"apiVersion": API_VERSION, "kind": KIND, "name": "job", "uid": "job-1", "controller": True}
    meta = {"name": f"job-train-{index}-1", "namespace": "team", "uid": f"pod-{index}", "resourceVersion": "1"}
    return {
        "metadata": {**meta, "labels": {}, "ownerReferences": [owner]},
        "spec": {"nodeName": node} if node else {},
        "status": {"phase": phase},
    }


async def test_living_pods_are_named_for_joins_and_their_gpus_counted(world: World) -> None:
    spec = {"task": {"kind": "custom", "custom": {"command": ["x"]}}, "workers": {"resources": {"gpus": 8}}}
    world.cache.put_job(job(1, spec))
    for body in (pod(0, "Running", "node-a"), pod(1, "Pending", None), pod(2, "Failed", "node-b")):
        world.cache.put_pod(body)
    assert await world.values("trainingjob_pod_info") == {
        ("0", "node-a", "job-train-0-1", "train"): 1.0,
        ("1", "", "job-train-1-1", "train"): 1.0,
    }
    assert await world.value("trainingjob_gpus") == 8.0


async def test_both_formats_are_what_their_parsers_take(world: World) -> None:
    """The parser of OpenMetrics is strict: order, suffixes, types, state sets, label syntax."""
    metrics = {'the "best" \\ of\nall': 1.5, "inf": float("inf")}
    progress = {"step": 1, "metrics": metrics, "loss": float("nan")}
    report = {"jobUid": "job-1", "podUid": "p", "stage": "Train", "progress": progress}
    world.progress = ProgressFacts(ProgressReport.model_validate(report), NOW)
    status = {"phase": "Running", "restarts": {"total": 1, "byClass": {"Crashed": 1}}}
    world.cache.put_job(job(1, **status))
    world.cache.put_pod(pod(0, "Running", "node-a"))
    found = await world.families()
    assert {(f.name, f.type) for f in found.values()} == {(f.name, f.kind) for f in FAMILIES}
    assert list(await world.values("trainingjob_reported")) == [('the "best" \\ of\nall',)]
    loss = await world.value("trainingjob_loss")
    assert loss is not None
    assert math.isnan(loss)
    older_ones = await world.families(in_openmetrics=False)
    assert older_ones["trainingjob_phase"].type == older_ones["trainingjob_pod_info"].type == "gauge"
    assert older_ones["trainingjob_restarts"].type == "counter"
    assert _finite_samples(older_ones) == _finite_samples(found)


def _finite_samples(families: dict[str, Any]) -> set[tuple[Any, ...]]:
    samples = (sample for family in families.values() for sample in family.samples)
    return {(s.name, *sorted(s.labels.items()), s.value) for s in samples if math.isfinite(s.value)}


async def test_labels_are_those_of_the_table_and_none_is_a_uid_or_a_message(world: World) -> None:
    history = [{"time": "2030-01-01T00:00:00Z", "class": "Crashed", "cause": "a long story"}]
    status = {
        "phase": "Running",
        "message": "a long story",
        "history": history,
        "restarts": {"byClass": {"Crashed": 1}},
    }
    world.cache.put_job(job(1, **status))
    world.cache.put_pod(pod(0, "Running", "node-a"))
    text = await world.text()
    assert "a long story" not in text
    assert "job-1" not in text
    assert "pod-0" not in text
    labels = {family.name: {"namespace", "name", *family.labels} for family in FAMILIES}
    for name, family in (await world.families()).items():
        for sample in family.samples:
            assert set(sample.labels) == labels[name]


async def test_a_scrape_of_many_jobs_lets_the_event_loop_do_its_other_work(world: World) -> None:
    for number in range(5 * SLICE):
        body = job(1, phase="Suspended")
        body["metadata"] |= {"name": f"job-{number}", "uid": f"uid-{number}"}
        world.cache.put_job(body)
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    other = asyncio.create_task(others())
    await world.text()
    other.cancel()
    assert turns >= 4


def test_the_operator_counts_requests_reconciles_and_its_queue() -> None:
    metrics = OperatorMetrics(lambda: 7, lambda: 1.5)
    metrics.requested("create", "pods", 201, 0.01)
    metrics.requested("watch", "pods", 200, 300.0)
    metrics.reconciled(0.02, None)
    metrics.reconciled(0.02, Retry("not now"))
    metrics.reconciled(0.02, KeyError("defect"))
    metrics.watch_restarted("pods", "expired")
    metrics.missed("trainingjobs", 2)
    value = metrics.registry.get_sample_value
    prefix = "trainingjob_operator_"
    request = {"verb": "create", "resource": "pods", "code": "201"}
    assert value(f"{prefix}api_requests_total", request) == 1.0
    assert value(f"{prefix}api_request_duration_seconds_count", {"verb": "watch"}) is None
    assert value(f"{prefix}reconcile_duration_seconds_count") == 3.0
    assert value(f"{prefix}reconcile_errors_total", {"kind": "retry"}) == 1.0
    assert value(f"{prefix}reconcile_errors_total", {"kind": "error"}) == 1.0
    assert value(f"{prefix}watch_restarts_total", {"resource": "pods", "reason": "expired"}) == 1.0
    assert value(f"{prefix}missed_events_total", {"resource": "trainingjobs"}) == 2.0
    assert (value(f"{prefix}queue_depth"), value(f"{prefix}queue_age_seconds")) == (7.0, 1.5)


async def no_jobs(in_openmetrics: bool) -> str:
    return ""


@pytest.mark.parametrize("accept", ["application/openmetrics-text; version=1.0.0", "text/plain", "*/*"])
async def test_a_scrape_has_the_jobs_metrics_and_the_operators_own_in_one_document(world: World, accept: str) -> None:
    world.cache.put_job(job(1, phase="Running"))
    jobs = JobMetrics(world.cache.jobs, lambda uid: world.progress, world.cache.pods, lambda: NOW)
    metrics = OperatorMetrics(lambda: 0, lambda: 0.0)
    async with (
        serve("127.0.0.1", 0, metrics.registry, jobs.text, lambda: "") as port,
        aiohttp.ClientSession(headers={"Accept": accept}) as session,
        session.get(f"http://127.0.0.1:{port}/metrics") as answer,
    ):
        text = await answer.text()
        in_openmetrics = answer.content_type == "application/openmetrics-text"
        assert in_openmetrics == accept.startswith("application/openmetrics-text")
        assert answer.headers["Content-Encoding"] in ("gzip", "deflate")
    families = list(PARSERS[in_openmetrics].text_string_to_metric_families(text))
    names = [family.name for family in families]
    assert len(names) == len(set(names))
    assert {"trainingjob_phase", "trainingjob_operator_queue_depth", "process_resident_memory_bytes"} <= set(names)


async def test_readiness_says_what_is_missing() -> None:
    metrics = OperatorMetrics(lambda: 0, lambda: 0.0)
    async with (
        serve("127.0.0.1", 0, metrics.registry, no_jobs, lambda: "the list of pods") as port,
        aiohttp.ClientSession() as session,
    ):
        async with session.get(f"http://127.0.0.1:{port}/livez") as answer:
            assert answer.status == 200
        async with session.get(f"http://127.0.0.1:{port}/metrics") as answer:
            assert "trainingjob_operator_build_info" in await answer.text()
        async with session.get(f"http://127.0.0.1:{port}/readyz") as answer:
            assert answer.status == 503
            assert "the list of pods" in await answer.text()
    async with serve("127.0.0.1", 0, metrics.registry, no_jobs, lambda: "") as port, aiohttp.ClientSession() as session:
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
    async with serve("127.0.0.1", 0, CollectorRegistry(), no_jobs, lambda: "") as port:
        probe = asyncio.create_task(asyncio.to_thread(probe_a_stuck_loop, port))
        await asyncio.sleep(0)
        stuck.set()
        assert probed.wait(PATIENCE)  # Here the loop is stuck.
        await probe
        assert await asyncio.to_thread(livez, port, PATIENCE) == 200
