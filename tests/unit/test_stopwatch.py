"""Where the time of a run goes."""

from collections.abc import Iterator

import pytest
from trainingjob_trainer import stopwatch
from trainingjob_trainer.stopwatch import Stopwatch


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(stopwatch, "time", clock)
    return clock


def test_each_phase_has_its_time_and_a_reading_starts_anew(clock: Clock) -> None:
    def batches() -> Iterator[int]:
        for number in range(3):
            clock.now += 0.5
            yield number

    watch = Stopwatch()
    taken = []
    for batch in watch.waits("data", batches()):
        clock.now += 2
        with watch.during("checkpoint"):
            clock.now += 0.25
        taken.append(batch)
    assert taken == [0, 1, 2]
    assert watch.read() == (8.25, {"data": 1.5, "checkpoint": 0.75})
    clock.now += 1
    assert watch.read() == (1.0, {})


def test_the_time_until_an_error_counts(clock: Clock) -> None:
    def fail() -> None:
        clock.now += 3
        raise ValueError("broken")

    watch = Stopwatch()
    with pytest.raises(ValueError, match="broken"), watch.during("evaluation"):
        fail()
    assert watch.read() == (3.0, {"evaluation": 3.0})
