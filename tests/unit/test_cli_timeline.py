"""What a watcher remembers of a job, and how it draws it."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trainingjob_cli.jobs import Job
from trainingjob_cli.timeline import BARS, Timeline, duration, sparkline

BORN = datetime(2026, 1, 1, tzinfo=UTC)


def job(phase: str | None, **status: Any) -> Job:
    return Job.from_manifest(
        {
            "metadata": {"name": "j", "namespace": "n", "uid": "u", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "status": {**({"phase": phase} if phase else {}), **status},
        }
    )


def watched(*looks: tuple[float, str | None]) -> Timeline:
    timeline = Timeline()
    for seconds, phase in looks:
        timeline.look(job(phase), BORN + timedelta(seconds=seconds))
    return timeline


def test_time_between_two_looks_belongs_to_the_phase_seen_first() -> None:
    timeline = watched((0, None), (2, "Pending"), (5, "Preparing"), (15, "Starting"), (16, "Running"))
    assert timeline.seconds == {"Pending": 5, "Preparing": 10, "Starting": 1, "Running": 0}


def test_a_phase_that_comes_back_goes_on_counting() -> None:
    timeline = watched((0, "Pending"), (1, "Running"), (11, "Restarting"), (14, "Running"), (20, "Succeeded"))
    assert timeline.seconds == {"Pending": 1, "Running": 16, "Restarting": 3, "Succeeded": 0}


def test_what_was_before_the_first_look_at_a_running_job_is_not_made_up() -> None:
    assert watched((3600, "Running"), (3601, "Running")).seconds == {"Running": 1}


def test_a_new_jobs_wait_counts_from_its_creation() -> None:
    assert watched((3, "Pending")).seconds == {"Pending": 3}


@given(st.lists(st.tuples(st.floats(0, 100), st.sampled_from(["Pending", "Running", "Restarting"])), min_size=1))
def test_the_phases_add_up_to_the_time_watched(looks: list[tuple[float, str]]) -> None:
    looks = [(0.0, "Pending"), *sorted(looks)]
    total = sum(watched(*looks).seconds.values())
    assert total == pytest.approx(looks[-1][0], abs=1e-3)


def test_a_status_of_a_newer_operator_is_shown_as_far_as_it_is_understood() -> None:
    assert job("Pondering", message="It thinks.", mood=3).status.message == "It thinks."


def test_losses_are_kept_by_step() -> None:
    timeline = Timeline()
    for step, loss in [(0, 9.0), (10, 4.0), (10, 4.0), (20, 3.0)]:
        timeline.look(job("Running", progress={"step": step, "steps": 30, "loss": loss}), BORN)
    assert timeline.losses == {10: 4.0, 20: 3.0}


@pytest.mark.parametrize(
    ("phase", "later"),
    [
        (None, ("Preparing", "Starting", "Running", "Succeeded")),
        ("Starting", ("Running", "Succeeded")),
        ("Restarting", ("Starting", "Running", "Succeeded")),
        ("Failed", ()),
    ],
)
def test_phases_to_come(phase: str | None, later: tuple[str, ...]) -> None:
    assert Timeline().to_come(job(phase)) == later


@given(st.lists(st.floats(-1e6, 1e6), min_size=1), st.integers(1, 60))
def test_a_sparkline_fits_and_shows_only_bars(values: list[float], width: int) -> None:
    line = sparkline(values, width)
    assert len(line) == min(width, len(values))
    assert set(line) <= set(BARS)


def test_a_sparkline_goes_from_the_highest_to_the_lowest() -> None:
    assert sparkline([8, 7, 6, 5, 4, 3, 2, 1], 8) == BARS[::-1]
    assert sparkline([], 8) == ""
    assert sparkline([3, 3], 8) == BARS[0] * 2


@pytest.mark.parametrize(("seconds", "text"), [(0, "0 s"), (59.9, "59 s"), (67, "1:07"), (7380, "2:03:00")])
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
