"""What is tested and handed out at the end of a run: the weights of its best checkpoint, however often it dies."""

import json
from pathlib import Path
from typing import Any

import pytest
from support.rank_functions import train_run
from support.ranks import run_ranks
from support.training import job, newest, put_tokens, store_of
from trainingjob_trainer.checkpoint.checkpointer import read_progress
from trainingjob_trainer.checkpoint.commits import commits
from trainingjob_trainer.config import JobConfig
from trainingjob_trainer.errors import Drained
from trainingjob_trainer.records import RunResult
from trainingjob_trainer.stop import Stop

# It learns for 10 steps; then steps so long that they ruin what it has learnt.
RUINED: dict[str, Any] = {
    "optimizer": {"lr": 1.0},
    "schedule": {
        "name": "points",
        "warmupSteps": 0,
        "points": [{"step": 10, "ratio": 0.01}, {"step": 11, "ratio": 1}],
    },
    "evaluation": {"everySteps": 5},
    "steps": 20,
}
STEPS, BEST = 20, 10


def prepared(directory: Path, **changes: Any) -> JobConfig:
    config = job(directory, **{**RUINED, **changes})
    put_tokens(store_of(config))
    return config


def trained(config: JobConfig, attempt: int = 1, ranks: int = 2) -> RunResult:
    result: RunResult = run_ranks(ranks, train_run, config, attempt)[0][0]
    return result


def exported(result: RunResult) -> bytes:
    return Path(str(result.model_uri), "model.safetensors").read_bytes()


@pytest.mark.parametrize("ema", [0.5, pytest.param(0.0, marks=pytest.mark.slow)], ids=["average", "weights"])
def test_what_is_tested_and_exported_is_the_best_checkpoint_bit_for_bit(tmp_path: Path, ema: float) -> None:
    """It equals what a run of 10 steps hands out, which ends where this one was at its best."""
    short = trained(prepared(tmp_path / "short", steps=BEST, emaDecay=ema))
    config = prepared(tmp_path / "whole", emaDecay=ema)
    result, reports = run_ranks(2, train_run, config, 1)[0]
    assert f"Evaluating the weights of step {BEST}, the best, on the test split." in [r.get("message") for r in reports]
    assert (result.step, result.evaluation.step) == (STEPS, BEST)
    assert result.evaluation.metrics == short.evaluation.metrics
    assert exported(result) == exported(short)
    report = json.loads(Path(tmp_path, "whole/reports/a1/report.json").read_text())
    assert (report["modelStep"], report["progress"]["step"]) == (BEST, STEPS)
    assert report["test"] == result.evaluation.metrics
    losses = {e.step: e.metrics["loss"] for e in read_progress(store_of(config), newest(config)).evaluations}
    assert losses[STEPS] > 2 * losses[BEST], "the end was not worse: nothing was shown"


def test_a_run_that_keeps_no_best_checkpoint_hands_out_its_last_weights(tmp_path: Path) -> None:
    result = trained(prepared(tmp_path, checkpoint={"keepBest": 0}), ranks=1)
    assert result.evaluation.step == result.step == STEPS


def test_a_run_that_is_stopped_in_the_evaluation_that_is_its_best_still_hands_that_one_out(tmp_path: Path) -> None:
    """The step is committed at once, without the evaluation. The next attempt makes up for it, also in the COMMIT."""
    short = trained(prepared(tmp_path / "short", steps=BEST, emaDecay=0.5))
    config = prepared(tmp_path / "whole", emaDecay=0.5)
    passes_at_5 = 63  # of 250 samples, two at a time on each of two ranks
    for error in run_ranks(2, train_run, config, 1, None, None, Stop.NOW, passes_at_5 + 10):
        assert isinstance(error, Drained)
        assert error.step == BEST
    state = newest(config)
    assert (state.step, state.metrics) == (BEST, {})
    result = trained(config, 2)
    assert (result.step, result.evaluation.step) == (STEPS, BEST)
    assert exported(result) == exported(short)
    evaluations = read_progress(store_of(config), newest(config)).evaluations
    assert [evaluated.step for evaluated in evaluations] == [5, 10, 15, 20]
    [best] = [commit for commit in commits(store_of(config)) if commit.step == BEST]
    assert best == state.model_copy(update={"metrics": evaluations[1].metrics})


def test_a_run_that_dies_or_is_drained_after_its_last_step_ends_with_the_same_result(tmp_path: Path) -> None:
    """Killed before and after the evaluation of the best weights, asked to stop there and in it, then left alone."""
    expected = trained(prepared(tmp_path / "whole"))
    config = prepared(tmp_path / "disturbed")
    assert run_ranks(2, train_run, config, 1, None, STEPS) == [-9, -9]
    state = newest(config)
    assert state.step == STEPS
    assert run_ranks(2, train_run, config, 2, None, 1) == [-9, -9]
    for attempt, before, within in ((3, 1, None), (4, None, 5)):
        errors = run_ranks(2, train_run, config, attempt, before, None, Stop.NOW, within)
        assert all(isinstance(error, Drained) for error in errors)
        assert newest(config) == state, "the best weights were committed as the last ones"
    result = trained(config, 5)
    assert result.evaluation == expected.evaluation
    assert exported(result) == exported(expected)
