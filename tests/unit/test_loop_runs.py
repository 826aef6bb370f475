"""Whole runs of the loop on real ranks: exact resume, drain, fences, what is learnt and what is refused."""

import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.rank_functions import train_by_the_clock, train_exactly, train_run, train_with_a_bad_step
from support.ranks import run_ranks
from support.resuming import resumed_like_its_twin
from support.training import (
    SEQUENCE,
    VOCABULARY,
    contents,
    in_two_shards,
    job,
    newest,
    prepared,
    store_of,
    without_dropout,
)
from trainingjob_trainer.checkpoint.checkpointer import read_progress
from trainingjob_trainer.checkpoint.commits import commits, encoding_of, latest, read_verified
from trainingjob_trainer.checkpoint.state import LoggedStep
from trainingjob_trainer.config import JobConfig
from trainingjob_trainer.data.manifest import MANIFEST_KEY, Manifest
from trainingjob_trainer.data.reader import Reader
from trainingjob_trainer.errors import DataError, Drained, UserError
from trainingjob_trainer.stop import Stop


def history_of(config: JobConfig) -> list[LoggedStep]:
    """What was logged of the run's steps, as its newest checkpoint has it."""
    return read_progress(store_of(config), newest(config)).history


@pytest.mark.parametrize(
    ("world_size", "changes", "how"),
    [
        (1, {}, "float32: a single process"),
        (2, {"precision": "bfloat16"}, "bfloat16: FSDP2"),
        pytest.param(2, {"parallelism": {"fsdp": "none"}}, "float32: DDP", marks=pytest.mark.slow),
    ],
    ids=["alone", "shards", "copies"],
)
def test_a_killed_run_resumes_bit_for_bit(tmp_path: Path, world_size: int, changes: dict[str, Any], how: str) -> None:
    """40 steps, dropout on, against 20 + SIGKILL of all ranks three steps later + 20."""
    baseline, disturbed = (prepared(tmp_path / name, **changes) for name in ("baseline", "disturbed"))
    _, (_, reports) = resumed_like_its_twin(world_size, baseline, disturbed, killed_at=23, saved=20)
    assert reports[0]["resumedFromStep"] == 20
    assert how in reports[0]["message"]
    assert [logged.step for logged in history_of(disturbed)] == list(range(1, 41))


def test_a_stop_request_on_one_rank_commits_on_all_at_the_next_boundary(tmp_path: Path) -> None:
    config = prepared(tmp_path)
    for error in run_ranks(2, train_run, config, 1, 7):
        assert isinstance(error, Drained)
        assert error.step == 7
    assert newest(config).step == 7


def test_a_wish_to_resize_commits_at_the_next_boundary_and_costs_no_step(tmp_path: Path) -> None:
    """The next checkpoint would be ten minutes off."""
    config = prepared(tmp_path, steps=10, checkpoint={})
    for error in run_ranks(2, train_run, config, 1, 3, None, Stop.TO_RESIZE):
        assert isinstance(error, Drained)
        assert error.step == 3
    [(result, reports)] = run_ranks(1, train_run, config, 2, 8, None, Stop.TO_RESIZE)
    assert reports[0]["resumedFromStep"] == 3
    assert result.step == 10, "after the last step there is nothing to resize for"
    assert not any(report.get("state") == "Draining" for report in reports), "the pod stays"


def test_ranks_whose_clocks_differ_commit_the_same_step(tmp_path: Path) -> None:
    checkpoint = {"everyMinutes": 60, "keepLast": 1000, "keepBest": 0}
    config = prepared(tmp_path, steps=20, checkpoint=checkpoint)
    results = run_ranks(2, train_by_the_clock, config, 1)
    steps = [commit.step for commit in commits(store_of(config))]
    assert (steps[0], steps[-1], len(steps)) == (7, 20, 3), results


# Only the order of summation differs between world sizes; training amplifies it, in float64 hardly.
WHOLE_RUNS = [pytest.param(train_run, 1e-5, id="float32"), pytest.param(train_exactly, 1e-10, id="float64")]


def comparable(directory: Path) -> JobConfig:
    """20 steps without dropout, whose random numbers would be other ones at another world size."""
    model = {**without_dropout(), "export": "none"}
    return prepared(directory, model=model, steps=20, checkpoint={"everySteps": 5})


def assert_same_history(config: JobConfig, expected: JobConfig, bound: float) -> None:
    found, wanted = history_of(config), history_of(expected)
    assert [logged.step for logged in found] == list(range(1, 21)), "each step once"
    assert [logged.loss for logged in found] == pytest.approx([logged.loss for logged in wanted], rel=0, abs=bound)


