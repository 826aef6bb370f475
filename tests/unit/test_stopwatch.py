"""Where the time of a run goes."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from support.ranks import run_ranks
from support.spread import train_with_a_straggler
from support.training import job, put_tokens, store_of
from trainingjob_trainer import stopwatch
from trainingjob_trainer.checkpoint.state import Progress
from trainingjob_trainer.config import Training
from trainingjob_trainer.parallel import StepSums, Stragglers, World
from trainingjob_trainer.stopwatch import Stopwatch
from trainingjob_trainer.telemetry import Telemetry


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
    assert watch.read()[:2] == (8.25, {"data": 1.5, "checkpoint": 0.75})
    clock.now += 1
    assert watch.read()[:2] == (1.0, {})


def test_the_time_until_an_error_counts(clock: Clock) -> None:
    def fail() -> None:
        clock.now += 3
        raise ValueError("broken")

    watch = Stopwatch()
    with pytest.raises(ValueError, match="broken"), watch.during("evaluation"):
        fail()
    assert watch.read()[:2] == (3.0, {"evaluation": 3.0})


def work(seconds: float) -> None:
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def test_a_thread_runs_while_it_works_and_not_while_it_waits() -> None:
    begun, watch = time.monotonic(), Stopwatch()
    threading.Event().wait(1.0)
    ran, taken = watch.read().ran, time.monotonic() - begun
    assert ran <= taken - 0.5  # it may have been preempted on its way to sleep
    begun = time.monotonic()
    work(0.2)
    with watch.during("evaluation"):
        inside = time.monotonic()
        work(0.2)
        inside = time.monotonic() - inside
    ran, taken = watch.read().ran, time.monotonic() - begun
    tick = 0.01  # of the kernel's at the most, for which it may be behind
    assert 0.2 - tick <= ran <= taken - inside + 2 * tick


@pytest.mark.parametrize(("does", "behind"), [("compute", 0.2), ("wait", 1.0)])
def test_the_rank_that_the_others_wait_for_is_told(tmp_path: Path, does: str, behind: float) -> None:
    """All of them take as long, because they wait. They compare what they need by themselves once a report."""
    config = job(tmp_path, steps=8, logEvery=2, checkpoint={})
    put_tokens(store_of(config))
    (told, compared), *_ = run_ranks(3, train_with_a_straggler, config, 1, does)
    assert compared == 4
    assert "slowestRank" not in told[0], "answered at the next report"
    assert [metrics["slowestRank"] for metrics in told[1:]] == [1, 1, 1]
    assert [metrics["stragglerSeconds"] for metrics in told[1:]] == pytest.approx([behind] * 3), "of a step"


@pytest.mark.parametrize(("tokens", "told"), [(True, (20.0, None)), (False, (None, 80.0))])
def test_what_has_no_tokens_is_told_in_samples_a_second(
    clock: Clock, tokens: bool, told: tuple[float | None, float | None]
) -> None:
    """40 samples and 10 targets a step, which takes half a second."""
    training = Training.model_validate({"steps": 9, "logEvery": 2, "globalBatchSize": 40})
    telemetry = Telemetry(training, Progress(), tokens, Stragglers(World.join()))
    for _ in range(2):
        clock.now += 0.5
        telemetry.add(StepSums(*torch.tensor([1.0, 1.0, 10.0]).double()))
    fields = telemetry.fields()
    assert (fields["tokensPerSecond"], fields["metrics"].get("samplesPerSecond")) == told
