"""What `/progress` makes of a `trainerStatus`, as Kubeflow's trainer takes it and transformers sends it."""

from typing import Any

import pytest
from trainingjob_trainer.agent.kubeflow import TrainerStatus, report
from trainingjob_trainer.agent.progress import Progress


@pytest.fixture
def progress() -> Progress:
    return Progress("job-uid", "pod-uid", "Train", None)


def take(progress: Progress, percent: int | None = None, eta: int | None = None, **metrics: object) -> dict[str, Any]:
    listed = [{"name": name, "value": str(value)} for name, value in metrics.items()]
    body = {"progressPercentage": percent, "estimatedRemainingSeconds": eta, "metrics": listed}
    progress.take(report(TrainerStatus.model_validate(body), progress.wire()))
    return progress.wire()


def test_names_that_are_known_become_fields_and_the_rest_stays(progress: Progress) -> None:
    seen = take(
        progress, 40, 61, current_step=40, total_steps=100, loss=2.5, learning_rate=1e-4, grad_norm=0.8, reward=0.5
    )
    assert seen["progress"] == {
        "step": 40,
        "steps": 100,
        "loss": 2.5,
        "learningRate": 1e-4,
        "gradNorm": 0.8,
        "etaSeconds": 61.0,
        "metrics": {"reward": 0.5},
    }
    assert seen["evaluation"] is None


def test_a_percentage_stands_for_steps_where_they_are_known(progress: Progress) -> None:
    assert take(progress, 40)["progress"]["percent"] == 40
    take(progress, 0, total_steps=50)
    assert take(progress, 100, train_loss=2.0)["progress"] | {"percent": 40} == {
        "step": 50,
        "steps": 50,
        "loss": 2.0,
        "percent": 40,
        "metrics": {},
    }


def test_an_evaluation_is_of_the_step_at_which_its_numbers_changed(progress: Progress) -> None:
    take(progress, current_step=10, total_steps=100, eval_loss=3.0, eval_runtime=1.5)
    first = {"split": "validation", "step": 10, "metrics": {"loss": 3.0}}
    assert progress.wire()["evaluation"] == first
    take(progress, current_step=15, total_steps=100, eval_loss=3.0, eval_runtime=1.5)
    assert progress.wire()["evaluation"] == first
    take(progress, current_step=20, total_steps=100, eval_loss=2.5, eval_runtime=1.7)
    assert progress.wire()["evaluation"] == {"split": "validation", "step": 20, "metrics": {"loss": 2.5}}


def test_what_is_no_finite_number_or_no_count_is_left_out(progress: Progress) -> None:
    seen = take(progress, loss="nan", reward="high", current_step="inf", other="-inf")
    assert seen["progress"] == {"metrics": {}}
    seen = take(progress, current_step=-1, total_steps=1e30)
    assert seen["progress"] == {"metrics": {}}
