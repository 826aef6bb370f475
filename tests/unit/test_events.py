"""Events are told once, counted when they repeat, and never stand in the way of anything."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from support.memory_api import MemoryApi
from trainingjob_operator.core.facts import Job
from trainingjob_operator.core.plan import EventFact
from trainingjob_operator.kube.api import EVENTS, Unreachable
from trainingjob_operator.observe.events import EventRecorder

NOW = datetime(2030, 1, 1, tzinfo=UTC)
JOB = Job.from_object({"metadata": {"name": "job", "namespace": "team", "uid": "job-1", "resourceVersion": "1"}})
FAILED = EventFact("Warning", "Internal", "the driver crashed")


def told(api: MemoryApi) -> list[tuple[str, str, int]]:
    return [(event["type"], event["reason"], event["count"]) for event in api.objects.values()]


async def test_an_event_names_the_job_and_the_operator() -> None:
    api = MemoryApi()
    await EventRecorder(api, lambda: NOW).publish(JOB, FAILED)
    (event,) = api.objects.values()
    assert event["involvedObject"]["uid"] == "job-1"
    assert event["involvedObject"]["kind"] == "TrainingJob"
    assert event["source"] == {"component": "trainingjob-operator"}
    assert event["firstTimestamp"] == event["lastTimestamp"] == "2030-01-01T00:00:00Z"


async def test_a_repetition_is_counted_and_another_message_is_another_event() -> None:
    api = MemoryApi()
    recorder = EventRecorder(api, lambda: NOW)
    for _ in range(3):
        await recorder.publish(JOB, FAILED)
    await recorder.publish(JOB, EventFact("Normal", "Running", "Training on 2 ranks."))
    assert told(api) == [("Warning", "Internal", 3), ("Normal", "Running", 1)]


async def test_a_repetition_of_an_event_that_has_expired_is_told_anew() -> None:
    api = MemoryApi()
    recorder = EventRecorder(api, lambda: NOW)
    await recorder.publish(JOB, FAILED)
    (name,) = [name for _, _, name in api.objects]
    api.remove(EVENTS, name)
    await recorder.publish(JOB, FAILED)
    assert told(api) == [("Warning", "Internal", 1)]


async def test_an_event_that_cannot_be_told_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    api = MemoryApi()

    def fail(verb: str, plural: str, name: str) -> None:
        raise Unreachable(0, "Unreachable", "down")

    api.before = fail
    await EventRecorder(api, lambda: NOW).publish(JOB, FAILED)
    assert "event Internal is lost" in caplog.text
