"""What pods say is anybody's word: of whatever it is comes a status that the API server takes, and the run goes on."""

import json
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from typing import Any

import pytest
from pydantic import ValidationError
from support.memory_api import owner
from support.play import Play, policy
from trainingjob_operator.api.status import TrainingJobStatus
from trainingjob_operator.core.facts import PodFacts

HUGE, LONG = 10**30, 10**400  # more than an int64, more than a double
INCIDENT = {"attempt": 1, "class": "Hang", "rank": 1, "time": "2026-01-01T00:01:00Z"}

WORDS: dict[str, dict[str, Any]] = {
    "no time zone": {"firstStepAt": "2026-01-01T00:00:00", "incidents": [{**INCIDENT, "time": "2026-01-01T00:01:00"}]},
    "the end of time": {"incidents": [{**INCIDENT, "time": "9999-12-31T23:59:59Z"}]},
    "the end of time, elsewhere": {"incidents": [{**INCIDENT, "time": "9999-12-31T23:59:59-12:00"}]},
    "the beginning of time": {"incidents": [{**INCIDENT, "time": "0001-01-01T00:00:00+12:00"}]},
    "a first step in the future": {"firstStepAt": "9999-12-31T23:59:59Z"},
    "a long metric": {"progress": {"step": 21, "metrics": {"x": LONG, "y": -LONG, "z": 1}}},
    "a long loss": {"progress": {"step": 21, "loss": LONG, "etaSeconds": LONG, "tokensPerSecond": LONG}},
    "a long evaluation": {"evaluation": {"split": "test", "step": 20, "metrics": {"loss": LONG}}},
    "huge steps": {"progress": {"step": HUGE, "steps": HUGE, "samples": HUGE, "tokens": HUGE}},
    "a huge checkpoint": {"checkpoint": {"latestStep": HUGE, "bestStep": HUGE}},
    "a huge evaluation": {"evaluation": {"split": "test", "step": HUGE, "metrics": {}}},
    "a huge incident": {"incidents": [{**INCIDENT, "attempt": HUGE, "rank": HUGE, "step": HUGE}]},
    "a huge attempt": {"attempt": HUGE, "resumedFromStep": HUGE, "worldSize": HUGE, "pods": [HUGE]},
}


def numbers(value: object) -> Iterator[float]:
    """All numbers of a JSON value."""
    if isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from numbers(part)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield value


def check_status(status: TrainingJobStatus) -> None:
    """The API server stores it: what it calls an integer has 64 bits, and JSON knows no infinity."""
    wire = json.loads(json.dumps(status.wire(), allow_nan=False))
    assert all(not isinstance(number, int) or abs(number) < 2**63 for number in numbers(wire))
    assert TrainingJobStatus.model_validate(wire) == status


@pytest.mark.parametrize("said", WORDS)
def test_a_report_of_whatever_numbers_and_times_stops_nothing(training: Play, said: str) -> None:
    with suppress(ValidationError):  # It is as if nothing had been said.
        training.report(training.head(), **{"attempt": 2, "progress": {"step": 21}, **WORDS[said]})
    training.step(20)
    check_status(training.status)
    assert all(incident.time <= training.now for incident in training.status.history)
    training.spec |= policy(suspend=True)
    training.settle()
    for name in training.names:
        training.vanish(name)
    training.settle()
    assert training.status.phase == "Suspended"
    training.spec |= policy(suspend=False)
    training.step(1)
    training.settle()
    check_status(training.status)
    assert training.status.phase == "Pending"
    assert training.status.start_time is not None
    assert training.status.start_time <= training.now


def test_an_incident_that_was_dropped_is_not_counted_again(training: Play) -> None:
    """However far the driver's clock is ahead."""
    said = {**INCIDENT, "time": (training.now + timedelta(hours=1)).isoformat()}
    for attempt in range(2, 12):
        training.report(training.head(), attempt=attempt, incidents=[said])
        training.step(300)
        training.vanish(f"gpt-train-1-{attempt - 1}")
        training.settle()
        training.step(300)
        training.run_pods()
    assert [incident.attempt for incident in training.status.history] == list(range(2, 12))
    training.step(20)
    assert training.status.restarts.by_class == {"Hang": 1, "Deleted": 10}


@pytest.mark.parametrize(
    "log",
    [
        "[" * 4096,
        '{"outcome": "Finished", "result": {"modelUri": "\\ud800"}}',
        *(json.dumps({"outcome": "Finished", field: HUGE}) for field in ("step", "attempt", "rank")),
    ],
)
def test_a_log_that_looks_like_a_message_is_a_log(log: str) -> None:
    ended = {"name": "trainer", "state": {"terminated": {"exitCode": 1, "message": log}}}
    meta = {"name": "gpt-train-0-1", "uid": "p", "ownerReferences": [owner("job-uid")]}
    pod = PodFacts.from_object({"metadata": meta, "status": {"containerStatuses": [ended]}})
    assert pod.termination is None
    assert pod.termination_text == log[-1024:]


def test_a_result_of_whatever_step_ends_the_run(training: Play) -> None:
    for step in (HUGE, -HUGE, LONG, "20", None):
        result = {"step": step, "evaluation": {"split": "test", "step": step, "metrics": {"loss": LONG}}}
        training.end(training.head(), 0, {"outcome": "Finished", "result": result})
        training.settle()
        check_status(training.status)
        assert training.status.phase == "Succeeded"
