"""What the operator does with a command of the user's: no preparation, and a gang that starts anew as a whole."""

from dataclasses import replace
from typing import Any

import pytest
from support.play import Play, custom

EVALUATION = {"split": "validation", "step": 70, "metrics": {"loss": 2.5}}


@pytest.fixture
def started() -> Play:
    """Two pods of a custom job that were just created."""
    play = Play(spec=custom())
    play.settle()
    return play


@pytest.fixture
def running(started: Play) -> Play:
    """The command runs in both pods."""
    started.run_pods()
    started.step(1)
    return started


def progress(play: Play, step: int, steps: int | None = 100, **fields: Any) -> None:
    said = {"step": step, "steps": steps, "loss": 2.5, "metrics": {"reward": 0.5}, **fields}
    play.report(play.head(), state="Training", progress=said)


def test_the_first_stage_is_training(started: Play) -> None:
    assert started.created == ["gpt-train-0-1", "gpt-train-1-1"]
    assert (started.status.stage, started.status.phase) == ("Train", "Starting")


def test_it_runs_when_every_pod_is_ready_whatever_it_reports(started: Play) -> None:
    started.change("gpt-train-0-1", phase="Running", ready=True)
    started.step(1)
    assert started.status.phase == "Starting"
    started.run_pods()
    started.step(1)
    assert started.status.phase == "Running"
    assert started.status.progress is None
    assert started.status.message == "Training on 2 ranks."


def test_it_is_two_status_writes_and_an_event_until_it_runs(running: Play) -> None:
    running.settle()
    assert len(running.statuses) == 2
    assert [e.reason for e in running.events] == ["Running"]


def test_what_it_reports_is_its_progress(running: Play) -> None:
    progress(running, 40)
    running.step(20)
    shown = running.status.progress
    assert shown is not None
    assert (shown.step, shown.steps, shown.summary, shown.loss) == (40, 100, "40/100 (40%)", 2.5)
    assert shown.metrics == {"reward": 0.5}


@pytest.mark.parametrize(
    ("step", "steps", "percent", "summary"),
    [(0, None, 30, "30%"), (7, None, None, "step 7"), (50, 100, 51, "50/100 (51%)")],
)
def test_progress_in_percent_or_without_an_end_is_shown_as_it_is(
    running: Play, step: int, steps: int | None, percent: int | None, summary: str
) -> None:
    progress(running, step, steps, percent=percent)
    running.step(20)
    assert running.status.progress is not None
    assert running.status.progress.summary == summary
    assert running.status.progress.percent == (percent or 0)


@pytest.mark.parametrize("index", [0, 1])
def test_when_one_pod_fails_all_start_anew_and_it_counts_once(running: Play, index: int) -> None:
    running.end(f"gpt-train-{index}-1", 1)
    running.step(1)
    assert running.created[2:] == ["gpt-train-0-2", "gpt-train-1-2"]
    other = f"gpt-train-{1 - index}-1"
    assert running.deleted == [other]
    assert not running.pod(other).member
    assert (running.status.phase, running.status.restarts.total) == ("Restarting", 1)
    # The one that was told to stop ends as it likes; it is nobody's member any more.
    running.end(other, 1)
    running.run_pods()
    running.step(4)
    assert (running.status.phase, running.status.restarts.total) == ("Running", 1)
    (incident,) = running.status.history
    assert (incident.pod, incident.class_, incident.attempt) == (f"gpt-train-{index}-1", "Crashed", 1)
    assert (incident.seconds_to_recover, incident.steps_lost) == (4, None)


def test_pods_that_fall_together_are_one_failure(running: Play) -> None:
    running.end("gpt-train-0-1", 1)
    running.end("gpt-train-1-1", 137)
    running.step(1)
    assert running.created[2:] == ["gpt-train-0-2", "gpt-train-1-2"]
    assert running.status.restarts.total == 1
    assert {i.class_ for i in running.status.history} == {"Crashed", "Killed"}


def test_the_gang_has_one_incarnation_even_after_a_lost_status(running: Play) -> None:
    running.end("gpt-train-1-1", 1)
    running.step(1)
    running.vanish("gpt-train-0-1")
    running.vanish("gpt-train-0-2")
    running.status = running.status.model_copy(update={"pods": (), "resolved": None, "stage": None})
    running.step(1)
    assert [(m.index, m.incarnation) for m in running.status.pods] == [(0, 3), (1, 3)]


def test_a_pod_that_must_not_keep_off_a_node_any_more_takes_the_gang_along(running: Play) -> None:
    """Whatever replaces one pod replaces all: a follower starts with the head of its own incarnation only."""
    for incarnation in (1, 2):
        running.run_pods()
        running.change(f"gpt-train-1-{incarnation}", node="bad")
        running.end(f"gpt-train-1-{incarnation}", 137, node="bad")
        running.step(61)
    running.step(11)
    assert running.pod("gpt-train-1-3").kept_off
    running.change("gpt-train-1-3", unschedulable="0/1 nodes are available: 1 node(s) didn't match.")
    running.step(1)
    assert {m.incarnation for m in running.status.pods} == {4}