@pytest.mark.parametrize(("run", "bound"), WHOLE_RUNS)
def test_the_losses_do_not_depend_on_when_the_world_changes_its_size(tmp_path: Path, run: Any, bound: float) -> None:
    """20 steps on 2 ranks, against 3 ranks, then 1 rank, then 4 ranks to the end."""
    baseline, resized = comparable(tmp_path / "baseline"), comparable(tmp_path / "resized")
    run_ranks(2, run, baseline, 1)
    ends = [run_ranks(3, run, resized, 1, 5, None, Stop.TO_RESIZE), run_ranks(1, run, resized, 2, 3)]
    assert [error.step for errors in ends for error in errors] == [5, 5, 5, 8]
    run_ranks(4, run, resized, 3)
    assert_same_history(resized, baseline, bound)


@pytest.mark.slow
@pytest.mark.parametrize(("run", "bound"), WHOLE_RUNS)
def test_whole_runs_are_the_same_at_every_world_size(tmp_path: Path, run: Any, bound: float) -> None:
    """Losses of 20 steps, and of the evaluations between and after them."""
    runs = [comparable(tmp_path / str(size)) for size in (1, 2, 3, 4)]
    results = [run_ranks(size, run, config, 1) for size, config in enumerate(runs, start=1)]
    (alone, _), *_ = results[0]
    for config, ranks in zip(runs[1:], results[1:], strict=True):
        assert_same_history(config, runs[0], bound)
        for result, _ in ranks:
            assert result.evaluation.metrics == pytest.approx(alone.evaluation.metrics, rel=0, abs=10 * bound)


def test_corrupt_data_ends_a_run_or_is_skipped_and_counted_over_all_ranks(tmp_path: Path) -> None:
    """The second half of the training tokens is lost; an epoch has 250 samples, 20 steps take 200 of them."""
    config = prepared(tmp_path, steps=20)
    store = store_of(config)
    manifest = in_two_shards(store)
    store.put("data/b.bin", store.get("data/b.bin")[:-2])
    [error] = run_ranks(1, train_run, config, 1)
    assert isinstance(error, DataError)
    assert "data/b.bin" in error.cause
    skipping = job(tmp_path, steps=20, data={**config.data.wire(), "onCorrupt": "skip"})
    run_ranks(2, train_run, skipping, 2)
    taken = Reader(store, manifest, "train", SEQUENCE).order(skipping.training.seed).indices(np.arange(200))
    lost = (taken + 1) * SEQUENCE >= manifest.splits["train"].shards[0].count
    assert read_progress(store, newest(skipping)).corrupt_samples == lost.sum() > 50


def test_a_run_that_can_read_nothing_ends_and_has_not_moved(tmp_path: Path) -> None:
    """Skipped samples are left out of the mean, and there is no mean of nothing: a loss of 0 would pass for success."""
    config = prepared(tmp_path, steps=20, logEvery=5, checkpoint={"everySteps": 5})
    config = config.model_copy(update={"data": config.data.model_copy(update={"on_corrupt": "skip"})})
    store = store_of(config)
    run_ranks(1, train_run, config.model_copy(update={"training": config.training.model_copy(update={"steps": 5})}), 1)
    before = contents(newest(config))
    store.delete(["data/train-test-0.bin"])
    [error] = run_ranks(1, train_run, config, 2)
    assert isinstance(error, DataError)
    assert (error.step, error.exit_code) == (15, 11)
    assert "All data of step 15 is corrupt" in error.cause
    assert newest(config).step == 10
    progress = read_progress(store, newest(config))
    assert ([logged.step for logged in progress.history], progress.skipped) == ([5], 5)
    weights = [after for key, after in contents(newest(config)).items() if key.endswith(".bin")]
    assert weights == [hash_ for key, hash_ in before.items() if key.endswith(".bin")]

    store.delete(["data/test-test-0.bin"])
    finished = config.model_copy(update={"training": config.training.model_copy(update={"steps": 10})})
    [error] = run_ranks(1, train_run, finished, 3)
    assert isinstance(error, DataError)
    assert "all data of the test split is corrupt" in error.cause


def test_a_checkpoint_is_not_continued_on_data_that_means_something_else(tmp_path: Path) -> None:
    config = prepared(tmp_path, steps=2)
    store = store_of(config)
    run_ranks(1, train_run, config, 1)
    manifest = Manifest.model_validate_json(store.get(MANIFEST_KEY))
    assert newest(config).encoding == encoding_of(manifest)
    store.put(MANIFEST_KEY, manifest.model_copy(update={"eos_id": 1}).to_json())
    [error] = run_ranks(1, train_run, job(tmp_path, steps=4), 2)
    assert isinstance(error, UserError)
    assert "was trained on data with another tokenizer" in error.cause
    assert newest(config).step == 2


def test_a_run_with_more_steps_continues_from_its_last_checkpoint_at_the_rate_that_is_configured_now(
    tmp_path: Path,
) -> None:
    """The schedule is no state: what resumes says the learning rate before and after."""
    schedule = {"name": "linear", "warmupSteps": 0, "minRatio": 0.0}
    run_ranks(1, train_run, prepared(tmp_path, steps=6, schedule=schedule, logEvery=4), 1)
    changed = job(tmp_path, steps=9, optimizer={"lr": 8e-4}, schedule={**schedule, "minRatio": 0.5})
    [(result, reports)] = run_ranks(1, train_run, changed, 2)
    assert reports[0]["resumedFromStep"] == 6
    assert reports[0]["message"].endswith("; learning rate 0.0005 (0 at step 6).")
    assert result.step == 9
    rates = {logged.step: logged.learning_rate for logged in history_of(changed)}
    assert rates == pytest.approx({4: 4e-4, 6: 0.0, 7: 5e-4, 8: 4.5e-4, 9: 4e-4})


