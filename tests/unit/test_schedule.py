"""The learning rate is what the documentation says, from the step and the configuration alone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trainingjob_trainer.config import Training
from trainingjob_trainer.optim.schedule import learning_rate


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
