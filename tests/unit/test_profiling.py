"""A window of steps under torch.profiler: what is recorded, where it lies, and that nothing else changes."""

from pathlib import Path

from support.rank_functions import train_run, train_without_space
from support.ranks import run_ranks
from support.training import job, prepared, store_of, traces_of
from trainingjob_trainer.checkpoint.commits import latest
from trainingjob_trainer.config import JobConfig


def recorded(config: JobConfig) -> dict[str, set[str]]:
    """Names of what happened, by trace."""
    return {key: {event["name"] for event in events} for key, events in traces_of(config).items()}


def checksums(config: JobConfig) -> dict[str, str]:
    commit = latest(store_of(config))
    assert commit is not None
    assert commit.step == 6
    return {stored.key: stored.sha256 for stored in commit.objects}


def test_every_rank_leaves_a_trace_of_the_window_and_the_run_is_the_same(tmp_path: Path) -> None:
    plain = prepared(tmp_path / "plain", steps=6)
    profiled = prepared(tmp_path / "profiled", steps=6, profile={"fromStep": 3, "steps": 2})
    run_ranks(2, train_run, plain, 1)
    (_, reports), _ = run_ranks(2, train_run, profiled, 1)
    traces = recorded(profiled)
    assert sorted(traces) == [f"profiles/a1/step-00000003-rank-{rank}.json.gz" for rank in (0, 1)]
    for names in traces.values():
        assert {name for name in names if name.startswith("step ")} == {"step 3", "step 4"}
        assert "aten::mm" in names
        assert any("all_reduce" in name for name in names)
    assert any(
        f"{tmp_path}/profiled/profiles/a1/step-00000003-rank-0" in report.get("message", "") for report in reports
    )
    assert checksums(profiled) == checksums(plain)
    assert recorded(plain) == {}


def test_a_request_for_a_profile_belongs_to_no_run_and_to_no_plan(tmp_path: Path) -> None:
    plain, profiled = job(tmp_path), job(tmp_path, profile={"fromStep": 3})
    assert profiled.identity_hash() == plain.identity_hash()
    assert profiled.plan_hash() == plain.plan_hash()


def test_a_window_that_the_run_ends_in_is_handed_out_too(tmp_path: Path) -> None:
    config = prepared(tmp_path, steps=6, profile={"fromStep": 5, "steps": 50})
    run_ranks(1, train_run, config, 1)
    [names] = recorded(config).values()
    assert {name for name in names if name.startswith("step ")} == {"step 5", "step 6"}


def test_a_trace_that_storage_refuses_is_lost_and_the_run_goes_on(tmp_path: Path) -> None:
    config = prepared(tmp_path, steps=6, profile={"fromStep": 3, "steps": 1})
    [result] = run_ranks(1, train_without_space, config, 1, "profiles/")
    assert result.step == 6
    assert recorded(config) == {}


def test_a_run_that_resumes_behind_the_window_records_nothing(tmp_path: Path) -> None:
    run_ranks(1, train_run, prepared(tmp_path, steps=6), 1)
    longer = job(tmp_path, steps=8, profile={"fromStep": 3, "steps": 3})
    run_ranks(1, train_run, longer, 2)
    assert recorded(longer) == {}