def test_evictions_start_it_anew_and_are_not_counted(running: Play) -> None:
    running.end("gpt-train-1-1", 30, {"class": "Drained"}, disruption="EvictionByEvictionAPI")
    running.step(1)
    assert running.created[2:] == ["gpt-train-0-2", "gpt-train-1-2"]
    assert (running.status.restarts.total, running.status.history[0].class_) == (0, "Evicted")


LOG = "Traceback (most recent call last):\n  File ...\nValueError: bad batch\n"


def fail_at(play: Play, step: int | None) -> None:
    """The command gets to `step` and dies; its successors run."""
    play.run_pods()
    play.step(1)
    if step is not None:
        progress(play, step)
        play.step(20)
    play.end(play.head(), 1, termination_text=LOG)
    play.step(300)
    play.step(300)


def test_it_is_given_up_when_it_dies_without_having_come_further(running: Play) -> None:
    running.spec = custom(runPolicy={"maxRestarts": 2})
    for step in (10, 10, None):
        fail_at(running, step)
    assert running.status.phase == "Failed"
    assert running.status.restarts.without_progress == 3
    first, *rest = running.status.message.splitlines()
    assert "ended with exit code 1: ValueError: bad batch" in first
    assert "given up after 3 failures without a further step (maxRestarts 2)" in first
    assert rest == LOG.splitlines()


def test_it_goes_on_as_long_as_it_comes_further(running: Play) -> None:
    running.spec = custom(runPolicy={"maxRestarts": 1})
    for step in (10, 20, 30, 40):
        fail_at(running, step)
    assert running.status.phase != "Failed"
    assert (running.status.restarts.total, running.status.restarts.without_progress) == (4, 1)


def test_successors_wait_longer_each_time_and_all_of_them(running: Play) -> None:
    running.end("gpt-train-0-1", 1)
    running.step(1)
    running.run_pods()
    running.step(1)
    running.end("gpt-train-1-2", 1)
    running.step(61)
    assert len(running.created) == 4
    assert {m.not_before for m in running.status.pods} != {None}
    running.step(11)
    assert running.created[4:] == ["gpt-train-0-3", "gpt-train-1-3"]


def test_index_0_ends_the_run_and_the_rest_is_drained(running: Play) -> None:
    result = {"progress": {"step": 70, "steps": 100, "loss": 2.25, "etaSeconds": 9}, "evaluation": EVALUATION}
    running.end("gpt-train-0-1", 0, {"outcome": "Finished", "step": 70, "result": result})
    running.step(1)
    assert (running.status.phase, running.status.message) == ("Succeeded", "Finished at step 70.")
    assert running.status.result is None
    assert running.status.progress is not None
    assert (running.status.progress.summary, running.status.progress.loss) == ("70/100 (70%)", 2.25)
    assert running.status.progress.eta is None
    assert running.status.evaluation is not None
    assert running.status.evaluation.metrics == {"loss": 2.5}
    assert running.deleted == ["gpt-train-1-1"]


def test_a_command_that_said_nothing_has_finished_all_the_same(running: Play) -> None:
    running.end("gpt-train-0-1", 0, {"outcome": "Finished", "result": {}})
    running.step(1)
    assert (running.status.phase, running.status.message) == ("Succeeded", "Finished.")
    assert running.status.progress is None


def test_a_worker_that_is_done_with_its_part_is_no_failure(running: Play) -> None:
    running.end("gpt-train-1-1", 0, {"outcome": None})
    running.settle()
    assert running.status.phase == "Running"
    assert len(running.created) == 2


def test_a_suspended_command_begins_anew(running: Play) -> None:
    progress(running, 40)
    running.step(20)
    running.spec = custom(runPolicy={"suspend": True})
    running.step(1)
    assert sorted(running.deleted) == ["gpt-train-0-1", "gpt-train-1-1"]
    for name in list(running.names):
        running.end(name, 30, {"class": "Drained"})
    running.settle()
    assert running.status.phase == "Suspended"
    assert "Suspended at step 40: set spec.runPolicy.suspend" in running.status.message
    running.spec = custom()
    running.settle()
    assert running.created[2:] == ["gpt-train-0-2", "gpt-train-1-2"]
    assert running.status.restarts.total == 0


def test_a_quiet_command_is_never_written_about(running: Play) -> None:
    running.settle()
    written = len(running.statuses)
    for _ in range(10):
        running.progress = replace(running.progress)
        running.step(60)
    assert len(running.statuses) == written
