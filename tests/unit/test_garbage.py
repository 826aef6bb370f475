"""Python's garbage collector while steps are taken."""

import gc
from pathlib import Path

import pytest
from support.collecting import LITTER, train_littering
from support.ranks import run_ranks
from support.training import prepared
from trainingjob_trainer.garbage import AgreedCollections

STEPS, EVERY = 45, 10


@pytest.mark.parametrize("stop_after", [None, 36], ids=["to the end", "drained"])
def test_the_collector_runs_at_the_same_steps_on_every_rank_and_never_by_itself(
    tmp_path: Path, stop_after: int | None
) -> None:
    config = prepared(tmp_path, steps=STEPS, evaluation={"everySteps": 15})
    last = stop_after or STEPS
    for collected in run_ranks(2, train_littering, config, EVERY, stop_after):
        assert [step for step in collected.steps if 1 < step < last] == list(range(EVERY, last, EVERY))
        assert 1 in collected.steps, "what the first step leaves behind"
        assert collected.most_alive <= (EVERY + 1) * LITTER
        assert collected.drained == (stop_after is not None)
        assert collected.as_before


def test_a_collector_that_was_switched_off_stays_so() -> None:
    gc.disable()
    try:
        with AgreedCollections() as garbage:
            garbage.step_done(1)
        assert not gc.isenabled()
    finally:
        gc.enable()
