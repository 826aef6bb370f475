"""The learning rate is what the documentation says, from the step and the configuration alone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trainingjob_trainer.checkpoint.state import Progress
from trainingjob_trainer.config import Training
from trainingjob_trainer.optim.schedule import learning_rate
from trainingjob_trainer.parallel import Stragglers, World
from trainingjob_trainer.telemetry import Telemetry


def training(steps: int, name: str = "cosine", warmup: int = 10, min_ratio: float = 0.1) -> Training:
    schedule = {"name": name, "warmupSteps": warmup, "minRatio": min_ratio}
    return Training.model_validate({"steps": steps, "optimizer": {"lr": 1.0}, "schedule": schedule})


def test_warm_up_is_linear_and_ends_at_the_peak() -> None:
    rates = [learning_rate(step, training(100)) for step in range(11)]
    assert rates == pytest.approx([(step + 1) / 11 for step in range(11)])


def test_cosine_is_halfway_in_the_middle_and_ends_at_the_minimum_with_the_last_step() -> None:
    config = training(111)
    assert learning_rate(10, config) == 1.0
    assert learning_rate(60, config) == pytest.approx(0.55)
    assert learning_rate(110, config) == pytest.approx(0.1)


def test_constant_stays_at_the_peak() -> None:
    assert {learning_rate(step, training(100, "constant")) for step in (10, 50, 99)} == {1.0}


@given(steps=st.integers(1, 500), warmup=st.integers(0, 600), min_ratio=st.floats(0, 1))
def test_it_rises_then_falls_and_stays_within_zero_and_the_peak(steps: int, warmup: int, min_ratio: float) -> None:
    """Also when the warm-up is longer than the run."""
    config = training(steps, warmup=warmup, min_ratio=min_ratio)
    rates = [learning_rate(step, config) for step in range(steps)]
    assert all(0 < rate <= 1 or (min_ratio == 0 and rate >= 0) for rate in rates)
    top = min(warmup, steps - 1)
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)


def test_linear_falls_in_a_straight_line() -> None:
    config = training(111, "linear")
    assert [learning_rate(step, config) for step in (10, 60, 110)] == pytest.approx([1.0, 0.55, 0.1])


def test_warmup_stable_decay_falls_in_its_last_steps_only() -> None:
    schedule = {"name": "warmup-stable-decay", "warmupSteps": 10, "decaySteps": 20, "minRatio": 0.0}
    config = Training.model_validate({"steps": 101, "optimizer": {"lr": 2.0}, "schedule": schedule})
    assert [learning_rate(step, config) for step in (10, 80, 90, 100)] == pytest.approx([2.0, 2.0, 1.0, 0.0])


def test_points_are_joined_by_straight_lines_after_the_warm_up() -> None:
    points = [{"step": 20, "ratio": 1.0}, {"step": 40, "ratio": 0.5}, {"step": 50, "ratio": 0.0}]
    schedule = {"name": "points", "warmupSteps": 4, "points": points}
    config = Training.model_validate({"steps": 100, "optimizer": {"lr": 1.0}, "schedule": schedule})
    rates = [learning_rate(step, config) for step in (1, 10, 20, 30, 45, 50, 99)]
    assert rates == pytest.approx([0.4, 1.0, 1.0, 0.75, 0.25, 0.0, 0.0])


@pytest.mark.parametrize(
    ("schedule", "said"),
    [
        ({"name": "points"}, "exactly if name is points"),
        ({"points": [{"step": 1, "ratio": 1}]}, "exactly if name is points"),
        ({"name": "points", "points": [{"step": 5, "ratio": 1}, {"step": 5, "ratio": 0}]}, "rising order"),
    ],
)
def test_a_schedule_that_cannot_be_meant_is_refused(schedule: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Training.model_validate({"steps": 100, "schedule": schedule})


@pytest.mark.parametrize(("step", "begins"), [(0, "; the learning rate never"), (20, "; learning rate 0.208; the ")])
def test_a_run_that_is_over_before_its_warm_up_is_told_how_far_it_comes(step: int, begins: str) -> None:
    """The length of the warm-up has a default, so it is no mistake that could be refused."""

    def told(warmup: int) -> str:
        return Telemetry(training(40, warmup=warmup), Progress(step=step), True, Stragglers(World.join())).rates()

    assert told(100).startswith(begins)
    assert told(100).endswith(
        "never reaches its peak of 1, only 0.396: training.schedule.warmupSteps is 100 and the run has 40 steps"
    )
    assert "warmupSteps is 40" in told(40)
    assert "never" not in told(39)
    assert learning_rate(39, training(40, warmup=39)) == 1.0
