"""Events are told once, counted when they repeat, and take no time from the jobs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import pytest
from support.memory_api import MemoryApi
from support.runs import PATIENCE
from trainingjob_operator.core.facts import Job
from trainingjob_operator.core.plan import EventFact
from trainingjob_operator.kube.api import EVENTS, Unreachable
from trainingjob_operator.observe.events import WAITING, EventRecorder

NOW = datetime(2030, 1, 1, tzinfo=UTC)
JOB = Job.from_object({"metadata": {"name": "job", "namespace": "team", "uid": "job-1", "resourceVersion": "1"}})
FAILED = EventFact("Warning", "Internal", "the driver crashed")
QUEUED = EventFact("Normal", "Queued", "Waiting for quota.")
RUNNING = EventFact("Normal", "Running", "Training on 2 ranks.")


def told(api: MemoryApi) -> list[tuple[str, str, int]]:
    return [(event["type"], event["reason"], event["count"]) for event in api.objects.values()]


class Jobs:
    """Whether jobs are worked on."""

    def __init__(self) -> None:
        self.resting = asyncio.Event()
        self.resting.set()

    async def rest(self, seconds: float) -> None:
        await self.resting.wait()


@asynccontextmanager
async def recording(
    api: MemoryApi, jobs: Jobs | None = None, now: Callable[[], datetime] = lambda: NOW
) -> AsyncIterator[EventRecorder]:
    """A recorder that runs."""
    recorder = EventRecorder(api, now, (jobs or Jobs()).rest)
    running = asyncio.create_task(recorder.run())
    try:
        yield recorder
    finally:
        running.cancel()
        await asyncio.wait([running])


async def tell(recorder: EventRecorder, *events: EventFact) -> None:
    for event in events:
        recorder.publish(JOB, event)
    await recorder.flush(PATIENCE)


async def test_an_event_names_the_job_and_the_operator() -> None:
    api = MemoryApi()
    async with recording(api) as recorder:
        await tell(recorder, FAILED)
    (event,) = api.objects.values()
    assert event["involvedObject"]["uid"] == "job-1"
    assert event["involvedObject"]["kind"] == "TrainingJob"
    assert event["source"] == {"component": "trainingjob-operator"}
    assert event["firstTimestamp"] == event["lastTimestamp"] == "2030-01-01T00:00:00Z"


async def test_a_repetition_is_counted_and_another_message_is_another_event() -> None:
    api = MemoryApi()
    async with recording(api) as recorder:
        await tell(recorder, FAILED, FAILED, FAILED, RUNNING)
    assert told(api) == [("Warning", "Internal", 3), ("Normal", "Running", 1)]


async def test_a_repetition_of_an_event_that_has_expired_is_told_anew() -> None:
    api = MemoryApi()
    async with recording(api) as recorder:
        await tell(recorder, FAILED)
        (name,) = [name for _, _, name in api.objects]
        api.remove(EVENTS, name)
        await tell(recorder, FAILED)
    assert told(api) == [("Warning", "Internal", 1)]


async def test_an_event_that_cannot_be_told_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    api = MemoryApi()
    down = True

    def fail(verb: str, plural: str, name: str) -> None:
        if down:
            raise Unreachable(0, "Unreachable", "down")

    api.before = fail
    async with recording(api) as recorder:
        await tell(recorder, FAILED)
        assert "event Internal is lost: " in caplog.text
        down = False
        await tell(recorder, RUNNING)
    assert told(api) == [("Normal", "Running", 1)]


async def test_a_defect_loses_one_event_and_not_those_of_all_jobs(caplog: pytest.LogCaptureFixture) -> None:
    api = MemoryApi()
    broken = [ValueError("no JSON")]

    def fail(verb: str, plural: str, name: str) -> None:
        if broken:
            raise broken.pop()

    api.before = fail
    async with recording(api) as recorder:
        await tell(recorder, FAILED, RUNNING)
    assert "event Internal is lost" in caplog.text
    assert "ValueError: no JSON" in caplog.text
    assert told(api) == [("Normal", "Running", 1)]


async def test_while_jobs_are_worked_on_events_take_turns_and_keep_their_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainingjob_operator.observe.events.BETWEEN_SECONDS", 3600)
    monkeypatch.setattr("trainingjob_operator.observe.events.LATEST_SECONDS", 3600)
    api, jobs, clock, written = MemoryApi(), Jobs(), [NOW], asyncio.Event()
    api.before = lambda *_: written.set()
    jobs.resting.clear()
    async with recording(api, jobs, lambda: clock[-1]) as recorder:
        for event in (QUEUED, RUNNING, FAILED):
            recorder.publish(JOB, event)
        clock.append(NOW + timedelta(seconds=30))
        await asyncio.wait_for(written.wait(), PATIENCE)
        await recorder.flush(0.05)
        assert told(api) == [("Normal", "Queued", 1)], "the first has no other to wait for"
        jobs.resting.set()
        await recorder.flush(PATIENCE)
    assert told(api) == [("Normal", "Queued", 1), ("Normal", "Running", 1), ("Warning", "Internal", 1)]
    assert {event["firstTimestamp"] for event in api.objects.values()} == {"2030-01-01T00:00:00Z"}


@pytest.mark.parametrize("limit", ["BETWEEN_SECONDS", "LATEST_SECONDS"])
async def test_an_event_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
    for name in ("BETWEEN_SECONDS", "LATEST_SECONDS"):
        monkeypatch.setattr(f"trainingjob_operator.observe.events.{name}", 0.05 if name == limit else 3600)
    api, jobs = MemoryApi(), Jobs()
    jobs.resting.clear()
    async with recording(api, jobs) as recorder:
        await tell(recorder, RUNNING, FAILED)
    assert told(api) == [("Normal", "Running", 1), ("Warning", "Internal", 1)]


async def test_not_more_events_wait_than_memory_is_for(caplog: pytest.LogCaptureFixture) -> None:
    recorder = EventRecorder(MemoryApi(), lambda: NOW, Jobs().rest)
    for _ in range(WAITING + 1):
        recorder.publish(JOB, FAILED)
    assert caplog.text.count("is lost") == 1
