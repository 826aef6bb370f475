"""A rank that comes to a stand ends the attempt, and the logs say where each rank was."""

from pathlib import Path

import pytest
import torch
from support.rank_functions import train_until_a_rank_dozes_off
from support.ranks import run_ranks
from support.training import job, put_tokens, store_of
from trainingjob_trainer.checkpoint.commits import latest
from trainingjob_trainer.config import JobConfig
from trainingjob_trainer.errors import Hang
from trainingjob_trainer.watchdog import Watchdog


@pytest.fixture
def config(tmp_path: Path) -> JobConfig:
    config = job(tmp_path, checkpoint={"everySteps": 2})
    put_tokens(store_of(config))
    return config


def test_all_ranks_end_with_their_stacks_in_the_log_when_one_sleeps_in_a_reduction(
    config: JobConfig, tmp_path: Path
) -> None:
    assert run_ranks(2, train_until_a_rank_dozes_off, config, str(tmp_path), 5) == [Hang.exit_code] * 2
    waiting, asleep = ((tmp_path / f"{rank}.log").read_text() for rank in (0, 1))
    assert "in doze" in waiting
    assert "in all_reduce" in waiting
    assert "in doze" in asleep
    assert "in all_reduce" not in asleep
    commit = latest(store_of(config))
    assert commit is not None
    assert commit.step == 4


def test_what_is_slow_but_goes_on_is_left_alone() -> None:
    model, hangs = torch.nn.Linear(1, 1), []
    with Watchdog(model, 0.4, lambda: 0, hangs.append) as watchdog:  # type: ignore[arg-type]
        for _ in range(8):
            watchdog._ended.wait(0.1)
            model(torch.zeros(1))
        with watchdog.paused():
            watchdog._ended.wait(0.8)
        watchdog._ended.wait(0.2)
    assert hangs == []
