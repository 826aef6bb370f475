"""How long a run is: steps, epochs or tokens, of which the latter follow from the data."""

from pathlib import Path

import pytest
from support.rank_functions import train_run
from support.ranks import run_ranks
from support.training import job, put_tokens, store_of
from trainingjob_trainer.config import Training
from trainingjob_trainer.prepare.check import check


@pytest.mark.parametrize(
    ("length", "steps"),
    [({"steps": 7}, 7), ({"epochs": 1}, 100), ({"epochs": 2.001}, 201), ({"epochs": 1e-9}, 1), ({"tokens": 3201}, 21)],
)
def test_epochs_and_tokens_are_rounded_up_to_whole_steps(length: dict[str, float], steps: int) -> None:
    training = Training.model_validate({**length, "globalBatchSize": 10, "sequenceLength": 16})
    assert training.in_steps(1000).total_steps == steps
    assert training.in_steps(1000).in_steps(5) == training.in_steps(1000)


def test_a_run_of_half_an_epoch_ends_there_and_is_known_as_finished(tmp_path: Path) -> None:
    """250 samples in batches of 10; the schedule ends at the last step as one of 13 steps does."""
    config = job(tmp_path, steps=None, epochs=0.5)
    manifest = put_tokens(store_of(config))
    [(result, reports)] = run_ranks(1, train_run, config, 1)
    assert result.step == 13
    told = reports[-1].get("progress") or next(r["progress"] for r in reversed(reports) if "progress" in r)
    assert (told["step"], told["steps"]) == (13, 13)
    assert told["learningRate"] == pytest.approx(1e-3 * config.training.schedule.min_ratio)
    result.save(store_of(config))
    store_of(config).put(
        "data/manifest.json", manifest.model_copy(update={"identity_hash": config.identity_hash()}).to_json()
    )
    assert check(config, store_of(config)).outcome == "Finished"
    longer = job(tmp_path, steps=None, epochs=0.6)
    [(result, reports)] = run_ranks(1, train_run, longer, 2)
    assert (reports[0]["resumedFromStep"], result.step) == (13, 15)
