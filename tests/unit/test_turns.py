"""Jobs take turns at looks at events."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from trainingjob_operator.core.turns import Turns

NOW = datetime(2030, 1, 1, tzinfo=UTC)
SECOND = timedelta(seconds=1)


def test_one_has_its_turn_in_a_pause_and_the_others_wait_in_line() -> None:
    turns = Turns(SECOND)
    assert [turns.wait(job, NOW) for job in "abcb"] == [0, 1, 2, 1]
    assert [turns.wait(job, NOW + SECOND) for job in "bc"] == [0, 1]


def test_who_leaves_is_not_waited_for() -> None:
    turns = Turns(SECOND)
    for job in map(str, range(1000)):
        turns.wait(job, NOW)
    assert turns.wait("new", NOW) == 1000
    for job in map(str, range(1000)):
        turns.leave(job)
    assert turns.wait("new", NOW) == 1
    assert turns.wait("new", NOW + SECOND) == 0


def test_who_does_not_come_back_keeps_nobody_from_its_turn() -> None:
    turns = Turns(SECOND)
    assert [turns.wait(job, NOW) for job in "abc"] == [0, 1, 2]
    assert turns.wait("c", NOW + 2 * SECOND) == 0


def test_a_clock_that_is_set_back_stops_nobody() -> None:
    turns = Turns(SECOND)
    assert turns.wait("a", NOW) == 0
    assert turns.wait("b", NOW - timedelta(hours=1)) == 0
    assert turns.wait("a", NOW - timedelta(hours=1)) == 1
