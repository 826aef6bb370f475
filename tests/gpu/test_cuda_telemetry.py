"""What a run tells about the time that it spends on a GPU."""

from pathlib import Path
from typing import Any

import pytest
import torch
from support.rank_functions import train_run
from support.ranks import run_ranks
from support.spread import told_of_time
from support.training import contents, newest, prepared, traces_of
from trainingjob_trainer.config import JobConfig

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


def profiled(directory: Path, **changes: Any) -> JobConfig:
    """A run of six steps, two of which were recorded."""
    config = prepared(directory, steps=6, precision="auto", profile={"fromStep": 3, "steps": 2}, **changes)
    run_ranks(1, train_run, config, 1)
    return config


@pytest.mark.parametrize("compiled", ["never", "always"])
def test_a_profile_has_the_kernels_that_its_steps_launch(tmp_path: Path, compiled: str) -> None:
    [(key, events)] = traces_of(profiled(tmp_path, compile=compiled)).items()
    assert key == "profiles/a1/step-00000003-rank-0.json.gz"
    kernels = {event["args"]["correlation"] for event in events if event.get("cat") == "kernel"}
    calls = [event for event in events if event.get("cat") in {"cuda_runtime", "cuda_driver"}]
    spans = {
        event["name"]: (event["ts"], event["ts"] + event["dur"])
        for event in events
        if event.get("cat") == "user_annotation" and event["name"].startswith("step ")
    }
    assert set(spans) == {"step 3", "step 4"}
    for begin, end in spans.values():
        launched = {call["args"]["correlation"] for call in calls if begin <= call["ts"] <= end}
        assert len(launched & kernels) > 20


def test_a_run_whose_steps_are_recorded_is_the_same(tmp_path: Path) -> None:
    plain = prepared(tmp_path / "plain", steps=6, precision="auto", compile="never")
    run_ranks(1, train_run, plain, 1)
    assert contents(newest(profiled(tmp_path / "profiled", compile="never"))) == contents(newest(plain))


def test_the_straggler_is_the_rank_that_waits_for_data_since_the_host_only_launches(tmp_path: Path) -> None:
    """Rank 1's host computes for longer than rank 2's data takes; on a CPU it would be the straggler."""
    for told in run_ranks(3, told_of_time, prepared(tmp_path, logEvery=1), 1, 2):
        assert "slowestRank" not in told[0], "answered at the next report"
        for metrics in told[1:]:
            assert metrics["slowestRank"] == 2
            assert metrics["stragglerSeconds"] == pytest.approx(0.1)