def test_the_model_learns_and_every_phase_reports(tmp_path: Path) -> None:
    optimizer, schedule = {"lr": 1e-2}, {"warmupSteps": 10}
    config = prepared(tmp_path, steps=120, optimizer=optimizer, schedule=schedule, logEvery=10, clipNorm=1.0)
    [(result, reports)] = run_ranks(1, train_run, config, 1)
    loss = result.evaluation.metrics["loss"]
    assert loss < 0.6 * math.log(VOCABULARY)  # a model that knows nothing of the last token has log(32)
    assert {"Training", "Evaluating", "Exporting"} <= {report.get("state") for report in reports}
    last = [report["progress"] for report in reports if "progress" in report][-1]
    assert last["step"] == last["steps"] == 120
    assert last["samples"] == 1200
    assert last["tokens"] == 1200 * config.training.sequence_length
    assert last["tokensPerSecond"] > 0
    assert last["etaSeconds"] == 0
    measured = [report["progress"] for report in reports if report.get("progress", {}).get("metrics")]
    for progress in measured:
        a_step = progress["tokensPerSecond"] * progress["metrics"]["stepSeconds"]  # evaluations left out of both
        assert a_step == pytest.approx(10 * SEQUENCE, rel=0.01)
    told = [progress["metrics"] for progress in measured]
    assert all(spent["stepSeconds"] > spent["dataWaitSeconds"] + spent["checkpointWaitSeconds"] for spent in told)
    assert all(spent["dataWaitSeconds"] > 0 for spent in told)
    saves = [spent["checkpointWaitSeconds"] > 0 for spent in told]
    assert saves == [False, False, True] + [False, True] * 4 + [False], "after each second report there is a checkpoint"
    assert last["metrics"]["memoryGiB"] > 0.05


def test_a_loss_that_is_not_finite_names_step_and_learning_rate_and_is_never_committed(tmp_path: Path) -> None:
    config = prepared(
        tmp_path, optimizer={"lr": 10.0, "weightDecay": 10.0}, clipNorm=0, schedule={"warmupSteps": 0}, logEvery=40
    )
    [error] = run_ranks(1, train_run, config, 1)
    assert isinstance(error, UserError)
    assert "of step" in error.cause
    assert "learning rate was" in error.cause
    assert latest(store_of(config)) is None


def test_a_step_that_is_not_finite_is_one_at_which_the_run_stands_still(tmp_path: Path) -> None:
    """Data and schedule go on: as if the learning rate had been nothing for this step, bit for bit."""
    points = [{"step": step, "ratio": ratio} for step, ratio in ((6, 1.0), (7, 0.0), (8, 1.0))]
    schedule, optimizer = (
        {"name": "points", "warmupSteps": 0, "points": points},
        {"name": "sgd", "momentum": 0, "lr": 0.1},
    )
    still, skipped = (
        prepared(tmp_path / name, steps=12, schedule=schedule, optimizer=optimizer) for name in ("still", "skipped")
    )
    run_ranks(2, train_run, still, 1)
    run_ranks(2, train_with_a_bad_step, skipped, 1, 7)
    expected = history_of(still)
    assert expected[7].learning_rate == 0
    assert history_of(skipped) == [logged for logged in expected if logged.step != 8]
    assert read_progress(store_of(skipped), newest(skipped)).skipped == 1


def test_two_attempts_that_write_at_the_same_time_never_mix(tmp_path: Path) -> None:
    """No fence is up, as if neither had seen the other: both commit every step, and each checkpoint is one's alone."""
    config = prepared(tmp_path, steps=12, checkpoint={"everySteps": 1, "keepLast": 12})
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda number: run_ranks(1, train_run, config, number), (1, 2)))
    found = commits(store_of(config))
    assert [commit.step for commit in found] == list(range(1, 13))
    for commit in found:
        assert all(stored.key.startswith(commit.prefix) for stored in commit.objects)
        for stored in commit.objects:
            read_verified(store_of(config), stored)


def test_a_run_that_exports_nothing_has_a_result_without_a_model(tmp_path: Path) -> None:
    """A shape that no family of Hugging Face's expresses trains all the same."""
    shape = {"layers": 1, "dim": 16, "heads": 2, "norm": "layernorm"}
    config = prepared(tmp_path, model={"transformer": shape, "export": "none"}, steps=2)
    [(result, _)] = run_ranks(1, train_run, config, 1)
    assert result.model_uri is None
    assert "modelUri" not in result.save(store_of(config)).wire()
    assert not (tmp_path / "model").exists()
    assert (tmp_path / "reports" / "a1" / "report.html").exists()
