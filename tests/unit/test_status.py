"""Parts of the status that are made from numbers."""

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trainingjob_operator.api.status import Incident, Member, Progress, TrainingJobStatus
from trainingjob_operator.core.reports import duration, merge_result, percent, scalar_metrics

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (59.4, "59s"),
        (59.6, "1m00s"),
        (3599, "59m59s"),
        (3600, "1h00m"),
        (90_000, "1d01h"),
        (-1, None),
        (float("inf"), None),
        (float("nan"), None),
        (None, None),
    ],
)
def test_durations_are_short(seconds: float | None, text: str | None) -> None:
    assert duration(seconds) == text


@given(st.integers(0, 10**9), st.integers(0, 10**9))
def test_a_percentage_is_full_only_at_the_end(step: int, steps: int) -> None:
    share = percent(step, steps)
    assert 0 <= share <= 100
    assert (share == 100) == (steps > 0 and step >= steps)


@given(
    st.dictionaries(st.text(max_size=100), st.one_of(st.floats(), st.integers(), st.booleans(), st.text(), st.none()))
)
def test_metrics_fit_the_status_whatever_the_trainer_says(metrics: dict[str, object]) -> None:
    numbers = scalar_metrics(metrics)
    assert len(numbers) <= 64
    TrainingJobStatus.model_validate({"evaluation": {"split": "test", "step": 1, "metrics": numbers}})


@pytest.mark.parametrize(
    "result", [{}, {"step": "x", "evaluation": 3}, {"evaluation": {"step": -1}}, {"modelUri": 7}, {"progress": 3}]
)
def test_a_malformed_result_is_no_error(result: dict[str, object]) -> None:
    status = merge_result(TrainingJobStatus(), result, 100, NOW)
    assert status.evaluation is None
    assert status.result is None


def test_a_status_reads_back_as_it_was_written() -> None:
    zone = timezone(timedelta(hours=2))
    status = TrainingJobStatus(
        observed_generation=2,
        phase="Running",
        progress=Progress(step=1, steps=2, updated_at=datetime(2026, 1, 1, 2, 0, 0, 999, tzinfo=zone)),
        history=(Incident.model_validate({"time": NOW, "class": "Hang", "pod": "p"}),),
        pods=(Member(role="train", index=0, incarnation=1, not_before=NOW),),
        start_time=NOW,
    )
    wire = status.wire()
    assert wire["progress"]["updatedAt"] == "2026-01-01T00:00:00Z"
    assert wire["history"][0]["class"] == "Hang"
    assert TrainingJobStatus.model_validate(wire) == status
