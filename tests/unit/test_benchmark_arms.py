"""What the trainer's loop is compared with: loops that take turns, and compute the same."""

import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.training import put_tokens, store_of
from trainingjob_trainer.parallel import World

from benchmarks.trainer import arms, loops, subject
from benchmarks.trainer.arms import Arm, Pair, compare
from benchmarks.trainer.figures import interval


class Clock:
    """Time that passes only where a loop says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(arms.time, "perf_counter", clock)
    return clock


def loop(clock: Clock, taken: list[str], name: str, seconds: Callable[[int], float]) -> Callable[[arms.Turn], None]:
    """A loop whose next step takes `seconds` of the number of steps that all loops have taken."""

    def steps(turn: arms.Turn) -> None:
        while True:
            turn()
            clock.now += seconds(len(taken))
            taken.append(name)

    return steps


def test_two_loops_take_turns_so_that_a_drift_of_the_machine_cancels(clock: Clock) -> None:
    taken: list[str] = []

    def slower_and_slower(steps: int) -> float:
        return 1 + 0.01 * steps

    with (
        Arm("a", loop(clock, taken, "a", slower_and_slower)) as a,
        Arm("b", loop(clock, taken, "b", slower_and_slower)) as b,
    ):
        pair = Pair(a, b)
        assert compare([pair], 5, 1, World.join(), lambda _: None)
    assert "".join(taken[2 * arms.WARM_UP :]) == 5 * "abba"
    assert pair.ratios == pytest.approx([1.0] * 5, abs=1e-9)


def test_a_loop_that_is_not_as_fast_as_itself_is_measured_for_longer_and_then_given_up(clock: Clock) -> None:
    taken: list[str] = []
    with (
        Arm("a loop", loop(clock, taken, "a", lambda _: 1.0)) as a,
        Arm("its twin", loop(clock, taken, "b", lambda _: 1.02)) as b,
    ):
        pair = Pair(a, b)
        assert not compare([pair], 2, 1, World.join(), lambda _: None)
    assert len(pair.blocks) == 2 + 4 + 8
    assert len(taken) + 2 == 2 * arms.most_steps(2, 1, 1)


def test_what_a_loop_does_once_in_some_steps_counts_where_a_turn_has_as_many(clock: Clock) -> None:
    taken: list[str] = []
    own = iter(range(10**6))

    def logs_every_fourth(_: int) -> float:
        return 2.0 if next(own) % 4 == 3 else 1.0

    with (
        Arm("plain", loop(clock, taken, "p", lambda _: 1.0)) as plain,
        Arm("logs", loop(clock, taken, "l", logs_every_fourth)) as logs,
    ):
        twin, pair = Pair(plain, plain), Pair(plain, logs)
        assert compare([twin, pair], 3, 4, World.join(), lambda _: None)
    assert [more.clock for more in pair.differences] == pytest.approx([0.25] * 3)
    assert len(taken[8 * arms.WARM_UP :]) == 3 * 8 * 4


def test_a_loop_that_waits_takes_time_and_no_cpu() -> None:
    """The two clocks differ by a few microseconds in a second."""

    def works(turn: arms.Turn) -> None:
        while True:
            turn()
            end = time.thread_time() + 0.02
            while time.thread_time() < end:
                pass

    def waits(turn: arms.Turn) -> None:
        while True:
            turn()
            threading.Event().wait(0.02)

    with Arm("works", works) as one, Arm("waits", waits) as other:
        working, waiting = one.steps(3), other.steps(3)
    assert working.cpu > 0.019
    assert working.clock > 0.019
    assert waiting.clock > 0.019
    assert waiting.cpu < 0.5 * working.cpu


def test_the_median_lies_where_the_interval_says() -> None:
    assert interval(range(7)) == (0, 6), "of so few, anywhere between them"
    assert interval([*range(100)]) == (40, 59)
    random = np.random.default_rng(1)
    samples = random.lognormal(size=(1000, 80))
    found = [low <= 1.0 <= high for low, high in map(interval, samples.tolist())]
    assert 0.93 < np.mean(found) < 0.98


def test_a_loop_that_fails_is_named() -> None:
    def broken(turn: arms.Turn) -> None:
        turn()
        raise ValueError("no memory")

    with Arm("this", broken) as arm, pytest.raises(RuntimeError, match="the loop this ended") as failure:
        arm.steps(1)
    assert isinstance(failure.value.__cause__, ValueError)


def work(directory: Path, **changes: Any) -> loops.Work:
    config = subject.run_in(
        str(directory), {}, {"layers": 2, "dim": 16, "heads": 2}, globalBatchSize=4, sequenceLength=16,
        logEvery=1, schedule={"name": "constant", "warmupSteps": 0}, optimizer={"lr": 1e-2},
    )  # fmt: skip
    put_tokens(store_of(config))
    return loops.Work.of(config, 20)


def test_the_trainers_own_loop_computes_what_the_bare_one_does(tmp_path: Path) -> None:
    given = work(tmp_path)
    with Arm("bare", partial(loops.bare, given)) as bare, Arm("ours", partial(loops.ours, given)) as ours:
        for _ in range(10):
            bare.steps(1)
            ours.steps(1)
    assert len(given.losses.first) == 10
    assert given.losses.first[10] < given.losses.first[1] - 0.5


def test_a_loop_that_computes_something_else_is_not_compared(tmp_path: Path) -> None:
    losses = work(tmp_path).losses
    losses.log(1, 3.0)
    with pytest.raises(AssertionError, match=r"step 1: a loss of 3\.01, where another loop has 3\.0"):
        losses.log(1, 3.01)
