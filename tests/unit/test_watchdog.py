"""A rank that comes to a stand ends the attempt, and the logs say where each rank was."""

import threading
from pathlib import Path

import pytest
import torch
from support import runs
from support.clock import Clock
from support.hanging import train_compiling_slowly, train_until_a_rank_dozes_off
from support.ranks import run_ranks
from support.training import prepared, store_of
from trainingjob_trainer import watchdog as watchdog_module
from trainingjob_trainer.checkpoint.commits import latest
from trainingjob_trainer.config import JobConfig
from trainingjob_trainer.errors import Hang
from trainingjob_trainer.standstill import Stand, hang
from trainingjob_trainer.watchdog import PATIENCE, Watchdog


@pytest.fixture
def config(tmp_path: Path) -> JobConfig:
    return prepared(tmp_path, checkpoint={"everySteps": 2})


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
    stands = {rank: Stand.model_validate_json((tmp_path / f"{rank}.json").read_bytes()) for rank in (0, 1)}
    said = hang(stands, 2, [0, 1])
    assert said.cause == "No pass began for 10 s after step 5: rank 0 waits in all_reduce, rank 1 in wait."
    assert said.rank == 1


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(watchdog_module, "time", clock)
    monkeypatch.setattr(watchdog_module, "GRACE", 0.0)
    return clock


def test_what_is_slow_but_goes_on_is_left_alone(clock: Clock) -> None:
    model, hangs = torch.nn.Linear(1, 1), []
    with Watchdog(model, 0.1, lambda: 0, hangs.append, hangs.append) as watchdog:  # type: ignore[arg-type]
        for _ in range(8):
            clock.skip(0.09)
            clock.look()
            model(torch.zeros(1))
        with watchdog.paused():
            clock.skip(60)
            watchdog._ended.wait(0.1)  # while it is paused, it does not look at the time
        clock.skip(0.09)
        clock.look()
    assert hangs == []


def test_what_is_compiled_may_take_longer_and_leaves_a_later_hang_no_more_time(clock: Clock) -> None:
    model, hung = torch.nn.Linear(1, 1), threading.Event()
    with Watchdog(model, 0.1, lambda: 0, lambda _: None, lambda _: hung.set()) as watchdog:  # type: ignore[arg-type,return-value]
        with watchdog.patient():
            for _ in range(2):
                model(torch.zeros(1))
                clock.skip(0.1 * PATIENCE - 0.01)
                clock.look()
                assert not hung.is_set()
        clock.skip(0.09)
        clock.look()
        assert not hung.is_set()
        clock.skip(0.02)
        assert hung.wait(runs.PATIENCE)


@pytest.mark.parametrize("part", ["training", "evaluation"])
def test_a_run_that_compiles_for_longer_than_other_passes_may_take_goes_on(tmp_path: Path, part: str) -> None:
    config = prepared(tmp_path / part, steps=2, compile="always")
    [result] = run_ranks(1, train_compiling_slowly, config, part)
    assert result.step == 2
