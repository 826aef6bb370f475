"""A run ends when its validation metric stops getting better, and a resumed one sees it the same way."""

from pathlib import Path

import pytest
from support.rank_functions import judged, train_run
from support.ranks import run_ranks
from support.training import job, prepared, put_tokens, store_of
from trainingjob_trainer.checkpoint.commits import latest
from trainingjob_trainer.checkpoint.state import Evaluated
from trainingjob_trainer.config import EarlyStopping
from trainingjob_trainer.early_stopping import stops_early
from trainingjob_trainer.errors import UserError


def evaluations(*losses: float) -> list[Evaluated]:
    return [Evaluated(step=n, metrics={"loss": loss, "accuracy": -loss}) for n, loss in enumerate(losses, start=1)]


@pytest.mark.parametrize(
    ("losses", "stops"),
    [
        ((), False),
        ((3.0, 2.0, 1.0), False),
        ((1.0, 2.0), False),
        ((1.0, 2.0, 1.5), True),
        ((1.0, 2.0, 0.8), False),
        ((1.0, 0.95, 0.92), True),  # better, but by less than counts
    ],
)
def test_it_stops_after_as_many_evaluations_without_a_better_one(losses: tuple[float, ...], stops: bool) -> None:
    policy = EarlyStopping(patience=2, min_delta=0.1)
    assert stops_early(evaluations(*losses), policy) is stops
    assert stops_early(evaluations(*losses), policy.model_copy(update={"metric": "accuracy", "mode": "max"})) is stops


def test_an_unknown_metric_is_named_with_those_there_are() -> None:
    with pytest.raises(UserError) as raised:
        stops_early(evaluations(1.0), EarlyStopping(metric="los"))
    assert "earlyStopping.metric is los" in raised.value.cause
    assert "accuracy, loss" in raised.value.next_step


def test_no_step_looks_through_all_evaluations(tmp_path: Path) -> None:
    """A long run has thousands: once at the beginning, and after each evaluation."""
    config = prepared(tmp_path, steps=12, evaluation={"everySteps": 4}, earlyStopping={})
    assert run_ranks(1, judged, config) == [[0, 1, 2, 3]]


def test_a_run_that_stops_getting_better_is_evaluated_exported_and_stays_ended(tmp_path: Path) -> None:
    """A learning rate of almost nothing: the second evaluation is no better than the first."""
    config = job(
        tmp_path,
        optimizer={"lr": 1e-9},
        earlyStopping={"patience": 1, "minDelta": 0.01},
        evaluation={"everySteps": 5},
    )
    put_tokens(store_of(config))
    [(result, reports)] = run_ranks(1, train_run, config, 1)
    assert result.step == 10
    told = "Stopped early at step 10: loss was no better by more than 0.01 in 1 evaluation."
    assert told in [report.get("message") for report in reports]
    assert result.model_uri
    commit = latest(store_of(config))
    assert commit is not None
    assert commit.step == 10
    [(again, reports)] = run_ranks(1, train_run, config, 2)
    assert again.step == 10
    assert told in [report.get("message") for report in reports]
