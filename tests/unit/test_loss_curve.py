"""The loss curve that checkpoints hold: bounded, and the same wherever the run was resumed."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from trainingjob_trainer.checkpoint import state
from trainingjob_trainer.checkpoint.state import CURVE, LoggedStep, Progress
from trainingjob_trainer.config import Training
from trainingjob_trainer.parallel import StepSums, Stragglers, World
from trainingjob_trainer.telemetry import Telemetry


def point(step: int) -> LoggedStep:
    return LoggedStep(step=step, loss=1 / (step + 2), learning_rate=1 / 3, grad_norm=step / 7)


def logged(steps: list[int], progress: Progress | None = None) -> Progress:
    progress = progress or Progress()
    for step in steps:
        progress.log(point(step))
    return progress


def stored(progress: Progress) -> Progress:
    return Progress.model_validate_json(progress.model_dump_json(by_alias=True))


@pytest.mark.parametrize(("every", "steps"), [(1, 2000), (10, 16_000), (1000, 1_024_000)])
def test_a_curve_that_is_short_enough_has_every_logged_step(every: int, steps: int) -> None:
    every_one = list(range(every, steps + 1, every))
    assert [p.step for p in logged(every_one).history] == every_one


@pytest.mark.parametrize("steps", [2001, 2002, 3999, 4001, 20_000])
def test_a_longer_one_is_thinned_evenly_and_has_the_first_and_the_newest(steps: int) -> None:
    found = [p.step for p in logged(list(range(1, steps + 1))).history]
    assert CURVE / 2 < len(found) <= CURVE + 1
    assert (found[0], found[-1]) == (1, steps)
    assert len({after - before for before, after in pairwise(found[:-1])}) == 1


@given(
    steps=st.sets(st.integers(1, 200), min_size=1).map(sorted),
    cuts=st.lists(st.integers(0, 200), max_size=4).map(sorted),
)
def test_it_is_the_same_wherever_the_run_was_resumed(steps: list[int], cuts: list[int]) -> None:
    """Whatever steps were logged, and with `logEvery` changed on the way."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(state, "CURVE", 8)
        resumed = Progress()
        for start, end in zip([0, *cuts], [*cuts, 200], strict=True):
            resumed = stored(logged([step for step in steps if start < step <= end], resumed))
    length = 2 ** max(0, math.ceil(math.log2(steps[-1] / 8)))
    firsts = {(step - 1) // length: step for step in reversed(steps)}
    assert resumed.history == [point(step) for step in sorted({*firsts.values(), steps[-1]})]


def test_a_curve_that_was_stored_with_every_step_goes_on_as_if_it_had_been_thinned() -> None:
    old = stored(Progress(history=[point(step) for step in range(1, 5001)]))
    assert len(old.history) == 5000
    assert logged([5001], old) == logged(list(range(1, 5002)))


def test_a_run_that_goes_on_from_a_checkpoint_has_the_curve_of_one_that_was_not_disturbed() -> None:
    training = Training.model_validate({"steps": 4500, "logEvery": 1, "optimizer": {"lr": 1.0}})

    def run(progress: Progress, until: int) -> Progress:
        telemetry = Telemetry(training, progress, True, Stragglers(World.join()))
        for step in range(progress.step + 1, until + 1):
            telemetry.add(StepSums(*torch.tensor([math.nan if step % 9 == 0 else 1 / step, step / 3, 5.0]).double()))
        return stored(progress)

    undisturbed = run(Progress(), 4500)
    assert len(undisturbed.history) < CURVE
    assert run(run(run(Progress(), 1999), 4002), 4500) == undisturbed
