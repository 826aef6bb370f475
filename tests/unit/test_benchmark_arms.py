"""What the trainer's loop is compared with: loops that take turns, and compute the same."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from support.training import put_tokens, store_of
from trainingjob_trainer.parallel import World

from benchmarks.trainer import arms, loops, subject
from benchmarks.trainer.arms import Arm, Pair, TooNoisy, compare


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
        compare([pair], 5, World.join(), lambda _: None)
    assert "".join(taken[2 * arms.WARM_UP :]) == 5 * "abba"
    assert pair.ratios == pytest.approx([1.0] * 5, abs=1e-9)


def test_where_a_loop_is_not_as_fast_as_itself_there_are_no_figures(clock: Clock) -> None:
    taken: list[str] = []
    with (
        Arm("a loop", loop(clock, taken, "a", lambda _: 1.0)) as a,
        Arm("its twin", loop(clock, taken, "b", lambda _: 1.02)) as b,
    ):
        pair = Pair(a, b)
        with pytest.raises(TooNoisy):
            compare([pair], 2, World.join(), lambda _: None)
    assert len(pair.seconds) == 2 + 4 + 8
    assert len(taken) + 2 == 2 * arms.most_steps(2, 1)


def test_a_loop_that_fails_is_named() -> None:
    def broken(turn: arms.Turn) -> None:
        turn()
        raise ValueError("no memory")

    with Arm("this", broken) as arm, pytest.raises(RuntimeError, match="the loop this ended") as failure:
        arm.step()
    assert isinstance(failure.value.__cause__, ValueError)


def work(directory: Path, **changes: Any) -> loops.Work:
    config = subject.job(
        "http://nowhere", "none", {"layers": 2, "dim": 16, "heads": 2}, globalBatchSize=4, sequenceLength=16,
        logEvery=1, schedule={"name": "constant", "warmupSteps": 0}, optimizer={"lr": 1e-2},
    ).model_copy(update={"output_uri": str(directory)})  # fmt: skip
    put_tokens(store_of(config))
    return loops.Work.of(config, 20)


def test_the_trainers_own_loop_computes_what_the_bare_one_does(tmp_path: Path) -> None:
    given = work(tmp_path)
    with Arm("bare", partial(loops.bare, given)) as bare, Arm("ours", partial(loops.ours, given)) as ours:
        for _ in range(10):
            bare.step()
            ours.step()
    assert len(given.losses.first) == 10
    assert given.losses.first[10] < given.losses.first[1] - 0.5


def test_a_loop_that_computes_something_else_is_not_compared(tmp_path: Path) -> None:
    losses = work(tmp_path).losses
    losses.log(1, 3.0)
    with pytest.raises(AssertionError, match=r"step 1: a loss of 3\.01, where another loop has 3\.0"):
        losses.log(1, 3.01)
